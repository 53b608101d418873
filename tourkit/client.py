"""A client for a tourkit server, or any server with OpenAI's chat API, in one file of standard library.

It imports nothing of tourkit, so that a copied template can carry it. It is built on http.client, which does
not read HTTP_PROXY and its kin: what it sends goes to the URL it was given and nowhere else, and no redirect
is followed.
"""

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MODEL = "tool"
BUSY = (429, 503)  # a full queue, a model that is still loading: worth asking again
PATIENCE = 60.0  # seconds spent waiting for a busy server before its answer becomes an error
SHORTEST_WAIT = 0.05  # seconds; so that "Retry-After: 0" is no tight loop
LONGEST_WAIT = 20.0  # seconds between two tries

Messages = str | Sequence[Mapping[str, Any]]


class ClientError(Exception):
    """A request that gave no usable answer; the message is one line and names the mend where there is one.

    `status` is the HTTP status (None: no answer came), `param` the request field the server refused, `code`
    its machine-readable reason. When the model was cut off, `finish_reason` says by what and `text` holds
    what it wrote.
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
class Reply:
    """One answer. `usage` counts the tokens of the whole call, which several replies may share."""

    text: str
    finish_reason: str | None
    model: str
    usage: dict[str, Any] = field(default_factory=dict)


class Client:
    """Talks to one server; many threads may use it at once, each on a kept-alive connection of its own.

    `url` falls back to $TOURKIT_URL, then http://127.0.0.1:8000; `api_key` to $TOURKIT_API_KEY; `model`, a
    role or a model id, to "tool"; `timeout` is seconds without a byte from the server, `patience` seconds spent waiting
    while it is busy.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600,
        patience: float = PATIENCE,
    ) -> None:
        self.url = (url or os.environ.get("TOURKIT_URL") or DEFAULT_URL).rstrip("/")
        self.model = model  # None: nobody chose one, so a batch may ask the template's own role
        self.timeout = timeout
        self.patience = patience
        self._api_key = api_key or os.environ.get("TOURKIT_API_KEY") or ""
        self._tls, self._netloc, self._prefix = _parse_url(self.url)
        self._headers = _headers(self._api_key)
        self._gate = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []  # kept-alive connections that no thread is using
        self._live: set[http.client.HTTPConnection] = set()  # those that one is
        self._closed = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def clone(self, *, model: str | None = None) -> "Client":
        """A client with the same settings (or another `model`) and connections of its own."""
        return Client(
            self.url,
            model=model or self.model,
            api_key=self._api_key,
            timeout=self.timeout,
            patience=self.patience,
        )

    def close(self) -> None:
        """Hang up; requests under way in other threads, and later ones, raise ClientError."""
        with self._gate:
            self._closed = True
            idle, live = list(self._idle), list(self._live)
            self._idle.clear()
        for connection in idle:
            connection.close()
        for connection in live:
            _wake(connection)

    def models(self) -> list[str]:
        """The roles and model ids the server has. Raises ClientError, so it tells whether a server is there."""
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
            raise ClientError(f"{self.url}/v1/models gives no list of models: is it a tourkit server?") from error
        finally:
            self._drop(connection)

    def chat(self, messages: Messages, *, model: str | None = None, **params: Any) -> Reply:
        """One answer to `messages` (a list of role/content objects, or a string for one user message).

        Parameters given as None are left out, the others go to the server as they are. Raises ClientError.
        """
        replies = self._complete(_body(messages, model or self.model or DEFAULT_MODEL, params))
        return replies[0]

    def structured(
        self, messages: Messages, schema: Mapping[str, Any], *, model: str | None = None, **params: Any
    ) -> Any:
        """The parsed JSON of one answer made under a JSON Schema.

        Raises ClientError, with `finish_reason` and `text`, when it was cut off before its JSON was whole.
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
        """`n` answers to one prompt, in one call: the server reads the prompt once for all of them.

        A server that gives fewer than it was asked for is asked again for the rest. Raises ClientError.
        """
        if schema is not None:
            params["response_format"] = _json_schema(schema)
        seed = params.pop("seed", None)
        replies: list[Reply] = []
        while len(replies) < n:  # ends: a call gives at least one answer or raises
            # The seed moves on with the answers in hand: the same seed again would give the same answers.
            params["seed"] = None if seed is None else seed + len(replies)
            body = _body(messages, model or self.model or DEFAULT_MODEL, {**params, "n": n - len(replies)})
            replies.extend(self._complete(body))
        return replies[:n]

    def stream(self, messages: Messages, *, model: str | None = None, **params: Any) -> Iterator[str]:
        """The answer in pieces as they are made. The request is sent when the first piece is asked for.

        Stopping early hangs up, which frees the server's slot. Raises ClientError, also when the stream
        breaks off.
        """
        body = _body(messages, model or self.model or DEFAULT_MODEL, {**params, "stream": True})
        connection, response = self._open(body)
        whole = False
        try:
            for event in _events(response, self.url):
                if event.get("error") is not None:
                    raise _error_of(event, None)
                for choice in event.get("choices") or ():
                    piece = (choice.get("delta") or {}).get("content")
                    if piece:
                        yield piece
            response.read()
            whole = True
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error
        finally:
            self._give_back(connection, response, whole=whole)

    def _complete(self, body: dict[str, Any]) -> list[Reply]:
        connection, response = self._open(body)
        whole = False
        try:
            data = response.read()
            whole = True
        except (http.client.HTTPException, OSError) as error:
            raise self._trouble(error) from error
        finally:
            self._give_back(connection, response, whole=whole)
        return _replies(data, self.url)

    def _open(self, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send `body` until the status is 200; a busy server is asked again for `patience` seconds."""
        data = json.dumps(body, allow_nan=False).encode()
        waited = 0.0
        while True:
            connection, response = self._send(data)
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
            time.sleep(wait)
            waited += wait

    def _send(self, data: bytes) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send one request; a kept-alive connection that the server has closed meanwhile is replaced once."""
        connection, kept = self._take()
        try:
            return connection, self._exchange(connection, data)
        except (http.client.HTTPException, OSError) as error:
            self._drop(connection)
            stale = isinstance(error, (http.client.BadStatusLine, ConnectionError))
            if not (kept and stale) or self._closed:
                raise self._trouble(error) from error
        connection = self._connection()
        try:
            return connection, self._exchange(connection, data)
        except (http.client.HTTPException, OSError) as error:
            self._drop(connection)
            raise self._trouble(error) from error

    def _exchange(self, connection: http.client.HTTPConnection, data: bytes) -> http.client.HTTPResponse:
        connection.request("POST", f"{self._prefix}/v1/chat/completions", body=data, headers=self._headers)
        return connection.getresponse()

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection for this thread alone, and whether it was kept alive from an earlier request."""
        with self._gate:
            if self._idle:
                connection = self._idle.pop()
                self._live.add(connection)
                return connection, True
        return self._connection(), False

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._netloc, timeout=self.timeout)
        with self._gate:
            if self._closed:
                raise ClientError(f"the client of {self.url} is closed: make a new one")
            self._live.add(connection)
        return connection

    def _give_back(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        *,
        whole: bool,
    ) -> None:
        """Keep a connection whose answer was read to the end; hang up any other."""
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

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._gate:
            self._live.discard(connection)
        connection.close()

    def _trouble(self, error: Exception) -> ClientError:
        """What went wrong between us and the server, with the mend."""
        if self._closed:
            return ClientError(f"the request to {self.url} was given up: its client was closed")
        if isinstance(error, ConnectionRefusedError):
            return ClientError(f"no tourkit server at {self.url}: start `tourkit serve --bundle DIR --offline`")
        if isinstance(error, TimeoutError):
            return ClientError(
                f"no answer from {self.url} in {self.timeout:g} s: raise the timeout or ask for fewer tokens"
            )
        if isinstance(error, (http.client.HTTPException, ConnectionError)):
            return ClientError(f"{self.url} broke off its answer ({error!r}): look at the server's log")
        return ClientError(f"cannot reach {self.url} ({error}): check the address")


def parse_json(reply: Reply) -> Any:
    """The JSON in a reply. Raises ClientError with the reply's `finish_reason` and `text`."""
    try:
        return json.loads(reply.text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if reply.finish_reason == "length":
            message = (
                "the answer was cut off before its JSON was whole (finish_reason length): "
                "raise max_tokens, or bound the schema with maxLength and maxItems"
            )
        else:
            message = f"the answer is not JSON (finish_reason {reply.finish_reason}): {error}"
        raise ClientError(message, finish_reason=reply.finish_reason, text=reply.text) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_url(url: str) -> tuple[bool, str, str]:
    """Whether to use TLS, host:port, and the path before /v1. A URL that ends in /v1 is taken as meant."""
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        good = False
    if not good or "@" in parts.netloc or parts.query or parts.fragment:
        raise ClientError(f"{url!r} is not a server address: write it like {DEFAULT_URL}")
    return parts.scheme == "https", parts.netloc, parts.path.rstrip("/").removesuffix("/v1")


def _headers(api_key: str) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ClientError("the API key holds characters a header cannot carry: check $TOURKIT_API_KEY")
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def _body(messages: Messages, model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return {"model": model, "messages": turns, **{k: v for k, v in params.items() if v is not None}}


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    name = str(schema.get("title") or "answer")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema), "strict": True}}


def _replies(data: bytes, url: str) -> list[Reply]:
    try:
        answer = json.loads(data)
        model, usage = str(answer.get("model") or ""), dict(answer.get("usage") or {})
        choices = sorted(answer["choices"], key=lambda choice: int(choice.get("index", 0)))
        replies = [Reply(str(c["message"].get("content") or ""), c.get("finish_reason"), model, usage) for c in choices]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClientError(f"{url} answered with something that is no chat completion: {_excerpt(data)}") from error
    if not replies:
        raise ClientError(f"{url} answered without a choice")
    return replies


def _events(response: http.client.HTTPResponse, url: str) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event until [DONE]."""
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
            raise ClientError(f"{url} sent an event that is no object: {_excerpt(data)}")
        yield event
    raise ClientError(f"the stream from {url} broke off before its end: look at the server's log")


def _wait(retry_after: str | None) -> float:
    """Seconds to wait, from a Retry-After header in seconds or as a date; a little more, for spread."""
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
    """The server's own words, from OpenAI's error envelope or from whatever it sent instead."""
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
    return ClientError(f"the server answered {status}: {said or 'nothing more'}", status=status)


def _excerpt(data: bytes) -> str:
    return " ".join(data[:200].decode("utf-8", "replace").split())


def _wake(connection: http.client.HTTPConnection) -> None:
    """Make a thread that waits on this connection read its end; that thread closes it."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):  # already gone
            sock.shutdown(socket.SHUT_RDWR)
