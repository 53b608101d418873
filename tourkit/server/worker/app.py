"""The OpenAI API over one engine: the HTTP routes of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tourkit.backends.base import Templated
from tourkit.defaults import RoleDefaults
from tourkit.errors import EngineDead, EngineError, RequestError, TourkitError, excerpt
from tourkit.generation import Enforced
from tourkit.server.api.completion_fields import parse_completion
from tourkit.server.api.completions import Prompts, complete_all, echoes_of, stream_all
from tourkit.server.api.dialects import LINES, dialect_of, line
from tourkit.server.api.embedding import embed
from tourkit.server.api.generation import Generation, complete, ignored_header, stream
from tourkit.server.api.message_fields import parse_count, parse_message
from tourkit.server.api.message_replies import MessageReply
from tourkit.server.api.model import InTrial, Model, untold
from tourkit.server.api.off_loop import parsed, tokenized
from tourkit.server.api.ollama_fields import (
    Loading,
    parse_ollama_chat,
    parse_ollama_embed,
    parse_ollama_embeddings,
    parse_ollama_generate,
)
from tourkit.server.api.ollama_replies import OllamaReply, embed_body, embeddings_body
from tourkit.server.api.replies import ChatReply, Reply, error_response, json_response
from tourkit.server.api.requests import Generate, parse_chat, parse_detokenize, parse_embeddings, parse_tokenize
from tourkit.server.api.rerank_fields import parse_rerank
from tourkit.server.api.reranking import rerank
from tourkit.server.api.response_fields import parse_response
from tourkit.server.api.response_replies import ResponseReply, new_id
from tourkit.server.api.text_replies import TextReply
from tourkit.server.api.translated import client_errors
from tourkit.server.api.truncation import truncated
from tourkit.server.api.yes_no import YesNo
from tourkit.server.contract import CLIENT_HEADER, SECRET_HEADER, STORED_HEADER
from tourkit.server.http import CLIENT_LEFT

if TYPE_CHECKING:
    from tourkit.backends.base import Engine


T = TypeVar("T")


class ModelServer:
    """The HTTP routes over one engine."""

    def __init__(
        self,
        engine: Engine,
        secret: str,
        on_dead: Callable[[], None] = lambda: None,
        in_trial: InTrial = untold,
        defaults: tuple[RoleDefaults, ...] = (),
        fingerprint: str = "",
    ) -> None:
        """`defaults`: as in Launch. `fingerprint`: of the model and its settings, for replies."""
        self._engine = engine
        self._model = Model.of(engine, in_trial)
        self._yes_no = YesNo(self._model)
        self._secret = secret
        self._on_dead = on_dead
        self._defaults = defaults
        self._fingerprint = fingerprint

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
                Route("/v1/responses", self.respond, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/v1/rerank", self.rerank, methods=["POST"]),
                Route("/v1/messages", self.messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
                Route("/api/chat", partial(self.ollama, parse_ollama_chat), methods=["POST"]),
                Route("/api/generate", partial(self.ollama, parse_ollama_generate), methods=["POST"]),
                Route("/api/embed", self.ollama_embed, methods=["POST"]),
                Route("/api/embeddings", self.ollama_embeddings, methods=["POST"]),
                Route("/apply-template", self.apply_template, methods=["POST"]),
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
        reply = ChatReply(
            f"chatcmpl-{uuid.uuid4().hex}",
            int(time.time()),
            asked.model,
            logprobs=asked.request.params.top_logprobs is not None,
            reasoning=asked.include_reasoning,
            fingerprint=self._fingerprint,
            options=asked.options,
            legacy_calls=asked.legacy_calls,
        )
        return await self._answer(asked, reply, request)

    async def respond(self, request: HttpRequest) -> Response:
        stored = request.headers.get(STORED_HEADER)
        parse = partial(parse_response, n_stored=None if stored is None else int(stored), defaults=self._defaults)
        asked = await self._body(request, parse)
        generate, logprobs = asked.generate, asked.generate.request.params.top_logprobs is not None
        if asked.truncates:
            with client_errors(generate.names):
                generate = replace(generate, request=await asyncio.to_thread(truncated, self._engine, generate.request))
        shows = generate.include_reasoning
        reply = ResponseReply(new_id("resp"), int(time.time()), asked.about, reasoning=shows, logprobs=logprobs)
        return await self._answer(generate, reply, request)

    async def _answer(self, asked: Generate, reply: Reply, request: HttpRequest) -> Response:
        """Answer a chat request in the API of `reply`. Raises RequestError with the field of the client's body."""
        with client_errors(asked.names):
            return await self._answered(asked, reply, request)

    async def _answered(self, asked: Generate, reply: Reply, request: HttpRequest) -> Response:
        asked = replace(asked, request=replace(asked.request, client=_client(request)))
        headers = self._emulated(asked.features)
        if not asked.stream:
            response = await complete(self._model, asked, reply, request)
            response.headers.update(headers)
            return response
        generation = await Generation.start(self._model, asked.request, request)
        if generation is None:
            return Response(status_code=CLIENT_LEFT)
        headers |= ignored_header(generation, asked)
        events = stream(self._model, generation, reply, asked, request)
        return await _streamed(events, generation.constraint, headers, request)

    async def messages(self, request: HttpRequest) -> Response:
        asked = await self._body(request, partial(parse_message, defaults=self._defaults))
        id_, most = f"msg_{uuid.uuid4().hex}", asked.request.params.max_tokens
        reply = MessageReply(id_, asked.model, most, reasoning=asked.include_reasoning)
        return await self._answer(asked, reply, request)

    async def count_tokens(self, request: HttpRequest) -> Response:
        """Return how many tokens the prompt of messages has, as Anthropic's API does."""
        asked = await self._body(request, partial(parse_count, defaults=self._defaults))
        with client_errors(asked.names):
            count = await asyncio.to_thread(self._templated().count_tokens, asked.request)
        return json_response(200, {"input_tokens": count})

    async def ollama(
        self, parse: Callable[[Any, tuple[RoleDefaults, ...]], Generate | Loading], request: HttpRequest
    ) -> Response:
        """Answer a request to chat or generate in Ollama's API."""
        began = time.monotonic()
        asked = await self._body(request, lambda body: parse(body, self._defaults))
        is_chat = parse is parse_ollama_chat
        if isinstance(asked, Loading):
            body = OllamaReply(asked.model, is_chat=is_chat, began=began).loaded()
            return Response(line(body), media_type=LINES) if asked.stream else json_response(200, body)
        logprobs = asked.request.params.top_logprobs is not None
        reply = OllamaReply(asked.model, is_chat=is_chat, logprobs=logprobs, began=began)
        return await self._answer(asked, reply, request)

    async def ollama_embed(self, request: HttpRequest) -> Response:
        began = time.monotonic()
        asked = await self._body(request, parse_ollama_embed)
        return await embed(self._engine, asked, request, partial(embed_body, began=began))

    async def ollama_embeddings(self, request: HttpRequest) -> Response:
        asked = await self._body(request, parse_ollama_embeddings)
        return await embed(self._engine, asked, request, embeddings_body)

    async def complete(self, request: HttpRequest) -> Response:
        asked = await self._body(request, partial(parse_completion, defaults=self._defaults))
        client = _client(request)
        asked = replace(asked, requests=tuple(replace(each, client=client) for each in asked.requests))
        id_, now, usage = f"cmpl-{uuid.uuid4().hex}", int(time.time()), asked.options.usage
        reply = TextReply(id_, now, asked.model, self._fingerprint, usage)
        headers = self._emulated(asked.features)
        if not asked.stream:
            response = await complete_all(self._model, asked, reply, request)
            response.headers.update(headers)
            return response
        echoes, prompts = echoes_of(self._model, asked), Prompts(self._model, asked.requests, request)
        if not await prompts.start():
            return Response(status_code=CLIENT_LEFT)
        events = stream_all(self._model, prompts, asked, reply, echoes)
        return await _streamed(events, prompts.constraint, headers, request)

    async def apply_template(self, request: HttpRequest) -> Response:
        """Return the prompt that the chat template makes of messages, as llama.cpp's server does."""
        asked = await self._body(request, partial(parse_chat, defaults=self._defaults))
        text = await asyncio.to_thread(self._templated().apply_template, asked.request)
        return json_response(200, {"prompt": text})

    def _templated(self) -> Templated:
        if not isinstance(self._engine, Templated):
            raise RequestError("this model has no chat template", param="model", code="unsupported_model")
        return self._engine

    async def embed(self, request: HttpRequest) -> Response:
        return await embed(self._engine, await self._body(request, parse_embeddings), request)

    async def rerank(self, request: HttpRequest) -> Response:
        asked = await self._body(request, parse_rerank)
        return await rerank(self._model, self._yes_no, asked, _client(request), request)

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

    def _emulated(self, features: tuple[str, ...]) -> dict[str, str]:
        """Return the header that names the features of a request that tourkit serves itself on this stack."""
        emulated = [name for name in features if name in self._engine.info.emulated]
        return {"x-tourkit-emulated": ", ".join(emulated)} if emulated else {}

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


def _client(request: HttpRequest) -> str:
    """Return the digest of the client that the gateway names."""
    return request.headers.get(CLIENT_HEADER, "")


async def _streamed(
    events: AsyncIterator[bytes], constraint: Enforced, headers: dict[str, str], request: HttpRequest
) -> Response:
    """Return a stream of events as soon as the first one is there.

    If the worker dies before that, the gateway has sent no byte, so it can ask again. `x-accel-buffering` tells a proxy
    in front to pass each event on at once.
    """
    first = await anext(events, None)
    if first is None:
        return Response(status_code=CLIENT_LEFT)
    headers |= {"cache-control": "no-cache", "x-accel-buffering": "no", "x-tourkit-constraint": constraint.level}
    kind = dialect_of(request.url.path).stream_type
    return StreamingResponse(_after(first, events), media_type=kind, headers=headers)


async def _after(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield an event and those that come after it."""
    yield first
    async for event in events:
        yield event
