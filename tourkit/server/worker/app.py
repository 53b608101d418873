"""The OpenAI API over one engine: the HTTP routes of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tourkit.defaults import RoleDefaults
from tourkit.errors import EngineDead, EngineError, RequestError, TourkitError, excerpt
from tourkit.server.api.embedding import embed
from tourkit.server.api.generation import Generation, complete, ignored_header, stream
from tourkit.server.api.model import InTrial, Model, untold
from tourkit.server.api.off_loop import parsed, tokenized
from tourkit.server.api.replies import ChatReply, TextReply, error_response, json_response
from tourkit.server.api.requests import (
    Generate,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_embeddings,
    parse_tokenize,
)
from tourkit.server.contract import CLIENT_HEADER, SECRET_HEADER
from tourkit.server.http import CLIENT_LEFT

if TYPE_CHECKING:
    from tourkit.backends.base import Engine


T = TypeVar("T")

_EVENTS = "text/event-stream"


class ModelServer:
    """The HTTP routes over one engine."""

    def __init__(
        self,
        engine: Engine,
        secret: str,
        on_dead: Callable[[], None] = lambda: None,
        in_trial: InTrial = untold,
        defaults: tuple[RoleDefaults, ...] = (),
    ) -> None:
        """`defaults`: as in Launch."""
        self._engine = engine
        self._model = Model.of(engine, in_trial)
        self._secret = secret
        self._on_dead = on_dead
        self._defaults = defaults

    async def start_trial(self) -> None:
        """Start the process that tries constraints, so that the first request with one does not wait for it."""
        if self._model.trial is not None:
            with contextlib.suppress(EngineError):  # a request that needs it tries again and gets the error
                await self._model.trial.start()

    async def close(self) -> None:
        """End the engine and the trial process."""
        await asyncio.to_thread(self._engine.close)
        if self._model.trial is not None:
            await self._model.trial.close()

    def app(self) -> ASGIApp:
        routes = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/stats", self.stats, methods=["GET"]),
            ],
            exception_handlers={
                TourkitError: self._answer_error,
                ClientDisconnect: self._answer_nobody,
                Exception: self._answer_failure,
            },
        )

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await routes(scope, receive, send)
            except Exception:  # noqa: BLE001 - already answered; raising it would close the gateway's open connection
                traceback.print_exc()

        return app

    async def stats(self, request: HttpRequest) -> Response:
        from tourkit import offline

        refused = {"offline_refused": offline.refused()}
        return json_response(200, asdict(self._engine.info) | asdict(self._engine.stats()) | refused)

    async def chat(self, request: HttpRequest) -> Response:
        asked = await self._body(request, partial(parse_chat, defaults=self._defaults))
        logprobs = asked.request.params.top_logprobs is not None
        id_, shown = f"chatcmpl-{uuid.uuid4().hex}", asked.include_reasoning
        reply = ChatReply(id_, int(time.time()), asked.model, logprobs, shown, asked.legacy_calls)
        return await self._generate(asked, reply, request)

    async def complete(self, request: HttpRequest) -> Response:
        asked = await self._body(request, partial(parse_completion, defaults=self._defaults))
        reply = TextReply(f"cmpl-{uuid.uuid4().hex}", int(time.time()), asked.model)
        return await self._generate(asked, reply, request)

    async def embed(self, request: HttpRequest) -> Response:
        return await embed(self._engine, await self._body(request, parse_embeddings), request)

    async def tokenize(self, request: HttpRequest) -> Response:
        text, special = await self._body(request, parse_tokenize)

        def work() -> Response:
            tokens = self._engine.tokenize(text, add_special=special)
            about = {"count": len(tokens), "max_model_len": self._engine.info.context}
            return json_response(200, {"tokens": tokens} | about)

        return await tokenized(len(text), work, request.receive) or Response(status_code=CLIENT_LEFT)

    async def detokenize(self, request: HttpRequest) -> Response:
        tokens = await self._body(request, parse_detokenize)

        def work() -> Response:
            return json_response(200, {"prompt": self._engine.detokenize(tokens)})

        return await tokenized(len(tokens), work, request.receive) or Response(status_code=CLIENT_LEFT)

    async def _body(self, request: HttpRequest, parse: Callable[[Any], T]) -> T:
        """Return a request's body, checked and converted by `parse`. Raises RequestError."""
        if request.headers.get(SECRET_HEADER) != self._secret:
            raise RequestError("this is a worker: send requests to the gateway", status=403)
        return await parsed(await request.body(), parse)

    async def _generate(self, asked: Generate, reply: ChatReply | TextReply, request: HttpRequest) -> Response:
        client = request.headers.get(CLIENT_HEADER, "")
        asked = replace(asked, request=replace(asked.request, client=client))
        emulated = [name for name in asked.features if name in self._engine.info.emulated]
        headers = {"x-tourkit-emulated": ", ".join(emulated)} if emulated else {}
        if not asked.stream:
            response = await complete(self._model, asked, reply, request)
            response.headers.update(headers)
            return response
        generation = await Generation.start(self._model, asked.request, request)
        if generation is None:
            return Response(status_code=CLIENT_LEFT)
        headers |= {"cache-control": "no-cache", "x-tourkit-constraint": generation.constraint.level}
        headers |= ignored_header(generation.ignored)
        events = stream(self._model, generation, reply, asked, request)
        return StreamingResponse(events, media_type=_EVENTS, headers=headers)

    async def _answer_error(self, request: HttpRequest, exc: Exception) -> Response:
        assert isinstance(exc, TourkitError)
        if isinstance(exc, EngineDead):  # it cannot answer any more: the gateway starts another worker
            self._on_dead()
        return error_response(exc)

    async def _answer_nobody(self, request: HttpRequest, exc: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)  # the gateway hung up in the middle of the body

    async def _answer_failure(self, request: HttpRequest, exc: Exception) -> Response:
        return error_response(
            EngineError(f"internal error of tourkit, please report it: {type(exc).__name__}: {excerpt(str(exc))}")
        )
