"""Our API in front of vLLM's: an ASGI middleware inside vLLM's own server process, so that no hop is added.

Requests are read by wire.py as for every other stack and said anew in vLLM's words. A whole answer is read and written
anew; the events of a stream pass as they are but for the model's name, unless there is more to change in them.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tourkit import offline
from tourkit.backends import vllm
from tourkit.backends.base import LoadSpec
from tourkit.engine.types import Enforced, EngineInfo, EngineStats, Finish, Request, TokenLogprob
from tourkit.errors import EngineDead, EngineError, QueueFull, RequestError, TourkitError
from tourkit.server.replies import ChatReply, Choice, TextReply, error_body, usage
from tourkit.server.respond import error_response, json_response
from tourkit.server.settle import about, settle, settle_all
from tourkit.server.wire import Generate, parse_chat, parse_completion, parse_detokenize, parse_tokenize
from tourkit.server.worker import SECRET_HEADER

_MAX_WAITING = 256  # sequences beyond the slots, as in the engine of the other stacks
_TOKEN = "token_id:"  # how vLLM writes a token when asked for ids
_METRIC = re.compile(r"^vllm:(\w+?)(?:_total)?(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_METRICS = {  # vLLM's names → those of EngineStats
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "prompt_tokens": "prompt_tokens",
    "prefix_cache_hits": "cached_tokens",
    "generation_tokens": "generated_tokens",
    "spec_decode_num_draft_tokens": "drafted_tokens",
    "spec_decode_num_accepted_tokens": "accepted_tokens",
    "num_preemptions": "preemptions",
}


@dataclass(frozen=True, slots=True)
class Served:
    """What the front stands before."""

    load: LoadSpec
    texts: vllm.Texts
    secret: str


class Front:
    """The middleware. vLLM makes it itself, by its name, so what it needs waits on the class."""

    served: ClassVar[Served]

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._load = self.served.load
        self._texts = self.served.texts
        self._sequences = 0  # asked for and not yet answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            response = await self._answer(HttpRequest(scope, receive), send)
        except TourkitError as exc:
            response = error_response(exc)
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, http: HttpRequest, send: Send) -> Response | None:
        """The answer, or None when it was streamed."""
        match http.url.path:
            case "/stats":
                return json_response(200, await self._stats(http))
            case "/health":
                status, _ = await self._call(http, "/health", None)
                return Response(status_code=status)
        if http.headers.get(SECRET_HEADER) != self.served.secret:
            raise RequestError("this is a worker: talk to the gateway", status=403)
        match http.url.path:
            case "/v1/chat/completions":
                asked = parse_chat(await _json(http))
                logprobs = asked.request.params.top_logprobs is not None
                chat = ChatReply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), asked.model, logprobs)
                return await self._generate(http, asked, chat, send)
            case "/v1/completions":
                asked = parse_completion(await _json(http))
                text = TextReply(f"cmpl-{uuid.uuid4().hex}", int(time.time()), asked.model)
                return await self._generate(http, asked, text, send)
            case "/v1/embeddings":
                raise RequestError(
                    "this model writes text and makes no embeddings: ask a model of the role embed",
                    param="model",
                    code="unsupported_model",
                )
            case "/tokenize":
                plain, special = parse_tokenize(await _json(http))
                tokens = self._texts.vocabulary.tokenize(plain, add_special=special, parse_special=False)
                return json_response(200, {"tokens": tokens, "count": len(tokens), "max_model_len": self._load.max_len})
            case "/detokenize":
                return json_response(200, {"prompt": self._texts.detokenize(parse_detokenize(await _json(http)))})
        raise RequestError(f"{http.method} {http.url.path}: no such route", status=404)

    async def _stats(self, http: HttpRequest) -> dict[str, Any]:
        _, text = await self._call(http, "/metrics", None)
        found: Counter[str] = Counter()
        for name, value in _METRIC.findall(text.decode()):
            if name in _METRICS:
                found[_METRICS[name]] += int(float(value))
        info = EngineInfo("vllm", self._load.max_len, self._load.slots, self._texts.vocabulary.n_vocab)
        refused = {"offline_refused": len(offline.attempts())}
        return asdict(info) | asdict(EngineStats(**found)) | refused

    # --- text -----------------------------------------------------------------------------------------------------

    async def _generate(
        self, http: HttpRequest, asked: Generate, reply: ChatReply | TextReply, send: Send
    ) -> Response | None:
        n = asked.request.n
        if self._sequences + n > self._load.slots + _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} sequences are waiting already: try again later")
        self._sequences += n
        try:
            if asked.stream:
                await self._stream(http, asked, reply, send)
                return None
            return await self._whole(http, asked, reply)
        finally:
            self._sequences -= n

    async def _body(self, request: Request) -> tuple[dict[str, Any], Enforced]:
        """The request in vLLM's words, and how far its grammar follows the constraint. Raises RequestError."""
        await asyncio.to_thread(self._texts.check, request)
        if request.constraint is None:
            return vllm.body(request, self._load.model, self._texts, None), Enforced()
        matcher = await asyncio.to_thread(self._texts.matcher, request.constraint, tight=request.tight)
        body = vllm.body(request, self._load.model, self._texts, matcher.grammar)
        return body, Enforced(matcher.level, matcher.dropped)

    async def _whole(self, http: HttpRequest, asked: Generate, reply: ChatReply | TextReply) -> Response:
        used: Counter[str] = Counter()
        body, enforced = await self._body(asked.request)

        async def ask(request: Request, body: dict[str, Any]) -> list[Choice]:
            status, raw = await self._call(http, http.url.path, body)
            if status != 200:
                raise self._error(request, status, raw)
            found = orjson.loads(raw)
            if not isinstance(found, dict):
                raise EngineError("vllm was cut short, as it is when the client hangs up")
            used.update(usage(found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]))
            return [self._choice(each, request) for each in found["choices"]]

        async def once_more(request: Request) -> Choice:
            return (await ask(request, (await self._body(request))[0]))[0]

        choices = await ask(asked.request, body)
        if asked.request.schema is None:
            return json_response(200, reply.completion(choices, dict(used)))
        settled = await settle_all(asked.request, asked.request.schema, choices, once_more)
        remark = about(enforced, settled or [])
        response = json_response(200, reply.completion(choices, dict(used)) | {"tourkit": remark})
        response.headers["x-tourkit-constraint"] = enforced.level
        return response

    def _choice(self, found: dict[str, Any], request: Request) -> Choice:
        text = found["message"]["content"] if "message" in found else found["text"]
        logprobs = found.get("logprobs") if request.params.top_logprobs is not None else None
        return Choice(self._texts.bared(text or ""), _finish(found), self._logprobs(logprobs, request))

    def _logprobs(self, found: dict[str, Any] | None, request: Request) -> tuple[TokenLogprob, ...] | None:
        """vLLM's log probabilities with the bytes of each token, without the token that ended the answer."""
        if found is None:
            return None
        top, vocabulary = request.params.top_logprobs or 0, self._texts.vocabulary
        rows = []
        for row in found["content"]:
            token = int(row["token"].removeprefix(_TOKEN))
            if token not in vocabulary.eog:
                likeliest = sorted(row["top_logprobs"], key=lambda each: -float(each["logprob"]))[:top]
                others = [(int(each["token"].removeprefix(_TOKEN)), each["logprob"]) for each in likeliest]
                pieces = tuple((vocabulary.piece(other), logprob) for other, logprob in others)
                rows.append(TokenLogprob(vocabulary.piece(token), row["logprob"], pieces))
        return tuple(rows)

    async def _stream(self, http: HttpRequest, asked: Generate, reply: ChatReply | TextReply, send: Send) -> None:
        body, enforced = await self._body(asked.request)
        body["stream"] = True
        if asked.include_usage:
            body["stream_options"] = {"include_usage": True}
        events = _Events(self, asked, reply, enforced, send)
        await self._app(_inner(http.scope, http.url.path, "POST"), _receiving(body, http.receive), events.take)
        if events.status != 200:
            raise self._error(asked.request, events.status, bytes(events.refusal))

    async def _call(self, http: HttpRequest, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        """Status and body of vLLM's own answer; `body` None to GET."""
        status, answer = 500, bytearray()

        async def take(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))

        scope = _inner(http.scope, path, "GET" if body is None else "POST")
        await self._app(scope, _receiving(body, http.receive), take)
        return status, bytes(answer)

    def _error(self, request: Request, status: int, raw: bytes) -> TourkitError:
        """vLLM's refusal as an error of ours."""
        try:
            found = orjson.loads(raw)["error"]
            message, param = str(found["message"]), found.get("param")
        except (ValueError, LookupError, TypeError):
            message, param = raw.decode(errors="replace")[:300] or f"vllm answered {status}", None
        if status >= 500:
            return EngineDead(message) if status == 503 else EngineError(f"vllm: {message}")
        if "min_p and logit_bias" in message:
            param = "min_p" if request.params.min_p else "logit_bias"
        return RequestError(f"vllm: {message}", param=param, status=status)


class _Events:
    """The way of vLLM's server-sent events to the client. A refusal is kept for the caller."""

    def __init__(
        self, front: Front, asked: Generate, reply: ChatReply | TextReply, enforced: Enforced, send: Send
    ) -> None:
        self.status = 500
        self.refusal = bytearray()
        self._front = front
        self._asked = asked
        self._reply = reply
        self._enforced = enforced
        self._send = send
        self._rest = b""
        self._named, self._name = (b'"model":' + orjson.dumps(name) for name in (front.served.load.model, asked.model))
        n = asked.request.n
        self._texts, self._finishes = [""] * n, [Finish.STOP] * n
        self._schema = asked.request.schema
        # What has to be read and not only passed on.
        logprobs = asked.request.params.top_logprobs is not None
        self._reads = logprobs or self._schema is not None or front.served.texts.vocabulary.starts_with_space

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 200:
                level = self._enforced.level.encode()
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-tourkit-constraint", level),
                ]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        elif self.status != 200:
            self.refusal.extend(message.get("body", b""))
        else:
            *events, self._rest = (self._rest + message.get("body", b"")).split(b"\n\n")
            block = b"".join([await self._event(event) for event in events if event])
            more = message.get("more_body", False)
            if block or not more:
                await self._send({"type": "http.response.body", "body": block, "more_body": more})

    async def _event(self, event: bytes) -> bytes:
        if event == b"data: [DONE]":
            return await self._closing() + event + b"\n\n"
        # Inside a text a quotation mark has a backslash before it, so these are keys.
        if self._reads or any(key in event for key in (b'"usage":{', b'"error":{', b'"finish_reason":"abort"')):
            try:
                return self._read(orjson.loads(event.removeprefix(b"data: ")))
            except TourkitError as exc:
                return _event(error_body(exc)[1])
        return event.replace(self._named, self._name, 1) + b"\n\n"

    def _read(self, event: dict[str, Any]) -> bytes:
        if "error" in event:
            raise EngineError(f"vllm: {event['error'].get('message')}")
        event["model"] = self._asked.model
        if event.get("usage"):
            event["usage"] = usage(event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
        for choice in event["choices"]:
            index, holder = choice["index"], choice.get("delta", choice)
            key = "content" if "delta" in choice else "text"
            if holder.get(key):
                if not self._texts[index]:
                    holder[key] = self._front.served.texts.bared(holder[key])
                self._texts[index] += holder[key]
            if choice.get("finish_reason"):
                self._finishes[index] = _finish(choice)
            if choice.get("logprobs") and isinstance(self._reply, ChatReply):
                rows = self._front._logprobs(choice["logprobs"], self._asked.request)
                choice["logprobs"] = self._reply.shown_logprobs(rows or ())
        return _event(event)

    async def _closing(self) -> bytes:
        """What is said of a structured answer once it is whole."""
        if self._schema is None:
            return b""
        whole = [Choice(*each, None) for each in zip(self._texts, self._finishes, strict=True)]
        settled = [await asyncio.to_thread(settle, self._schema, each, mend=False) for each in whole]
        if self._enforced.level == "strict" and all(each.valid for each in settled):
            return b""
        return _event(self._reply.remark(about(self._enforced, settled)))


def _finish(choice: dict[str, Any]) -> Finish:
    """Raises EngineDead for an answer that was cut off because vLLM is ending, EngineError for one that failed."""
    try:
        finish = Finish(choice["finish_reason"])
    except ValueError:
        return Finish.STOP
    if finish is Finish.ABORT:
        raise EngineDead("the server is shutting down")
    if finish is Finish.ERROR:
        raise EngineError("vllm: generation failed")
    return finish


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


async def _json(http: HttpRequest) -> Any:
    try:
        return orjson.loads(await http.body())
    except orjson.JSONDecodeError as exc:
        raise RequestError(f"the body is not JSON: {exc}", code="invalid_json") from exc


def _inner(scope: Scope, path: str, method: str) -> Scope:
    """A scope of its own for vLLM's app, which writes into it."""
    headers = [(b"content-type", b"application/json")]
    return {**scope, "path": path, "raw_path": path.encode(), "query_string": b"", "method": method, "headers": headers}


def _receiving(body: dict[str, Any] | None, receive: Receive) -> Receive:
    """First this body, then what the client does, which is to hang up."""
    left = [orjson.dumps(body) if body is not None else b""]

    async def receiving() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return receiving
