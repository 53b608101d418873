"""POST /v1/completions over one engine: the generations of all prompts, and the answer or the stream made of them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tourkit.errors import TourkitError
from tourkit.generation import Delta, Enforced, Finish, Request, TokenLogprob
from tourkit.server.api.completion_fields import Complete
from tourkit.server.api.dialects import event
from tourkit.server.api.generation import Generation
from tourkit.server.api.model import Model
from tourkit.server.api.replies import DONE, Choice, Usage, error_body, json_response
from tourkit.server.api.structured import Checked, about, checked
from tourkit.server.api.text_replies import ChoiceText, TextReply
from tourkit.server.http import CLIENT_LEFT, unless_hung_up

_AT_ONCE = 32  # answers that one request has in the engine: it must not fill the queue alone


class Prompts:
    """The generations of one request, one for each prompt. Some run at the same time, the others follow them."""

    def __init__(self, model: Model, requests: tuple[Request, ...], http: HttpRequest) -> None:
        self._model, self._requests, self._http = model, requests, http
        self._at_once = max(1, _AT_ONCE // requests[0].n)
        self._begun: dict[int, Generation] = {}
        self._ended = 0
        self._arrived: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()  # None: one has ended

    async def start(self) -> bool:
        """Submit the first ones. Return False if the client hangs up. Raises the errors of `Generation.start`."""
        try:
            for i in range(min(self._at_once, len(self._requests))):
                if not await self._begin(i):
                    return False
        except BaseException:
            self.abort()
            raise
        return True

    async def _begin(self, i: int) -> Generation | None:
        generation = await Generation.start(self._model, self._requests[i], self._http)
        if generation is None:
            self.abort()
            return None
        self._begun[i] = generation
        return generation

    def abort(self) -> None:
        """End the generations that still run. Idempotent."""
        for generation in self._begun.values():
            generation.abort()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yield each delta with the number of its prompt. The iteration ends early if the client hangs up.

        Raises RequestError, QueueFull, EngineError, EngineDead for a prompt that is submitted later.
        """
        free = asyncio.Semaphore(self._at_once)
        running = [asyncio.create_task(self._run(i, free)) for i in range(len(self._requests))]
        try:
            for _ in running:
                while (found := await self._arrived.get()) is not None:
                    if isinstance(found, Exception):
                        raise found
                    yield found
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self.abort()

    async def _run(self, i: int, free: asyncio.Semaphore) -> None:
        try:
            async with free:
                generation = self._begun.get(i) or await self._begin(i)
                if generation is None:
                    return
                async for delta in generation.deltas(self._http):
                    self._arrived.put_nowait((i, delta))
                self._ended += generation.complete
        except Exception as exc:  # noqa: BLE001 - task boundary: the request must get the error
            self._arrived.put_nowait(exc)
        finally:
            self._arrived.put_nowait(None)

    @property
    def complete(self) -> bool:
        return self._ended == len(self._requests)

    @property
    def constraint(self) -> Enforced:
        return self._begun[0].constraint

    def usage(self) -> Usage:
        return sum((generation.usage() for generation in self._begun.values()), Usage(0, 0, 0))


@dataclass(slots=True)
class _Answer:
    """One choice while its deltas come. `shown`: what the reply has shown of its text."""

    shown: ChoiceText
    text: str = ""
    finish: Finish = Finish.STOP
    logprobs: tuple[TokenLogprob, ...] = ()


class Answers:
    """The choices of one request, in the order of its prompts. `echoes`: the text of each prompt, if it is shown."""

    def __init__(self, asked: Complete, echoes: list[str]) -> None:
        self._asked, self._echoes = asked, echoes
        n_choices = len(asked.requests) * asked.n
        self.choices = [_Answer(ChoiceText(shows=asked.shows_logprobs)) for _ in range(n_choices)]
        self._scores: dict[int, tuple[TokenLogprob, ...]] = {}  # of each prompt
        self._held: defaultdict[int, list[Delta]] = defaultdict(list)

    def take(self, i: int, delta: Delta) -> list[tuple[int, Delta]]:
        """Take a delta of prompt `i`. Return the deltas that can be shown now, each with the number of its choice.

        Deltas wait until the log probabilities of their prompt are known. Raises EngineError if a sequence has failed.
        """
        if delta.failure:
            raise delta.failure
        if delta.prompt_logprobs:
            self._scores[i] = delta.prompt_logprobs
        self._held[i].append(delta)
        if self._asked.requests[i].params.prompt_logprobs and i not in self._scores:
            return []
        due, self._held[i] = self._held[i], []
        return [self._taken(i * self._asked.n + each.index, each) for each in due]

    def _taken(self, index: int, delta: Delta) -> tuple[int, Delta]:
        answer = self.choices[index]
        if self._asked.only_prompt:
            delta = replace(delta, text="", logprobs=(), finish=Finish.LENGTH if delta.finish else None)
        answer.text += delta.text
        answer.logprobs += delta.logprobs
        answer.finish = delta.finish or answer.finish
        return index, delta

    def echo(self, index: int) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Return the text of a choice's prompt and its log probabilities; both empty if they are not shown."""
        i = index // self._asked.n
        return (self._echoes[i] if self._echoes else ""), self._scores.get(i, ())

    def usage(self, used: Usage) -> Usage:
        """Return the usage that the reply states."""
        return replace(used, n_completion=0) if self._asked.only_prompt else used


async def complete_all(model: Model, asked: Complete, reply: TextReply, http: HttpRequest) -> Response:
    """Return the complete answer. Structured answers are checked, and repaired if a rule can do it.

    Raises RequestError, QueueFull, EngineError, EngineDead.
    """
    prompts, answers = Prompts(model, asked.requests, http), Answers(asked, echoes_of(model, asked))
    if await prompts.start():
        async for i, delta in prompts.deltas():
            answers.take(i, delta)
    if not prompts.complete:
        return Response(status_code=CLIENT_LEFT)
    report: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if (schema := asked.requests[0].schema_source) is not None:
        results = await unless_hung_up(http.receive, _checked(model, schema, answers, may_repair=True))
        if results is None:
            return Response(status_code=CLIENT_LEFT)
        for answer, result in zip(answers.choices, results, strict=True):
            answer.text = result.choice.text
        report = {"tourkit": about(prompts.constraint, results)}
        headers = {"x-tourkit-constraint": prompts.constraint.level}
    shown = [_whole(reply, answers, index) for index in range(len(answers.choices))]
    response = json_response(200, reply.completion(shown, answers.usage(prompts.usage())) | report)
    response.headers.update(headers)
    return response


def echoes_of(model: Model, asked: Complete) -> list[str]:
    """Return the text of each prompt if the request asks for it, else nothing. Raises RequestError."""
    if not asked.echo:
        return []
    prompts = [request.prompt for request in asked.requests]
    return [each if isinstance(each, str) else model.engine.detokenize(list(each or ())) for each in prompts]


async def _checked(model: Model, schema: str, answers: Answers, *, may_repair: bool) -> list[Checked]:
    results = []
    for each in answers.choices:
        choice = Choice(each.text, each.finish, None)
        results.append(checked(choice, await model.judge(schema, each.text, may_repair=may_repair)))
    return results


def _whole(reply: TextReply, answers: Answers, index: int) -> dict[str, Any]:
    answer, (text, scores) = answers.choices[index], answers.echo(index)
    logprobs = answer.shown.logprobs((*scores, *answer.logprobs))
    return reply.choice(index, text + answer.text, logprobs, answer.finish)


async def stream_all(
    model: Model, prompts: Prompts, asked: Complete, reply: TextReply, echoes: list[str]
) -> AsyncIterator[bytes]:
    """Yield the answers as server-sent events. `prompts`: started. `echoes`: of `echoes_of`.

    Structured answers are checked at the end; a last chunk reports them.
    """
    answers, begun = Answers(asked, echoes), set[int]()
    try:
        async for i, arrived in prompts.deltas():
            for index, delta in answers.take(i, arrived):
                used = answers.usage(prompts.usage()) if asked.options.always else None
                for choice in _new(reply, answers, index, delta, is_first=index not in begun):
                    yield event(reply.chunk(choice, used))
                begun.add(index)
    except TourkitError as exc:
        yield event(error_body(exc)[1])
        return
    if not prompts.complete:
        return
    if (schema := asked.requests[0].schema_source) is not None:
        results = await _checked(model, schema, answers, may_repair=False)
        if prompts.constraint.level != "strict" or not all(each.valid for each in results):
            yield event(reply.remark(about(prompts.constraint, results)))
    if asked.options.usage:
        yield event(reply.closing(answers.usage(prompts.usage())))
    yield DONE


def _new(reply: TextReply, answers: Answers, index: int, delta: Delta, *, is_first: bool) -> list[dict[str, Any]]:
    """Return the parts of a stream that a delta adds to a choice: its prompt first, if that is shown."""
    shown, (text, scores) = answers.choices[index].shown, answers.echo(index)
    echo = [reply.choice(index, text, shown.logprobs(scores))] if is_first and text else []
    return [*echo, reply.choice(index, delta.text, shown.logprobs(delta.logprobs), delta.finish)]
