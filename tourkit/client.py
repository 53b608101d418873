"""A client for a tourkit server, or any server with OpenAI's chat API. One file, standard library only.

It imports nothing of tourkit, so a copied template can include it. It uses http.client, which does not read
HTTP_PROXY and similar variables: requests go only to the given URL, and no redirect is followed.
"""

import asyncio
import contextlib
import email.utils
import http.client
import json
import math
import os
import random
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MODEL = "tool"
BUSY = (429, 503)  # a full queue, or a model that is still loading: try again
PATIENCE = 60.0  # seconds spent waiting for a busy server before its answer becomes an error
SHORTEST_WAIT = 0.05  # seconds; so that "Retry-After: 0" makes no tight loop
LONGEST_WAIT = 20.0  # seconds between two tries
MOST_THREADS = 256  # requests at once of an AsyncClient; more of them wait

_CHAT = "/v1/chat/completions"

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]


class ClientError(Exception):
    """A request that got no usable answer. The message is one line and names the fix if there is one.

    `status`: the HTTP status, None if no answer came. `param`: the request field that the server refused. `code`:
    the server's machine-readable reason. If the model was cut off, `finish_reason` says why and `text` holds what
    it wrote.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        finish_reason: str | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.finish_reason = finish_reason
        self.text = text


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. `arguments`: as parsed JSON."""

    id: str
    name: str
    arguments: dict[str, Any]

    def result(self, content: Any) -> dict[str, Any]:
        """Return the message that gives the model the result of this call. What is no string is sent as JSON."""
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return {"role": "tool", "tool_call_id": self.id, "content": text}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `usage`: the tokens of the whole call, which several replies may share.

    `reasoning`: what the model thought before the answer, "" if it did not think or the server does not show it.
    `tool_calls`: the tools that the model wants to call, in order.
    """

    text: str
    finish_reason: str | None
    model: str
    usage: dict[str, Any] = field(default_factory=dict)
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to send it back with the results of its calls."""
        said: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            said["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in self.tool_calls
            ]
        return said


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document of `rerank`. `index`: its place in the request. `score`: higher is better."""

    index: int
    score: float
    document: str


@dataclass(slots=True)
class _Written:
    """What a stream has brought of one answer so far. `calls`: by their index, with the text of their arguments."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None

    def take(self, choice: Mapping[str, Any]) -> str:
        """Take one choice of an event and return its new text."""
        delta = choice.get("delta") or {}
        piece = str(delta.get("content") or "")
        self.text += piece
        self.reasoning += _thinking(delta)
        for part in delta.get("tool_calls") or ():
            call = self.calls.setdefault(int(part.get("index", 0)), {"id": "", "name": "", "arguments": ""})
            function = part.get("function") or {}
            for key, said in (("id", part.get("id")), ("name", function.get("name"))):
                call[key] = call[key] or str(said or "")
            call["arguments"] += function.get("arguments") or ""
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return piece

    def reply(self, model: str, usage: dict[str, Any]) -> Reply:
        """Return the whole answer. Raises ClientError if the arguments of a call are no JSON object."""
        calls = [
            _tool_call({"id": call["id"], "function": call}, self.finish_reason)
            for _, call in sorted(self.calls.items())
        ]
        return Reply(self.text, self.finish_reason, model, usage, self.reasoning, tuple(calls))


class Stream(Iterator[str]):
    """The pieces of one answer, as they are made. A stream is left by `close` or by dropping it.

    `reply`: the whole answer with its calls of tools, once all pieces were read; None before. Its `usage` is empty
    unless the request has `stream_options={"include_usage": True}`.
    """

    def __init__(self, pieces: Generator[str, None, Reply]) -> None:
        self._pieces = pieces
        self.reply: Reply | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.reply = self.reply or end.value
            raise

    def close(self) -> None:
        """Leave the stream: the connection closes, and the server ends the answer. Idempotent."""
        self._pieces.close()


class AsyncStream(AsyncIterator[str]):
    """A Stream for asyncio. `reply`: as there."""

    def __init__(self, pieces: AsyncGenerator[str | Reply, None]) -> None:
        """`pieces`: the whole answer is the last of them."""
        self._pieces = pieces
        self.reply: Reply | None = None

    async def __anext__(self) -> str:
        found = await anext(self._pieces)
        if isinstance(found, str):
            return found
        self.reply = found
        await self._pieces.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leave the stream: the connection closes, and the server ends the answer. Idempotent."""
        await self._pieces.aclose()


class Response(Protocol):
    """What the client reads of an answer: the part of http.client.HTTPResponse that it uses."""

    status: int
    will_close: bool
    headers: Any  # `get` of it gives a header or None

    def read(self) -> bytes: ...

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Connection(Protocol):
    """What the client needs of a connection: the part of http.client.HTTPConnection that it uses.

    `timeout`: seconds without a byte. `sock`: None if it is closed, else what has `settimeout` and `shutdown`.
    """

    timeout: float | None
    sock: Any

    def request(self, method: str, url: str, body: Any = None, headers: Any = ...) -> None: ...

    def getresponse(self) -> Any: ...

    def close(self) -> None: ...


class Transport(Protocol):
    """Where requests go: another server than the one at a URL, for example a model in this process.

    `name`: for messages. Clients share it: `clone` is called for each further client, and `close` for each one's end.
    """

    name: str

    def connect(self, timeout: float) -> Connection: ...

    def clone(self) -> "Transport": ...

    def close(self) -> None: ...


class Client:
    """A client of one server. Many threads may use it at once, each on its own kept-alive connection.

    `url`: default $TOURKIT_URL, then http://127.0.0.1:8000. `api_key`: default $TOURKIT_API_KEY. `model`: a role or a
    model id, default "tool". `timeout`: seconds without a byte from the server. `patience`: seconds spent waiting
    while the server is busy. `ends`: the deadline of `sample`, as a time of time.monotonic(); None if there is none.
    `transport`: where requests go instead of `url`.

    Every method that asks a model takes `thinking`: True or False for a model that can think before it answers or not,
    None for the server's default. It goes to the chat template as `enable_thinking`, which tourkit, vLLM and
    llama-server understand. A model that cannot think ignores it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600,
        patience: float = PATIENCE,
        ends: float | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._transport = transport
        self.url = (url or os.environ.get("TOURKIT_URL") or DEFAULT_URL).rstrip("/")
        self.model = model  # None: the caller chose none, so a batch may use the template's own role
        self.timeout = timeout
        self.patience = patience
        self.ends = ends
        self._api_key = api_key or os.environ.get("TOURKIT_API_KEY") or ""
        self._tls, self._netloc, self._prefix = (False, "", "") if transport is not None else _parse_url(self.url)
        if transport is not None:
            self.url = transport.name
        self._headers = _headers(self._api_key)
        self._gate = threading.Lock()
        self._idle: list[Connection] = []  # kept-alive connections that no thread is using
        self._live: set[Connection] = set()  # connections in use
        self._closed = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def clone(self, *, model: str | None = None) -> "Client":
        """Return a client with the same settings (or another `model`) and its own connections."""
        transport = None if self._transport is None else self._transport.clone()
        return Client(**self._arguments() | {"model": model or self.model, "transport": transport})

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make another client like this one in another process. The key is among them.

        Raises ClientError if the model is in this process.
        """
        if self._transport is not None:
            raise ClientError(f"{self.url}: another process cannot use it: start `tourkit serve` and set $TOURKIT_URL")
        return self._arguments()

    def _arguments(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "model": self.model,
            "api_key": self._api_key,
            "timeout": self.timeout,
            "patience": self.patience,
            "ends": self.ends,
        }

    def close(self) -> None:
        """Close all connections. Running requests of other threads, and later requests, raise ClientError."""
        with self._gate:
            was_closed, self._closed = self._closed, True
            idle, live = list(self._idle), list(self._live)
            self._idle.clear()
        for connection in idle:
            connection.close()
        for connection in live:
            _wake(connection)
        if self._transport is not None and not was_closed:
            self._transport.close()

    @property
    def is_closed(self) -> bool:
        return self._closed

    def models(self) -> list[str]:
        """Return the server's roles and model ids. Raises ClientError if no server answers."""
        connection = self._connection()
        try:
            connection.request("GET", f"{self._prefix}/v1/models", headers=self._headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise _error_of(data, response.status)
            return [str(model["id"]) for model in json.loads(data)["data"]]
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ClientError(f"{self.url}/v1/models returns no list of models: is it a tourkit server?") from error
        finally:
            self._drop(connection)

    def health(self) -> dict[str, Any]:
        """Return the server's report of itself; {} if it has none. tourkit reports whether it is `offline`.

        Raises ClientError if no server answers.
        """
        connection = self._connection()
        try:
            connection.request("GET", f"{self._prefix}/health", headers=self._headers)
            said = json.loads(connection.getresponse().read())
            return said if isinstance(said, dict) else {}
        except (ValueError, RecursionError):
            return {}
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error
        finally:
            self._drop(connection)

    def chat(self, messages: Messages, *, model: str | None = None, **params: Any) -> Reply:
        """Return one answer to `messages`: a list of role/content objects, or a string for one user message.

        Parameters that are None are left out. The others go to the server unchanged. With `tools`, a list of functions
        in OpenAI's format, the answer may have `tool_calls`. To go on, add `reply.message` and `call.result(…)` of each
        call to the messages and ask again. Raises ClientError.
        """
        replies = self._complete(_body(messages, model or self.model or DEFAULT_MODEL, params))
        return replies[0]

    def structured(
        self, messages: Messages, schema: Mapping[str, Any], *, model: str | None = None, **params: Any
    ) -> Any:
        """Return the parsed JSON of one answer under a JSON Schema.

        Raises ClientError, with `finish_reason` and `text`, if the answer was cut off before its JSON was complete.
        """
        reply = self.chat(messages, model=model, response_format=_json_schema(schema), **params)
        return parse_json(reply)

    def sample(
        self,
        messages: Messages,
        n: int,
        *,
        schema: Mapping[str, Any] | None = None,
        model: str | None = None,
        **params: Any,
    ) -> list[Reply]:
        """Return `n` answers to one prompt from one call: the server reads the prompt once for all of them.

        If the server returns fewer answers, it is asked again for the rest. If the client has a deadline, the result
        has only the answers that are whole by then, maybe none. Raises ClientError.
        """
        if schema is not None:
            params["response_format"] = _json_schema(schema)
        seed = params.pop("seed", None)
        replies: list[Reply] = []
        while len(replies) < n and not self._is_late():  # it ends: a call returns at least one answer or raises
            # Each new call needs another seed: the same seed would return the same answers.
            params["seed"] = None if seed is None else seed + len(replies)
            body = _body(messages, model or self.model or DEFAULT_MODEL, {**params, "n": n - len(replies)})
            replies.extend(self._complete(body) if self.ends is None else self._complete_by_deadline(body))
        return replies[:n]

    def choice(self, messages: Messages, options: Sequence[str], *, model: str | None = None, **params: Any) -> str:
        """Return the one of `options` that the model answers with; it can answer with nothing else.

        This is an extra of tourkit. Raises ClientError, also if the answer was cut off.
        """
        reply = self.chat(messages, model=model, choice=list(options), **params)
        if reply.text not in options:
            raise ClientError(
                f"the answer is none of the options (finish_reason {reply.finish_reason}): raise max_tokens",
                finish_reason=reply.finish_reason,
                text=reply.text,
            )
        return reply.text

    def embed(self, texts: str | Sequence[str], *, model: str = "embed", **params: Any) -> list[list[float]]:
        """Return a vector for each text, in the same order. A string is one text. Raises ClientError."""
        given = [texts] if isinstance(texts, str) else list(texts)
        if not given:
            return []
        data = self._post("/v1/embeddings", {"model": model, "input": given, **_given(params)})
        try:
            items = sorted(json.loads(data)["data"], key=lambda item: int(item.get("index", 0)))
            vectors = [[float(number) for number in item["embedding"]] for item in items]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ClientError(f"{self.url} returned no embeddings: {_excerpt(data)}") from error
        if len(vectors) != len(given):
            raise ClientError(f"{self.url} returned {len(vectors)} embeddings for {len(given)} texts")
        return vectors

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, model: str = "rerank", **params: Any
    ) -> list[Ranked]:
        """Return the documents with their scores, the best first; only the best `top_n` if it is given.

        It needs a server with Jina's or Cohere's route for this. Raises ClientError.
        """
        body = {"model": model, "query": query, "documents": list(documents), **_given({"top_n": top_n, **params})}
        data = self._post("/v1/rerank", body)
        try:
            results = [(int(each["index"]), float(each["relevance_score"])) for each in json.loads(data)["results"]]
            ranked = [Ranked(index, score, documents[index]) for index, score in results]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise ClientError(f"{self.url} returned no ranking: {_excerpt(data)}") from error
        return sorted(ranked, key=lambda each: -each.score)

    def stream(self, messages: Messages, *, model: str | None = None, **params: Any) -> Stream:
        """Return the pieces of the answer as they are made. The request is sent when the first piece is read.

        After the last piece, `reply` of the stream has the whole answer, with its `tool_calls`. If the caller stops
        early, the connection closes and the server's slot becomes free. Reading raises ClientError, also if the stream
        ends early.
        """
        return Stream(self._pieces(_body(messages, model or self.model or DEFAULT_MODEL, {**params, "stream": True})))

    def _pieces(self, body: dict[str, Any]) -> Generator[str, None, Reply]:
        """Yield the pieces of an answer and return the whole answer."""
        connection, response = self._open(body)
        whole = False
        written, named, usage = _Written(), "", dict[str, Any]()
        try:
            for event in _events(response, self.url):
                if event.get("error") is not None:
                    raise _error_of(event, None)
                named, usage = str(event.get("model") or named), event.get("usage") or usage
                for choice in event.get("choices") or ():
                    if piece := written.take(choice):
                        yield piece
            response.read()
            whole = True
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error
        finally:
            self._give_back(connection, response, whole=whole)
        return written.reply(named, usage)

    def _complete(self, body: dict[str, Any]) -> list[Reply]:
        return _replies(self._post(_CHAT, body), self.url)

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        """Return the whole answer to a request."""
        connection, response = self._open(body, path)
        whole = False
        try:
            data = response.read()
            whole = True
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error
        finally:
            self._give_back(connection, response, whole=whole)
        return data

    def _is_late(self) -> bool:
        return self.ends is not None and time.monotonic() >= self.ends

    def _complete_by_deadline(self, body: dict[str, Any]) -> list[Reply]:
        """Return the answers that are whole at the deadline. They are streamed, so that none waits for the others."""
        whole: dict[int, Reply] = {}  # by the index of the choice
        try:
            connection, response = self._open({**body, "stream": True}, by_deadline=True)
            read_to_end = False
            try:
                for index, reply in self._whole_answers(connection, response):
                    whole[index] = reply
                read_to_end = not self._is_late()
            finally:
                self._give_back(connection, response, whole=read_to_end)
        except ClientError:
            if not self._is_late():
                raise
        return [whole[index] for index in sorted(whole)]

    def _whole_answers(self, connection: Connection, response: Response) -> Iterator[tuple[int, Reply]]:
        """Yield each answer of a stream when it ends, with its index. Stop at the deadline."""
        answers: dict[int, _Written] = {}
        try:
            for event in _events(response, self.url):
                if event.get("error") is not None:
                    raise _error_of(event, None)
                for choice in event.get("choices") or ():
                    index = int(choice.get("index", 0))
                    written = answers.setdefault(index, _Written())
                    written.take(choice)
                    if choice.get("finish_reason"):
                        yield index, written.reply(str(event.get("model") or ""), {})
                if self._is_late():
                    return
                if connection.sock is not None:  # else the server closes it after this answer
                    connection.sock.settimeout(self._patience_left(by_deadline=True))
            response.read()
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error

    def _patience_left(self, *, by_deadline: bool) -> float:
        """Return the seconds to wait for the next byte."""
        if not by_deadline or self.ends is None:
            return self.timeout
        return min(self.timeout, max(SHORTEST_WAIT, self.ends - time.monotonic()))

    def _open(
        self, body: dict[str, Any], path: str = _CHAT, *, by_deadline: bool = False
    ) -> tuple[Connection, Response]:
        """Send `body` and return when the status is 200. Ask a busy server again for up to `patience` seconds.

        `by_deadline`: give up at the client's deadline.
        """
        data = json.dumps(body, allow_nan=False).encode()
        waited = 0.0
        while True:
            connection, response = self._send(path, data, by_deadline)
            if response.status == 200:
                return connection, response
            try:
                text = response.read()
            except (http.client.HTTPException, OSError) as error:
                self._give_back(connection, response, whole=False)
                raise self._trouble(error) from error
            self._give_back(connection, response, whole=True)
            wait = _wait(response.headers.get("Retry-After"))
            if response.status not in BUSY or waited + wait > self.patience:
                raise _error_of(text, response.status)
            time.sleep(min(wait, self._patience_left(by_deadline=by_deadline)))
            waited += wait

    def _send(self, path: str, data: bytes, by_deadline: bool) -> tuple[Connection, Response]:
        """Send one request. If the server has closed a kept-alive connection, try once more on a new one."""
        connection, kept = self._take()
        try:
            return connection, self._exchange(connection, path, data, by_deadline)
        except (http.client.HTTPException, OSError) as error:
            self._drop(connection)
            stale = isinstance(error, (http.client.BadStatusLine, ConnectionError))
            if not (kept and stale) or self._closed:
                raise self._trouble(error) from error
        connection = self._connection()
        try:
            return connection, self._exchange(connection, path, data, by_deadline)
        except (http.client.HTTPException, OSError) as error:
            self._drop(connection)
            raise self._trouble(error) from error

    def _exchange(self, connection: Connection, path: str, data: bytes, by_deadline: bool) -> Response:
        connection.timeout = self._patience_left(by_deadline=by_deadline)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request("POST", f"{self._prefix}{path}", body=data, headers=self._headers)
        response: Response = connection.getresponse()
        return response

    def _take(self) -> tuple[Connection, bool]:
        """Return a connection for this thread alone, and whether it was kept alive from an earlier request."""
        with self._gate:
            if self._idle:
                connection = self._idle.pop()
                self._live.add(connection)
                return connection, True
        return self._connection(), False

    def _connection(self) -> Connection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection: Connection
        if self._transport is not None:
            connection = self._transport.connect(self.timeout)
        else:
            connection = kind(self._netloc, timeout=self.timeout)
        with self._gate:
            if self._closed:
                raise ClientError(f"the client of {self.url} is closed: make a new one")
            self._live.add(connection)
        return connection

    def _give_back(
        self,
        connection: Connection,
        response: Response,
        *,
        whole: bool,
    ) -> None:
        """Keep a connection whose answer was read to the end. Close any other connection."""
        if not whole or response.will_close:
            response.close()
            self._drop(connection)
            return
        with self._gate:
            self._live.discard(connection)
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: Connection) -> None:
        with self._gate:
            self._live.discard(connection)
        connection.close()

    def _trouble(self, error: Exception) -> ClientError:
        """Return the error for a failed connection, with the fix."""
        if self._closed:
            return ClientError(f"the request to {self.url} was cancelled: its client was closed")
        if isinstance(error, ConnectionRefusedError):
            return ClientError(f"no tourkit server at {self.url}: start `tourkit serve --bundle DIR --offline`")
        if isinstance(error, TimeoutError):
            return ClientError(
                f"no answer from {self.url} in {self.timeout:g} s: raise the timeout or ask for fewer tokens"
            )
        if isinstance(error, (http.client.HTTPException, ConnectionError)):
            return ClientError(f"{self.url} ended its answer early ({error!r}): look at the server's log")
        return ClientError(f"cannot reach {self.url} ({error}): check the address")


class AsyncClient:
    """A Client for asyncio: the same methods, with the same arguments, results and errors.

    Each request runs in a thread, at most 256 at once. If the task that waits for a request is cancelled, the server
    sees a client that hangs up. `client`: its settings are used, and it is closed with this one.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._idle: list[Client] = []  # a client for each request, because closing one ends its request
        self._threads = ThreadPoolExecutor(MOST_THREADS, "tourkit-client")

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Later requests raise ClientError. Idempotent."""
        idle, self._idle = self._idle, []
        for each in (*idle, self._client):
            await asyncio.to_thread(each.close)  # a model in this process takes a moment
        self._threads.shutdown(wait=False)

    async def models(self) -> list[str]:
        return await self._run(lambda client: client.models())

    async def health(self) -> dict[str, Any]:
        return await self._run(lambda client: client.health())

    async def chat(self, messages: Messages, *, model: str | None = None, **params: Any) -> Reply:
        return await self._run(lambda client: client.chat(messages, model=model, **params))

    async def structured(
        self, messages: Messages, schema: Mapping[str, Any], *, model: str | None = None, **params: Any
    ) -> Any:
        return await self._run(lambda client: client.structured(messages, schema, model=model, **params))

    async def sample(
        self,
        messages: Messages,
        n: int,
        *,
        schema: Mapping[str, Any] | None = None,
        model: str | None = None,
        **params: Any,
    ) -> list[Reply]:
        return await self._run(lambda client: client.sample(messages, n, schema=schema, model=model, **params))

    async def choice(
        self, messages: Messages, options: Sequence[str], *, model: str | None = None, **params: Any
    ) -> str:
        return await self._run(lambda client: client.choice(messages, options, model=model, **params))

    async def embed(self, texts: str | Sequence[str], *, model: str = "embed", **params: Any) -> list[list[float]]:
        return await self._run(lambda client: client.embed(texts, model=model, **params))

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, model: str = "rerank", **params: Any
    ) -> list[Ranked]:
        return await self._run(lambda client: client.rerank(query, documents, top_n=top_n, model=model, **params))

    def stream(self, messages: Messages, *, model: str | None = None, **params: Any) -> AsyncStream:
        """Return the pieces of the answer as they are made: `async for piece in client.stream(…)`."""
        return AsyncStream(self._pieces(lambda client: client.stream(messages, model=model, **params)))

    async def _pieces(self, ask: Callable[[Client], Stream]) -> AsyncGenerator[str | Reply, None]:
        """Yield the pieces of an answer, then the whole answer."""
        client = self._take()
        is_whole = False
        try:
            stream = ask(client)
            while (piece := await self._in_thread(lambda: next(stream, None))) is not None:
                yield piece
            is_whole = True
        finally:
            self._give_back(client, whole=is_whole)
        if stream.reply is not None:
            yield stream.reply

    async def _run(self, call: Callable[[Client], T]) -> T:
        client = self._take()
        is_whole = False
        try:
            found = await self._in_thread(lambda: call(client))
            is_whole = True
            return found
        except ClientError:
            is_whole = True
            raise
        finally:
            self._give_back(client, whole=is_whole)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _take(self) -> Client:
        if self._client.is_closed:
            raise ClientError(f"the client of {self._client.url} is closed: make a new one")
        return self._idle.pop() if self._idle else self._client.clone()

    def _give_back(self, client: Client, *, whole: bool) -> None:
        """Keep a client whose request has ended. Close any other one, which ends its request."""
        if whole and not self._client.is_closed:
            self._idle.append(client)
        else:
            client.close()


def parse_json(reply: Reply) -> Any:
    """Return the JSON in a reply. Raises ClientError with the reply's `finish_reason` and `text`."""
    try:
        return json.loads(reply.text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if reply.finish_reason == "length":
            message = (
                "the answer was cut off before its JSON was complete (finish_reason length): "
                "raise max_tokens, or limit the schema with maxLength and maxItems"
            )
        else:
            message = f"the answer is not JSON (finish_reason {reply.finish_reason}): {error}"
        raise ClientError(message, finish_reason=reply.finish_reason, text=reply.text) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_url(url: str) -> tuple[bool, str, str]:
    """Return whether to use TLS, host:port, and the path before /v1. The URL may end in /v1."""
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is not a number
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise ClientError(f"{url!r} is not a server address: write it like {DEFAULT_URL}")
    return parts.scheme == "https", parts.netloc, parts.path.rstrip("/").removesuffix("/v1")


def _headers(api_key: str) -> dict[str, str | bytes]:
    headers: dict[str, str | bytes] = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        if not api_key.isprintable():
            raise ClientError("the API key has characters that an HTTP header cannot hold: check $TOURKIT_API_KEY")
        headers["Authorization"] = f"Bearer {api_key}".encode()  # as text, http.client would take Latin-1 alone
    return headers


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def _body(messages: Messages, model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    given = _given(params)
    thinking = given.pop("thinking", None)
    if thinking is not None:
        given["chat_template_kwargs"] = {**given.get("chat_template_kwargs", {}), "enable_thinking": bool(thinking)}
    return {"model": model, "messages": turns, **given}


def _thinking(message: Mapping[str, Any]) -> str:
    """Return the text of the thinking in a message or in a delta. Servers have two names for it."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    name = str(schema.get("title") or "answer")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema), "strict": True}}


def _replies(data: bytes, url: str) -> list[Reply]:
    try:
        answer = json.loads(data)
        model, usage = str(answer.get("model") or ""), dict(answer.get("usage") or {})
        choices = sorted(answer["choices"], key=lambda choice: int(choice.get("index", 0)))
        replies = [
            Reply(
                str(m.get("content") or ""),
                c.get("finish_reason"),
                model,
                usage,
                _thinking(m),
                tuple(_tool_call(call, c.get("finish_reason")) for call in m.get("tool_calls") or ()),
            )
            for c in choices
            for m in [c["message"]]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClientError(f"{url} returned no chat completion: {_excerpt(data)}") from error
    if not replies:
        raise ClientError(f"{url} returned a chat completion without choices")
    return replies


def _tool_call(call: Mapping[str, Any], finish_reason: str | None) -> ToolCall:
    """Return a call of a message. Raises ClientError if its arguments are no JSON object."""
    function = call["function"]
    text = str(function.get("arguments") or "{}")
    try:
        arguments = json.loads(text, parse_constant=_no_constant)
        if not isinstance(arguments, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        fix = "raise max_tokens" if finish_reason == "length" else "ask again"
        message = f"the arguments of {function['name']} are not a JSON object ({error}): {fix}"
        raise ClientError(message, finish_reason=finish_reason, text=text) from error
    return ToolCall(str(call.get("id") or ""), str(function["name"]), arguments)


def _events(response: Response, url: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event until [DONE]."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ClientError(f"{url} sent an event that is not JSON: {_excerpt(data)}") from error
        if not isinstance(event, dict):
            raise ClientError(f"{url} sent an event that is not an object: {_excerpt(data)}")
        yield event
    raise ClientError(f"the stream from {url} ended early: look at the server's log")


def _wait(retry_after: str | None) -> float:
    """Return the seconds to wait from a Retry-After header (seconds or a date), plus a little random spread."""
    seconds = 1.0
    if retry_after is not None:
        try:
            seconds = float(retry_after)
        except ValueError:
            with contextlib.suppress(ValueError):
                seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    if math.isnan(seconds):
        seconds = 1.0
    return min(max(seconds, SHORTEST_WAIT), LONGEST_WAIT) * random.uniform(1.0, 1.25)


def _error_of(answer: bytes | dict[str, Any], status: int | None) -> ClientError:
    """Return the server's own message, from OpenAI's error envelope or from the raw answer."""
    body: Any = answer
    if isinstance(answer, bytes):
        try:
            body = json.loads(answer)
        except (ValueError, RecursionError):
            body = None
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and error.get("message"):
        param, code = error.get("param"), error.get("code")
        return ClientError(
            " ".join(str(error["message"]).split()),
            status=status,
            param=None if param is None else str(param),
            code=None if code is None else str(code),
        )
    said = error if isinstance(error, str) else _excerpt(answer if isinstance(answer, bytes) else b"")
    return ClientError(f"the server answered {status}: {said or 'no details'}", status=status)


def _excerpt(data: bytes) -> str:
    return " ".join(data[:200].decode("utf-8", "replace").split())


def _wake(connection: Connection) -> None:
    """Make a thread that waits on this connection read its end. That thread closes the connection."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):  # already gone
            sock.shutdown(socket.SHUT_RDWR)
