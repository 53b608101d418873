"""When the stream of a worker begins: with the first thing that the engine writes, and not before."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from asgi import Answer, ask
from idle_engine import IdleEngine

from tourkit.errors import EngineDead, RequestError, TourkitError
from tourkit.generation import Delta, Emit, EngineInfo, Finish, Request, Submission
from tourkit.grammar.prepared import Prepared
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer

BODY = {"model": "tool", "messages": [{"role": "user", "content": "Q"}], "stream": True}
WRITTEN = [Delta(0, "te", 1), Delta(0, "xt", 1, Finish.STOP)]


class Late(IdleEngine):
    """An engine that writes when it is asked to. `emit`: of the request that was submitted."""

    info = EngineInfo("late", 100, 1, 256)

    def __init__(self) -> None:
        self.emit: Emit | None = None

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        self.emit = emit
        return Submission(1, 7)


def failed(error: TourkitError) -> Delta:
    return Delta(0, "", 0, Finish.ERROR, error)


def answer(*deltas: Delta) -> tuple[Answer, list[str]]:
    """Return the answer to a stream whose deltas come late, and what the worker has reported of its engine's death."""
    reported: list[str] = []

    async def run() -> Answer:
        engine = Late()
        app = ModelServer(engine, "s", on_dead=lambda: reported.append("dead")).app()  # type: ignore[arg-type]
        headers = {SECRET_HEADER: "s", "content-type": "application/json"}
        asking = asyncio.create_task(ask(app, "/v1/chat/completions", BODY, headers=headers))
        while engine.emit is None:
            await asyncio.sleep(0)
        for delta in deltas:
            engine.emit(delta)
        return await asking

    return asyncio.run(run()), reported


def test_no_byte_of_a_stream_is_sent_before_the_engine_writes() -> None:
    """Until then the gateway can ask another worker."""

    async def run() -> tuple[list[Any], list[Any]]:
        engine, sent = Late(), []
        content = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}]

        async def receive() -> Any:
            return content.pop() if content else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [(SECRET_HEADER.encode(), b"s")], "client": ("127.0.0.1", 5)}
        app = ModelServer(engine, "s").app()  # type: ignore[arg-type]
        asking = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
        while engine.emit is None:
            await asyncio.sleep(0)
        for _ in range(100):  # turns of the event loop: an answer that begins at once needs only a few
            await asyncio.sleep(0)
        before = list(sent)
        for delta in WRITTEN:
            engine.emit(delta)
        await asking
        return before, sent

    before, sent = asyncio.run(run())

    assert before == []
    assert sent[0]["status"] == 200
    assert b'"role":"assistant"' in sent[1]["body"]  # one write has the opening and the first text
    assert b'"content":"te"' in sent[1]["body"]


def test_a_stream_has_all_that_the_engine_writes() -> None:
    found, _ = answer(*WRITTEN)

    deltas = [choice["delta"] for event in found.events for choice in event["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == "text"
    assert found.raw.endswith(b"data: [DONE]\n\n")


def test_a_failure_before_the_first_token_is_an_answer_with_its_status() -> None:
    refused, _ = answer(failed(RequestError("no such token", param="logit_bias")))
    dead, reported = answer(failed(EngineDead("the engine thread died")))

    assert (refused.status, refused.body["error"]["param"]) == (400, "logit_bias")
    assert (dead.status, reported) == (503, ["dead"])


def test_a_failure_after_the_first_token_is_an_event_without_an_end() -> None:
    found, _ = answer(WRITTEN[0], failed(EngineDead("the engine thread died")))

    assert found.status == 200
    assert found.events[-1]["error"]["message"] == "the engine thread died"
    assert b"[DONE]" not in found.raw
