"""One sequence that is being generated: its tokens, how many of them the KV cache holds, and its single ending."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from tourkit.engine.prompt_lookup import PromptLookup
from tourkit.engine.stop_strings import TextStream
from tourkit.generation import Delta, Emit, Finish, TokenLogprob

if TYPE_CHECKING:
    from tourkit.engine.logprobs import PromptScores
    from tourkit.engine.runner import Sampler
    from tourkit.engine.thinking import Thinking
    from tourkit.errors import TourkitError
    from tourkit.grammar.matcher import Matcher


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    DONE = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """State of one sequence. Only the engine thread writes to it.

    tokens[0:n_prompt)          the prompt
    tokens[n_prompt:)           generated: sampled, or forced by the grammar
    tokens[0:n_kv)              in the KV cache of `slot`
    tokens[n_kv:)               pending: the next batches compute them
    """

    submission: int
    index: int
    tokens: list[int]
    n_prompt: int
    max_tokens: int
    emit: Emit
    sampler: Sampler
    text: TextStream
    matcher: Matcher | None = None
    thinking: Thinking | None = None  # None if this request cannot think
    pieces: Mapping[int, bytes] = field(default_factory=dict)  # texts of control tokens that mark calls of tools
    top_logprobs: int | None = None
    scored: tuple[int, ...] = ()  # as in SamplingParams
    scores: PromptScores | None = None  # None if the request asks for no log probabilities of the prompt
    whole: bool = False  # send text only at the end
    client: str = ""  # whose request it is
    turn: int = 0  # its number in the line of waiting sequences: see waiting.py
    status: Status = Status.WAITING
    slot: int | None = None
    n_kv: int = 0
    cuts: list[int] = field(default_factory=list)  # where a call of the model must end, in order: see checkpoints.py
    n_cached: int | None = None  # prompt tokens that were in the KV cache when it began; None before that
    n_sent: int = 0  # generated tokens that the deltas so far have counted
    lookup: PromptLookup | None = None
    draft: list[int] = field(default_factory=list)  # guesses of the tokens after `tokens`; the next batch checks them
    logprobs: list[TokenLogprob] = field(default_factory=list)  # not yet sent
    held: str = ""  # final text that waits for the end, if `whole`
    held_thinking: str = ""  # the same for the thinking
    n_thinking_sent: int = 0  # tokens of thinking that the deltas so far have counted

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_kv

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def n_left(self) -> int:
        """Tokens that may still be generated."""
        return self.max_tokens - self.n_generated

    @property
    def grammar(self) -> Matcher | None:
        """The grammar that the next token must follow; None if there is none, and while the model thinks."""
        return self.matcher if self.thinking is None or self.thinking.answering else None

    def begin(self) -> None:
        """Run in the slot that holds its first `n_kv` tokens. If it was preempted, the first beginning counts."""
        self.status = Status.RUNNING
        if self.n_cached is None:
            self.n_cached = min(self.n_kv, self.n_prompt)

    def take(self, token: int, piece: bytes) -> None:
        """Take the bytes of the token that was appended last, and send the text that is final now."""
        thinking, thought = self.thinking, ""
        if thinking is None or thinking.answering:
            if self.matcher is not None and self.matcher.in_call:
                self.text.ignore_stops()
            text = self.text.feed(self.pieces.get(token, piece))
        else:
            split = thinking.feed(token, piece)
            text, thought = self.text.feed_text(split.content), split.reasoning
        if thinking is not None:
            self.logprobs += thinking.scores()
        self._send(text, thought)

    def _send(self, text: str, thinking: str = "") -> None:
        """Send text that is final now. Send nothing if it is empty; keep it for the end if `whole`."""
        if self.whole:
            self.held += text
            self.held_thinking += thinking
        elif text or thinking:
            self.emit(self._delta(text, thinking))

    def finish(self, reason: Finish, error: TourkitError | None = None) -> None:
        """End the sequence. Later calls do nothing, so every sequence ends exactly once."""
        if self.status is Status.DONE:
            return
        self.status = Status.DONE
        self.sampler.close()
        text, thinking = self.held, self.held_thinking
        if self.thinking is not None:
            rest = self.thinking.close(cut=reason is not Finish.STOP)
            self.logprobs += self.thinking.scores(ended=True)
            text, thinking = text + self.text.feed_text(rest.content), thinking + rest.reasoning
        last = self._delta(text + self.text.close(), thinking)
        last = replace(last, finish=reason, error=error, n_cached=self.n_cached or 0, stop=self.text.found)
        self.emit(last)

    def _delta(self, text: str, thinking: str) -> Delta:
        new = 0
        if self.thinking is not None:
            new = self.thinking.n_tokens - self.n_thinking_sent
            self.n_thinking_sent += new
        sent, self.logprobs = tuple(self.logprobs), []
        prompt = () if self.scores is None else self.scores.unsent()
        return Delta(
            self.index,
            text,
            self._unsent(),
            logprobs=sent,
            reasoning=thinking,
            n_reasoning=new,
            prompt_logprobs=prompt,
        )

    def _unsent(self) -> int:
        new = self.n_generated - self.n_sent
        self.n_sent = self.n_generated
        return new
