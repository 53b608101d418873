"""The thinking of one sequence: where it is, when it must end, and which tokens lead from it to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tourkit.engine.reasoning_stream import Markers, ReasoningStream, Split, Where
from tourkit.generation import TokenLogprob


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """How the answers of one request think.

    `where`: where an answer begins after the prompt. `constrained`: the content follows a grammar. `budget`: the most
    tokens of thinking; None if there is no limit. `end`, `bridge`: the tokens of these texts of the markers. `endings`:
    for each count of characters of Markers.close, the tokens of the rest of it and of the bridge; empty for models with
    channels. `pieces`: the bytes of control tokens that are parts of markers.
    """

    markers: Markers
    where: Where
    constrained: bool = False
    budget: int | None = None
    end: tuple[int, ...] = ()
    bridge: tuple[int, ...] = ()
    endings: tuple[tuple[int, ...], ...] = ()
    pieces: Mapping[int, bytes] = field(default_factory=dict)


class Thinking:
    """The state of one sequence that may think.

    `answering`: the content has begun and follows a grammar, so that no marker counts any more. `n_tokens`: tokens of
    thinking so far, without the markers.
    """

    def __init__(self, plan: ThinkingPlan) -> None:
        self._plan = plan
        self._stream = ReasoningStream(plan.markers, plan.where, anywhere=bool(plan.pieces))
        self.answering = plan.constrained and plan.where is not Where.THINKING
        self.n_tokens = 0
        self._unsure = 0  # tokens that may be a part of the closing marker
        self._leading = False  # tokens that lead to the content are being written
        self._unsure_scores: list[TokenLogprob] = []  # of tokens that may be content or a part of a marker

    @property
    def is_thinking(self) -> bool:
        return self._stream.where is Where.THINKING

    @property
    def is_content(self) -> bool:
        return self.answering or self._stream.where is Where.CONTENT

    @property
    def is_undecided(self) -> bool:
        """Whether the last token may be content or not."""
        return not self._stream.decided or self._stream.in_character

    def feed(self, token: int, piece: bytes) -> Split:
        """Take a token and its bytes, while no grammar applies, and return the new text."""
        was_thinking = self.is_thinking
        split = self._stream.feed(self._plan.pieces.get(token, piece))
        if was_thinking and not self._leading:
            self._count()
        return split

    def _count(self) -> None:
        if not self.is_thinking:
            self._unsure = 0
        elif self._stream.held.strip():
            self._unsure += 1
        else:
            self.n_tokens += self._unsure + 1
            self._unsure = 0

    def score(self, logprob: TokenLogprob) -> None:
        """Take the log probability of the next token. Call it only while `is_thinking` is false."""
        self._unsure_scores.append(logprob)

    def scores(self, *, ended: bool = False) -> list[TokenLogprob]:
        """Return the log probabilities that are now known to belong to the content. Call it after each token.

        `ended`: the answer is over, so tokens that may still be content count as content.
        """
        found = self._unsure_scores
        if self.is_content or ended:
            self._unsure_scores = []
            return found
        if not self.is_undecided:
            self._unsure_scores = []
        return []

    def close(self, *, cut: bool) -> Split:
        """End the answer and return the rest of its text. `cut`: it is not complete."""
        if self.is_thinking:
            self.n_tokens += self._unsure
            self._unsure = 0
        return Split() if self.answering else self._stream.close(cut=cut)

    def instead(self, piece: bytes) -> tuple[int, ...]:
        """Return the tokens to write instead of a token that ends the thinking and begins the content.

        A grammar begins at the first byte of the content, so no token may hold both. Empty if this token does not.
        """
        plan, held = self._plan, self._stream.held
        if self.answering or not (plan.constrained and plan.endings and self.is_thinking):
            return ()
        before, mark, after = (held + piece.decode(errors="replace")).partition(plan.markers.close)
        if not mark or not after.strip() or len(before) > len(held):
            return ()
        return plan.endings[len(held) - len(before)]

    def due(self, n_left: int, reserve: int) -> tuple[int, ...]:
        """Return the tokens that must come now; call it when all tokens so far were fed. Sets `answering`.

        `n_left`: tokens that may still come. `reserve`: tokens enough for the content, if it follows a grammar.
        """
        plan = self._plan
        if self.answering:
            return ()
        if self._leading:
            self._leading, self.answering = False, plan.constrained
        elif self.is_thinking:
            is_over = plan.budget is not None and self.n_tokens + self._unsure >= plan.budget
            if is_over or (plan.constrained and n_left <= reserve + len(plan.end)):
                return self.give_up()
        elif plan.constrained:
            # A header that has begun is not finished but written anew.
            self._leading = bool(plan.bridge) and (plan.markers.channels or not self._stream.held)
            self.answering = not self._leading
            return plan.bridge if self._leading else ()
        return ()

    def give_up(self) -> tuple[int, ...]:
        """Return the tokens that end the thinking now and lead to the content; empty if it is not thinking."""
        if self._leading or not self.is_thinking:
            return ()
        self.n_tokens, self._unsure = self.n_tokens + self._unsure, 0
        self._leading = True
        return self._plan.end

    @property
    def must_answer(self) -> bool:
        """Whether a content has to follow, so that the model may not end the answer yet."""
        return self._plan.constrained and not self.answering
