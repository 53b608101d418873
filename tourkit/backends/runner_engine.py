"""The Engine over a Runner that also knows text: chat template, tokens and grammars here, batching in BatchEngine.

Every stack whose library gives logits for tokens gets the whole API this way, and the same API.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, Protocol

from tourkit.backends.base import PrefixStore, Runner
from tourkit.engine.chat_template import ChatTemplate
from tourkit.engine.constraint import GrammarCompiler, Matcher
from tourkit.engine.engine import BatchEngine
from tourkit.engine.types import Emit, Enforced, EngineInfo, EngineStats, Request, SamplingParams, Submission
from tourkit.errors import LocalError, RequestError

_WARM_UP = 8  # tokens


class TextRunner(Runner, Protocol):
    """A Runner with its vocabulary. `special_tokens`: bos_token and eos_token as text, empty where there is none."""

    max_len: int  # tokens a sequence
    special_tokens: dict[str, str]

    @property
    def chat_template(self) -> str | None:
        """Jinja source, if the model carries one."""
        ...

    @property
    def adds_bos(self) -> bool: ...

    @property
    def starts_with_space(self) -> bool:
        """True for SentencePiece vocabularies, whose answers naturally begin with a space."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def grammar_tokenizer(self) -> Any:
        """llguidance's view of the vocabulary; called once."""
        ...


def warm_up(runner: Runner) -> None:
    """Run a small batch and one more token, and forget them.

    A library that was built for other processors crashes at its first batch, not when it loads: whoever waits for the
    model to be loaded should hear of that. Raises EngineError, or LocalError where even this finds no memory.
    """
    length = min(_WARM_UP, runner.n_batch, runner.n_ctx // runner.n_slots - 1)
    for batch in (range(length), range(length, length + 1)):
        for pos in batch:
            runner.add(pos % runner.n_vocab, pos, 0, logits=pos == batch[-1])
        if not runner.decode():
            raise LocalError(f"{len(batch)} tokens find no memory: lower --context or --slots")
    runner.truncate(0, 0)


class RunnerEngine:
    """The Engine of one loaded model. `emulated`: parameters tourkit serves because the stack's library does not.

    `chat_template` is used where the model carries none.
    """

    def __init__(
        self,
        runner: TextRunner,
        stack: str,
        *,
        emulated: tuple[str, ...] = (),
        max_waiting: int = 256,
        speculate: bool = True,
        deterministic: bool = False,
        prefixes: PrefixStore | None = None,
        chat_template: str = "",
    ) -> None:
        self._runner = runner
        self._info = EngineInfo(stack, runner.max_len, runner.n_slots, runner.n_vocab, emulated)
        source = runner.chat_template or chat_template
        self._template = ChatTemplate(source, runner.special_tokens) if source else None
        self._grammars: GrammarCompiler | None = None
        self._grammars_lock = threading.Lock()
        self._batches = BatchEngine(
            runner,
            max_waiting=max_waiting,
            strip_leading_space=runner.starts_with_space,
            speculate=speculate,
            deterministic=deterministic,
            prefixes=prefixes,
            warm_up=partial(warm_up, runner),
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, request: Request, emit: Emit) -> Submission:
        tokens = self._prompt_tokens(request)
        room = self._runner.max_len - len(tokens)
        wanted = request.params.max_tokens
        if room < 1 or (wanted is not None and wanted > room):
            raise RequestError(
                f"{len(tokens)} prompt tokens and {wanted or 1} to generate do not fit a context of "
                f"{self._runner.max_len}: shorten the prompt, lower max_tokens, or serve with a larger --context",
                param="messages" if room < 1 else "max_tokens",
                code="context_length_exceeded",
            )
        self._check_bias(request.params)
        matchers = [self._matcher(request) for _ in range(request.n)]
        submission = self._batches.submit(tokens, request.params, wanted or room, emit, matchers, whole=request.whole)
        first = matchers[0]
        enforced = Enforced(first.level, first.dropped) if first is not None else Enforced()
        return Submission(submission, len(tokens), enforced)

    def abort(self, submission_id: int) -> None:
        self._batches.abort(submission_id)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self._runner.tokenize(text, add_special=add_special, parse_special=False)

    def detokenize(self, tokens: list[int]) -> str:
        for token in tokens:
            if token >= self._runner.n_vocab:
                raise RequestError(f"token {token}: this model has {self._runner.n_vocab}", param="tokens")
        return b"".join(self._runner.piece(token) for token in tokens).decode(errors="replace")

    def stats(self) -> EngineStats:
        return self._batches.stats()

    def close(self) -> None:
        self._batches.close()

    def _check_bias(self, params: SamplingParams) -> None:
        for token, _ in params.logit_bias:
            if token >= self._runner.n_vocab:
                raise RequestError(
                    f"logit_bias names token {token}: this model has {self._runner.n_vocab}", param="logit_bias"
                )

    def _prompt_tokens(self, request: Request) -> list[int]:
        if request.prompt is not None:
            return self._runner.tokenize(request.prompt, add_special=True, parse_special=False)
        if self._template is None:
            raise RequestError(
                "this model carries no chat template: use /v1/completions with a plain prompt, or give its model a "
                "chat_template in the manifest",
                param="messages",
            )
        text = self._template.render(request.messages or ())
        bos = self._runner.special_tokens["bos_token"]
        add_bos = self._runner.adds_bos and not (bos and text.startswith(bos))
        return self._runner.tokenize(text, add_special=add_bos, parse_special=True)

    def _matcher(self, request: Request) -> Matcher | None:
        if request.constraint is None:
            return None
        with self._grammars_lock:  # made on first use: a second or so for a large vocabulary
            if self._grammars is None:
                runner = self._runner
                self._grammars = GrammarCompiler(
                    runner.grammar_tokenizer(),
                    runner.n_vocab,
                    runner.eog,
                    runner.piece,
                    lambda text: len(runner.tokenize(text, add_special=False, parse_special=False)),
                    leading_space=runner.starts_with_space,
                )
        return self._grammars.matcher(request.constraint, tight=request.tight)
