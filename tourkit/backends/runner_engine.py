"""The Engine over a TextRunner. This module handles chat template, tokens and grammars; BatchEngine does the batching.

So every stack whose library gives logits for tokens has the complete API, and the same API.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tourkit.backends.template_trial import try_out
from tourkit.backends.text_side import Texts, Tokenizer
from tourkit.engine.engine import BatchEngine
from tourkit.engine.run_store import RunStore
from tourkit.engine.runner import Runner
from tourkit.errors import LocalError, TourkitError
from tourkit.generation import Activity, Emit, EngineInfo, EngineStats, Request, SamplingParams, Submission
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.trial.token_table import TokenTable

if TYPE_CHECKING:
    from tourkit.launch import Launch

_WARM_UP = 8  # tokens


class TextRunner(Tokenizer, Runner, Protocol):
    """A Runner that is also the Tokenizer of its model."""

    context: int  # most tokens in a sequence


def warm_up(runner: Runner) -> int:
    """Run a small batch and one more token, and drop their cells. Return the number of tokens.

    A library that was built for another processor crashes at its first batch, not while loading. This shows the crash
    while the model is still loading. Raises EngineError, or LocalError if there is no memory even for this.
    """
    length = min(_WARM_UP, runner.n_batch, runner.n_ctx // runner.n_slots - 1)
    for batch in (range(length), range(length, length + 1)):
        for pos in batch:
            runner.add(pos % runner.n_vocab, pos, 0, logits=pos == batch[-1])
        if not runner.decode():
            raise LocalError(f"no memory for a batch of {len(batch)} tokens: lower --context or --slots")
    runner.truncate(0, 0)
    return length + 1


def start(
    runner: TextRunner,
    launch: Launch,
    *,
    emulated: tuple[str, ...] = (),
    speculate: bool = True,
    store: RunStore | None = None,
) -> RunnerEngine:
    """Try the chat template in a process of its own, and start the engine of a loaded model. Raises LocalError."""
    try:
        source = runner.chat_template or launch.chat_template
        if source:
            try_out(source, runner.special_tokens, Path(launch.path))
        return RunnerEngine(
            runner,
            launch.stack,
            emulated=emulated,
            speculate=speculate,
            deterministic=launch.deterministic,
            store=store,
            prompt_cache=launch.prompt_cache,
            chat_template=launch.chat_template,
            special_tokens_in_content=launch.special_tokens_in_content,
        )
    except TourkitError:
        runner.close()
        raise


class RunnerEngine:
    """The Engine of one loaded model.

    `emulated`: parameters that tourkit serves itself because the stack's library does not.
    `chat_template`: used if the model has none. `prompt_cache` and `special_tokens_in_content`: as in Launch.
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
        store: RunStore | None = None,
        prompt_cache: int | None = None,
        chat_template: str = "",
        special_tokens_in_content: bool = False,
    ) -> None:
        self._runner = runner
        self._texts = Texts(runner, runner.context, chat_template, special_tokens_in_content=special_tokens_in_content)
        self._spacing = self._texts.spacing(self._write_on)
        self._preparing: threading.Thread | None = None
        self._batches = BatchEngine(
            runner,
            max_waiting=max_waiting,
            strip_leading_space=runner.starts_with_space,
            speculate=speculate,
            deterministic=deterministic,
            store=store,
            prompt_cache=prompt_cache,
            warm_up=partial(warm_up, runner),
            at_rest=self._begin_preparing,
            release=self._release,
        )
        sharing = self._batches.prefix_sharing
        self._info = EngineInfo(stack, runner.context, runner.n_slots, runner.n_vocab, emulated, sharing)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        request = self._texts.with_calls(request)
        engine_input = self._texts.engine_input(request, self._spacing, prepared, matchers=request.n)
        submission = self._batches.submit(
            engine_input.tokens,
            request.params,
            engine_input.max_tokens,
            emit,
            engine_input.matchers,
            thinking=engine_input.thinking,
            pieces=engine_input.pieces,
            whole=request.whole,
            client=request.client,
        )
        return engine_input.submission(submission)

    recompiles = False

    def with_calls(self, request: Request) -> Request:
        return self._texts.with_calls(request)

    def manner(self, request: Request) -> Manner:
        return self._texts.manner(request, self._spacing)

    def token_table(self) -> TokenTable:
        return self._texts.token_table()

    def abort(self, submission_id: int) -> None:
        self._batches.abort(submission_id)

    def apply_template(self, request: Request) -> str:
        return self._texts.apply_template(request)

    def count_tokens(self, request: Request) -> int:
        return self._texts.count_tokens(request)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self._texts.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: list[int]) -> str:
        return self._texts.detokenize(tokens)

    def stats(self) -> EngineStats:
        return self._batches.stats()

    def activity(self) -> Activity:
        return self._batches.activity()

    def close(self) -> None:
        self._batches.close()

    def _begin_preparing(self) -> None:
        """Start `_prepare` at the first pause. Earlier it would slow down loading and answers."""
        self._preparing = threading.Thread(target=self._prepare, name="tourkit-grammars", daemon=True)
        self._preparing.start()

    def _prepare(self) -> None:
        """Do the work now that the first structured request would wait for."""
        self._texts.prepare()
        try:
            self._spacing.habit()
        except TourkitError:
            return  # nothing is lost: a request that needs it tries again and gets the error

    def _write_on(self, tokens: list[int], max_tokens: int, emit: Emit) -> None:
        self._batches.submit(tokens, SamplingParams(temperature=0), max_tokens, emit, whole=True)

    def _release(self) -> None:
        if self._preparing is not None:
            self._preparing.join()
        self._runner.close()
