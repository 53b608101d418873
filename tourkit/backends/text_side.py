"""The text side of every stack: turns requests into tokens and grammars, and tokens into text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

from tourkit.backends.chat_template import ChatTemplate
from tourkit.backends.control_tokens import ControlTokens
from tourkit.backends.infill import infill_parts
from tourkit.backends.reasoning import Reasoning
from tourkit.backends.tool_prompt import ToolPrompt
from tourkit.calling.forms import Form
from tourkit.engine.thinking import ThinkingPlan
from tourkit.errors import RequestError
from tourkit.generation import Constraint, Emit, Enforced, Request, Submission, Thinking
from tourkit.grammar.compiler import GrammarCompiler
from tourkit.grammar.matcher import Matcher
from tourkit.grammar.prepare import Preparer
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.spacing import BEGUN, ENOUGH, QUESTION, Spacing
from tourkit.grammar.trial.token_table import TokenTable

_REMEMBERED = 64  # prepared constraints
_SHORT_PIECE = 4  # bytes of a token: shorter prompts are not measured


class Tokenizer(Protocol):
    """The tokenizer of a model. `special_tokens`: bos_token and eos_token as text; empty if there is none."""

    n_vocab: int
    eog: frozenset[int]  # every end-of-generation token
    special_tokens: dict[str, str]
    control_tokens: ControlTokens

    @property
    def longest_piece(self) -> int:
        """Bytes of the longest token, control tokens included."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's chat template; None if it has none."""
        ...

    @property
    def adds_bos(self) -> bool: ...

    @property
    def starts_with_space(self) -> bool:
        """True for SentencePiece vocabularies: their answers normally begin with a space."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def tokenize_parts(self, parts: Sequence[str | int], *, add_special: bool) -> list[int]:
        """Return the tokens of texts and control tokens in order. Control tokens that a text spells are text."""
        ...

    def piece(self, token: int) -> bytes: ...

    def grammar_tokenizer(self) -> Any:
        """llguidance's view of the vocabulary; called once."""
        ...


@dataclass(frozen=True, slots=True)
class EngineInput:
    """The input of an engine for one request: the prompt's tokens and how many tokens may follow.

    `matchers`: one for each sequence, all at the start of the same grammar; all None for free text. `thinking`: None if
    no answer can think. `ignored`, `form`: as in Submission. `pieces`: the texts of control tokens that belong to the
    text of an answer, because they mark calls of tools.
    """

    tokens: list[int]
    max_tokens: int
    matchers: list[Matcher] | list[None]
    thinking: ThinkingPlan | None = None
    ignored: tuple[str, ...] = ()
    form: Form | None = None
    pieces: Mapping[int, bytes] = field(default_factory=dict)

    def submission(self, id_: int) -> Submission:
        """Return what `submit` of an engine returns. `id_`: the key for `abort`."""
        return Submission(id_, len(self.tokens), self.enforced, self.ignored, self.form)

    @property
    def enforced(self) -> Enforced:
        """How strictly the grammar follows the constraint. It is the same for every sequence."""
        first = self.matchers[0]
        return Enforced() if first is None else Enforced(first.level, first.dropped)


@dataclass(frozen=True, slots=True)
class _Grammars:
    """What is made once for the grammars of a model. `tokenizer`: llguidance's view of the vocabulary.

    `prepare`: for requests whose constraint no trial process has prepared; it remembers some.
    """

    tokenizer: Any
    compiler: GrammarCompiler
    prepare: Callable[[Constraint, Manner], Prepared]


class Texts:
    """Prompts, checks and grammars of one model. Thread-safe.

    `context`: tokens a sequence. `chat_template`: used if the model has none. `special_tokens_in_content`: a control
    token that a message spells is the control token; otherwise it is text.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, chat_template: str = "", *, special_tokens_in_content: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        source = tokenizer.chat_template or chat_template
        self._template = ChatTemplate(source, tokenizer.special_tokens) if source else None
        self.reasoning = None if self._template is None else Reasoning(self._template, tokenizer)
        self._tools = None if self._template is None else self._tool_prompt(self._template)
        self._made: _Grammars | None = None
        self._special_tokens_in_content = special_tokens_in_content
        self._lock = threading.Lock()

    def engine_input(
        self, request: Request, spacing: Spacing, prepared: Prepared | None, *, matchers: int
    ) -> EngineInput:
        """Make the engine's input for a request. `matchers`: how many to make.

        `prepared`: the request's constraint, as a trial process prepared it. Without it the constraint is prepared in
        this process, which a hostile one can end or hang. Raises RequestError, and the errors of `spacing`.
        """
        tokens, thinking = self._prompt(request)
        if request.params.scored:
            thinking = None  # only the probabilities of the first token count, so no text is sorted into thoughts
        self._check(request, len(tokens))
        room = self.context - len(tokens)
        max_tokens = min(request.params.max_tokens or room, room)  # more than the room is let in only if `fitted`
        ignored = () if self.reasoning is None else self.reasoning.ignored(request)
        ignored += request.malformed
        if request.constraint is None:
            return EngineInput(tokens, max_tokens, [None] * matchers, thinking, ignored)
        if prepared is None:
            prepared = self._grammars().prepare(request.constraint, self.manner(request, spacing))
        made = self._grammars().compiler.matchers(prepared, matchers)
        if self._tools is None or request.offer is None:
            return EngineInput(tokens, max_tokens, made, thinking, ignored)
        form = self._tools.form(request.offer)
        return EngineInput(tokens, max_tokens, made, thinking, ignored, form, self._tools.pieces(form))

    def with_calls(self, request: Request) -> Request:
        """Return a request with the constraint for the calls of tools that it offers; unchanged if it offers none."""
        offer, constraint = request.offer, request.constraint
        if offer is None or self._tools is None or (constraint is not None and constraint.kind == "tools"):
            return request
        params = (
            replace(request.params, stop=()) if offer.required else request.params
        )  # arguments have no stop strings
        return replace(request, constraint=self._tools.constraint(offer), params=params)

    def _tool_prompt(self, template: ChatTemplate) -> ToolPrompt:
        tokenizer = self.tokenizer
        control = tokenizer.control_tokens
        return ToolPrompt(template, control, frozenset(id_ for id_ in control.ids.values() if not tokenizer.piece(id_)))

    def manner(self, request: Request, spacing: Spacing) -> Manner:
        """Return how the constraint of a request is prepared. Raises the errors of `spacing`."""
        return Manner(tight=request.tight, compact=spacing.compact(request))

    def token_table(self) -> TokenTable:
        """Return the vocabulary for a trial process. It takes up to a second."""
        return TokenTable.of_tokenizer(self._grammars().tokenizer, leading_space=self.tokenizer.starts_with_space)

    def spacing(self, write_on: Callable[[list[int], int, Emit], object]) -> Spacing:
        """Return how this model spaces JSON.

        `write_on(tokens, max_tokens, emit)` lets the model continue the tokens greedily and emits one delta.
        """
        return Spacing(lambda emit: write_on(self._dialogue(QUESTION, BEGUN, ENOUGH), ENOUGH, emit))

    def _prompt(self, request: Request, begun: str = "") -> tuple[list[int], ThinkingPlan | None]:
        """Return the tokens of a prompt or of messages, followed by a begun answer, and how the answer thinks.

        Raises RequestError.
        """
        if request.prompt is not None:
            return self._plain_tokens(request.prompt, request.suffix, begun), None
        text, mark = self._rendered(request)
        assert self.reasoning is not None
        thinking = self.reasoning.plan(text, request)
        return self._prompt_tokens(text + begun, mark), thinking

    def apply_template(self, request: Request) -> str:
        """Return the prompt that the chat template makes of the request's messages. Raises RequestError."""
        text, mark = self._rendered(request)
        return text.replace(mark, "") if mark else text

    def count_tokens(self, request: Request) -> int:
        """Return how many tokens the prompt of a request has. Raises RequestError."""
        return len(self._prompt(request)[0])

    def _rendered(self, request: Request) -> tuple[str, str]:
        """Return the prompt as text, and the mark in it: see ControlTokens.marked. Raises RequestError."""
        tokenizer = self.tokenizer
        if self._template is None or self.reasoning is None or self._tools is None:
            raise RequestError(
                "this model has no chat template: use /v1/completions with a plain prompt, or set the model's "
                "chat_template in the manifest",
                param="messages",
            )
        shown = [] if request.offer is None else [tool.to_json() for tool in request.offer.tools]
        about: dict[str, Any] = {"options": self.reasoning.options(request), "tools": shown}
        messages, mark = [*self.reasoning.messages(request), about], ""
        if not self._special_tokens_in_content:
            messages, mark = tokenizer.control_tokens.marked(messages)
        *messages, about = messages
        messages, variables = self._tools.placed(messages, about["tools"], self._tools.form(request.offer))
        text = self._template.render(messages, mark=mark, options=about["options"] | variables)
        return text + self.reasoning.suffix(text, request), mark

    def _plain_tokens(self, prompt: str | tuple[int, ...], suffix: str | None, begun: str) -> list[int]:
        """Return the tokens of a plain prompt. `suffix`: the text after a gap; None if there is none."""
        tokenizer = self.tokenizer
        if not isinstance(prompt, str):
            self._check_ids(prompt, "prompt")
            return list(prompt)
        self._check_size(prompt, "prompt")
        if suffix is None:
            return tokenizer.tokenize(prompt + begun, add_special=True, parse_special=False)
        self._check_size(suffix, "suffix")
        parts = infill_parts(tokenizer.control_tokens.ids, prompt, suffix)
        if parts is None:
            raise RequestError(
                "suffix: this model has no tokens for fill-in-the-middle: leave it out, or use a model for code",
                param="suffix",
                code="unsupported_parameter",
            )
        return tokenizer.tokenize_parts(parts, add_special=True)

    def _check_ids(self, tokens: Sequence[int], param: str) -> None:
        """Raise RequestError for a token id that this model does not have."""
        for token in tokens:
            if token >= self.tokenizer.n_vocab:
                raise RequestError(
                    f"token id {token} is out of range: this model has {self.tokenizer.n_vocab} tokens", param=param
                )

    def _prompt_tokens(self, text: str, mark: str) -> list[int]:
        """Return the tokens of a rendered prompt. `mark`: as in ControlTokens.marked. Raises RequestError."""
        tokenizer = self.tokenizer
        self._check_size(text.replace(mark, "") if mark else text, "messages")
        self._check_count(text)
        bos = tokenizer.special_tokens["bos_token"]
        add_bos = tokenizer.adds_bos and not (bos and text.startswith(bos))
        if mark:
            return tokenizer.tokenize_parts(tokenizer.control_tokens.parts(text, mark), add_special=add_bos)
        return tokenizer.tokenize(text, add_special=add_bos, parse_special=True)

    def _check_size(self, text: str, param: str) -> None:
        """Raise RequestError, before tokenizing, for a text that no tokens of the context can hold."""
        if len(text) <= self.context * _SHORT_PIECE:
            return
        size, most = len(text.encode(errors="replace")), self.context * self.tokenizer.longest_piece
        if size > most:
            raise self._too_long(f"{size} bytes of prompt were sent, and the context holds at most {most} bytes", param)

    def _too_long(self, found: str, param: str) -> RequestError:
        """Return the error for a request that the context cannot hold. `found`: what it has.

        Clients look for the first words: they are OpenAI's.
        """
        fix = "lower max_tokens" if param == "max_tokens" else "shorten the prompt"
        return RequestError(
            f"This model's maximum context length is {self.context} tokens. However, {found}: {fix}, or serve with a "
            "larger --context",
            param=param,
            code="context_length_exceeded",
        )

    def _check_count(self, text: str) -> None:
        """Raise RequestError, before tokenizing, for a text with more control tokens than the context."""
        count = self.tokenizer.control_tokens.count(text, self.context)
        if count > self.context:
            raise self._too_long(f"the messages resulted in at least {count} tokens", "messages")

    def _dialogue(self, question: str, begun: str, room: int) -> list[int]:
        """Return the tokens of a question and of a begun answer, as plain text if no chat template takes them.

        Truncated from the left so that `room` tokens stay free.
        """
        asked = Request(messages=({"role": "user", "content": question},), thinking=Thinking(enabled=False))
        try:
            tokens, _ = self._prompt(asked, begun)
        except RequestError:  # the model has no template, or the template refuses a single question
            tokens, _ = self._prompt(Request(prompt=f"{question}\n"), begun)
        return tokens[-(self.context - room) :]

    def _check(self, request: Request, n_prompt: int) -> None:
        """Raise RequestError for more tokens than fit the context, and for tokens that this model does not have."""
        wanted = 1 if request.fitted else request.params.max_tokens or 1
        if n_prompt + wanted > self.context:
            prompt = "messages" if request.prompt is None else "prompt"
            param = prompt if n_prompt >= self.context else "max_tokens"
            found = f"you requested {n_prompt + wanted} tokens ({n_prompt} in the {prompt}, {wanted} in the completion)"
            raise self._too_long(found, param)
        for token, _ in request.params.logit_bias:
            if token >= self.tokenizer.n_vocab:
                raise RequestError(
                    f"logit_bias: token id {token} is out of range: this model has {self.tokenizer.n_vocab} tokens",
                    param="logit_bias",
                )

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=False)

    def detokenize(self, tokens: list[int]) -> str:
        self._check_ids(tokens, "tokens")
        return b"".join(self.tokenizer.piece(token) for token in tokens).decode(errors="replace")

    def without_first_space(self, text: str) -> str:
        """Return the start of an answer without the space that SentencePiece models put first."""
        return text.removeprefix(" ") if self.tokenizer.starts_with_space else text

    def prepare(self) -> None:
        """Make the data that grammars need, so that the first request under a grammar does not wait for it.

        This takes up to a second.
        """
        self._grammars()

    def _grammars(self) -> _Grammars:
        tokenizer = self.tokenizer
        with self._lock:
            if self._made is None:
                view = tokenizer.grammar_tokenizer()
                pieces = [tokenizer.piece(token) for token in range(tokenizer.n_vocab)]
                preparer = Preparer(view, pieces, self._count, leading_space=tokenizer.starts_with_space)
                compiler = GrammarCompiler(view, tokenizer.n_vocab, tokenizer.eog, pieces.__getitem__)
                self._made = _Grammars(view, compiler, lru_cache(maxsize=_REMEMBERED)(preparer.prepare))
            return self._made

    def _count(self, text: str) -> int:
        return len(self.tokenizer.tokenize(text, add_special=False, parse_special=False))
