"""Thinking on vLLM: its tokens become deltas with the thinking apart.

vLLM's reasoning parsers hold a grammar back only for the models that they know, as an option of the whole server. So an
answer that has a budget of thinking, or a grammar after it, takes two requests of vLLM: the thinking, then the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tourkit.backends.text_side import EngineInput, Texts
from tourkit.backends.vllm import translation
from tourkit.engine.reasoning_stream import Where
from tourkit.engine.stop_strings import TextStream
from tourkit.engine.thinking import Thinking, ThinkingPlan
from tourkit.generation import Delta, Finish, Request, TokenLogprob


def plan_of(engine_input: EngineInput) -> ThinkingPlan | None:
    """Return how the answers think; None if they cannot, as under a grammar that applies at once."""
    plan = engine_input.thinking
    return None if plan is None or (plan.constrained and plan.where is not Where.THINKING) else plan


def takes_two(plan: ThinkingPlan | None) -> bool:
    """Whether the thinking is a request of its own."""
    return plan is not None and plan.where is Where.THINKING and (plan.constrained or plan.budget is not None)


def first_step(request: Request, engine_input: EngineInput, plan: ThinkingPlan, texts: Texts) -> Any:
    """Return vLLM's SamplingParams for the thinking. If it is a request of its own, its marker ends it.

    Stop strings are for the content, so vLLM does not get them here: ThinkingAnswer looks for them, in every delta.
    """
    params, is_whole = replace(request.params, stop=()), request.whole and not request.params.stop
    request = replace(request, params=params, whole=is_whole)
    if not takes_two(plan):
        return translation.sampling(request, engine_input, texts.tokenizer.eog)
    matcher, most = engine_input.matchers[0], engine_input.max_tokens
    most -= 0 if matcher is None else matcher.reserve + len(plan.end)
    most = max(1, most if plan.budget is None else min(most, plan.budget))
    free = replace(engine_input, matchers=[None], max_tokens=most)
    close = texts.tokenizer.tokenize(plan.markers.close, add_special=False, parse_special=True)
    ends = {*texts.tokenizer.eog, *(close if len(close) == 1 else ())}
    if len(close) > 1:
        request = replace(request, params=replace(params, stop=(plan.markers.close,)))
    return translation.sampling(request, free, ends)


def second_step(answer: ThinkingAnswer, engine_input: EngineInput) -> Any:
    """Return vLLM's SamplingParams for the rest of an answer whose thinking was a request of its own."""
    params = answer.request.params
    seed = None if params.seed is None else params.seed + answer.index
    request = replace(answer.request, n=1, params=replace(params, seed=seed))
    rest = replace(engine_input, max_tokens=engine_input.max_tokens - len(answer.tokens))
    return translation.sampling(request, rest, answer.texts.tokenizer.eog)


class ThinkingAnswer:
    """One answer that may think: tokens of vLLM in, deltas out. `tokens`: those so far, without its end token."""

    def __init__(
        self, index: int, request: Request, plan: ThinkingPlan, texts: Texts, pieces: Mapping[int, bytes]
    ) -> None:
        """`pieces`: as in EngineInput."""
        self.index, self.request, self.texts = index, request, texts
        self.tokens: list[int] = []
        self._thinking = Thinking(plan)
        self._pieces = pieces
        self._text = TextStream(request.params.stop)
        self._new = Delta(index, "", 0)  # what was not sent yet
        self._n_sent = 0  # tokens of thinking that were sent

    @property
    def stopped(self) -> bool:
        """Whether the content has met a stop string."""
        return self._text.stopped

    def take(self, choice: Any) -> None:
        """Take the new tokens of a CompletionOutput of vLLM."""
        rows = choice.logprobs or [None] * len(choice.token_ids)
        for token, row in zip(choice.token_ids, rows, strict=True):
            self._new = replace(self._new, n_tokens=self._new.n_tokens + 1)
            if token in self.texts.tokenizer.eog or self.stopped:
                continue
            instead = self._thinking.instead(self.texts.tokenizer.piece(token))
            for each in instead or (token,):
                self._feed(each, None if instead else row)

    def lead(self, choice: Any, n_left: int, reserve: int) -> Finish | None:
        """Write what leads from the thinking to the content. Return why the answer is over; None if it goes on.

        `choice`: the last CompletionOutput of the thinking. `n_left`, `reserve`: as in Thinking.due.
        """
        has_ended = bool(choice.token_ids) and choice.token_ids[-1] in self.texts.tokenizer.eog
        if has_ended and not self._thinking.must_answer:
            return Finish.STOP
        due = self._thinking.give_up() or self._thinking.due(n_left, reserve)
        while due and n_left > 0:
            self._new = replace(self._new, n_tokens=self._new.n_tokens + len(due[:n_left]))
            for token in due[:n_left]:
                self._feed(token, None)
            n_left -= len(due)
            due = self._thinking.due(n_left, reserve)
        return None if n_left > 0 else Finish.LENGTH

    def _feed(self, token: int, row: Any) -> None:
        tokenizer, thinking = self.texts.tokenizer, self._thinking
        piece = tokenizer.piece(token)
        if not self.tokens and tokenizer.starts_with_space:
            piece = piece.removeprefix(b" ")
        self.tokens.append(token)
        top = self.request.params.top_logprobs
        if row is not None and top is not None and not thinking.is_thinking:
            [found] = translation.logprobs_of([token], [row], top, tokenizer)
            thinking.score(found)
        if thinking.answering:
            text, thought = self._text.feed(self._pieces.get(token, piece)), ""
        else:
            split = thinking.feed(token, piece)
            text, thought = self._text.feed_text(split.content), split.reasoning
        self._add(text, thought, thinking.scores())

    def _add(self, text: str, thought: str, logprobs: Sequence[TokenLogprob] = ()) -> None:
        new = self._new
        self._new = replace(
            new, text=new.text + text, reasoning=new.reasoning + thought, logprobs=(*new.logprobs, *logprobs)
        )

    def delta(self) -> Delta | None:
        """Return what was not sent yet; None if there is nothing to show now."""
        if self.request.whole or not (self._new.text or self._new.reasoning):
            return None
        return self._sent()

    def last(self, finish: Finish, n_cached: int) -> Delta:
        """Return the last delta."""
        rest = self._thinking.close(cut=finish is not Finish.STOP)
        self._add(self._text.feed_text(rest.content), rest.reasoning, self._thinking.scores(ended=True))
        self._add(self._text.close(), "")
        return replace(self._sent(), finish=finish, n_cached=n_cached, stop=self._text.found)

    def _sent(self) -> Delta:
        new, n_tokens = self._new, self._thinking.n_tokens
        self._new = Delta(self.index, "", 0)
        sent = replace(new, n_reasoning=n_tokens - self._n_sent)
        self._n_sent = n_tokens
        return sent


class Answers:
    """The answers of one request: outputs of vLLM in, deltas out.

    `unended`: those that vLLM's first request still writes. `open`: those without a last delta.
    """

    def __init__(self, request: Request, engine_input: EngineInput, texts: Texts) -> None:
        self.request, self._engine_input, self._texts = request, engine_input, texts
        self.unended, self.open = set(range(request.n)), set(range(request.n))
        self._begun: set[int] = set()
        self._n_cached: dict[int, int] = {}
        self._seconds: list[int] = []
        self._has_scores = False
        plan = plan_of(engine_input)
        self._takes_two = takes_two(plan)
        self._thinking = (
            []
            if plan is None
            else [ThinkingAnswer(i, request, plan, texts, engine_input.pieces) for i in range(request.n)]
        )

    def outputs(self, found: Any) -> Iterator[Delta]:
        """Yield what a RequestOutput of the first request adds."""
        params = self.request.params
        if params.prompt_logprobs and found.prompt_logprobs and not self._has_scores:
            self._has_scores = True
            scores = translation.prompt_logprobs_of(
                self._engine_input.tokens, found.prompt_logprobs, params.top_logprobs or 0, self._texts.tokenizer
            )
            yield Delta(0, "", 0, prompt_logprobs=scores)
        for choice in found.outputs:
            yield from self.deltas(choice, found.num_cached_tokens or 0)

    def deltas(self, choice: Any, n_cached: int) -> Iterator[Delta]:
        """Yield what a CompletionOutput of the first request adds. `n_cached`: as in Delta."""
        index = choice.index
        if self._thinking:
            if index in self.unended:  # else a stop string has ended it
                self._n_cached[index] = n_cached
                yield from self._taken(index, choice, may_go_on=self._takes_two)
            return
        is_first = index not in self._begun
        delta = translation.delta(choice, self.request, self._texts, first=is_first, n_cached=n_cached)
        self._begun |= {index} if choice.text else set()
        if delta.finish is not None:
            self._end(index)
        yield delta

    def rest(self, index: int, choice: Any) -> Iterator[Delta]:
        """Yield what a CompletionOutput of the second request of an answer adds."""
        yield from self._taken(index, choice, may_go_on=False)

    def take_seconds(self) -> list[int]:
        """Return the answers whose thinking has ended since the last call, and that need a second request."""
        due, self._seconds = self._seconds, []
        return due

    def second(self, index: int) -> tuple[list[int], Any]:
        """Return the prompt and vLLM's SamplingParams of the second request of an answer."""
        answer = self._thinking[index]
        return [*self._engine_input.tokens, *answer.tokens], second_step(answer, self._engine_input)

    def _taken(self, index: int, choice: Any, *, may_go_on: bool) -> Iterator[Delta]:
        answer = self._thinking[index]
        answer.take(choice)
        finish, error = translation.finish_of(choice.finish_reason)
        if answer.stopped:
            finish = Finish.STOP
        elif may_go_on and finish in (Finish.STOP, Finish.LENGTH):
            matcher = self._engine_input.matchers[0]
            n_left = self._engine_input.max_tokens - len(answer.tokens)
            finish = answer.lead(choice, n_left, 0 if matcher is None else matcher.reserve)
            if finish is None:
                self.unended.discard(index)
                self._seconds.append(index)
        delta = answer.delta() if finish is None else answer.last(finish, self._n_cached[index])
        if finish is not None:
            self._end(index)
        if delta is not None:
            yield replace(delta, error=error)

    def _end(self, index: int) -> None:
        self.unended.discard(index)
        self.open.discard(index)
