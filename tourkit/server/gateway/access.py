"""Who may send requests: the Host, the web page and the key of a request, and which client it comes from."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tourkit import net
from tourkit.errors import RequestError
from tourkit.server.api.replies import error_response

CLIENT = "tourkit.client"  # key of a request's scope: a digest that tells the clients apart
TRUSTED = "tourkit.trusted"  # key of a request's scope: whether it has a right key, or none is needed
_OPEN = frozenset({"/", "/health"})  # paths that need no key
_KEY_HEADERS = (b"x-api-key", b"api-key")
_FOREIGN_SITES = (b"cross-site", b"same-site")  # same-site: another port or host name of the same site
_EVERY_PAGE = "*"
_REMEMBERED = 1024  # values of Host, and clients
_SHOWN = 80  # characters of a header in a message


@dataclass(frozen=True, slots=True)
class AccessRules:
    """`keys`: one of them must be sent; none means that everybody may send requests.

    `hosts`: names of this server besides its addresses, localhost and the machine's name. `origins`: web pages that may
    send requests, as `https://host:port`, or `*` for every page.
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


OPEN_TO_ALL = AccessRules()


class Access:
    """An ASGI application in front of another one. It refuses requests that the rules do not allow.

    The other application finds the client under CLIENT and TRUSTED in the scope.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._keys = tuple(form for key in rules.keys for form in _forms(key))
        self._hosts = _own_names() | {host.lower().rstrip(".") for host in rules.hosts}
        self._origins = frozenset(origin.lower().rstrip("/").encode() for origin in rules.origins)
        self._salt = secrets.token_bytes(16)
        self._good_hosts: set[bytes] = set()  # values of Host that were found good
        self._digest = lru_cache(_REMEMBERED)(self._digest_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        page = headers.get(b"origin")
        if page is not None and self._is_listed(page):
            send = _with_cors(send, page)
        try:
            self._check_host(headers.get(b"host"))
            self._check_page(headers)
            is_question = page is not None and scope["method"] == "OPTIONS" and _ASKED_METHOD in headers
            if not is_question:
                self._check_key(headers, scope)
        except RequestError as exc:
            await error_response(exc)(scope, receive, send)
            return
        if is_question:
            await _answer_question(headers, send)
        else:
            await self._app(scope, receive, send)

    # --- Host: against names of other servers that lead here (DNS rebinding) ---------------------------------------

    def _check_host(self, host: bytes | None) -> None:
        """Raise RequestError for the name of another server. Programs may leave Host out; web pages cannot."""
        if host is None or host in self._good_hosts:
            return
        text = host.decode("latin-1").strip()
        name = _name_of(text)
        if not (net.is_address(name) or name in self._hosts):
            raise RequestError(
                f"Host {_shown(text)} is not a name of this server: start it with --allow-host {_shown(name)}",
                code="host_not_allowed",
                status=403,
            )
        if len(self._good_hosts) >= _REMEMBERED:
            self._good_hosts.clear()
        self._good_hosts.add(host)

    # --- Origin and Sec-Fetch-Site: against web pages ---------------------------------------------------------------

    def _check_page(self, headers: dict[bytes, bytes]) -> None:
        page = headers.get(b"origin")
        if page is None:
            if headers.get(b"sec-fetch-site", b"none").strip().lower() in _FOREIGN_SITES:
                raise _refused_page("of another site")
        elif not self._is_listed(page) and _authority(page) != headers.get(b"host", b"").strip().lower():
            raise _refused_page(f"from {_shown(page.decode('latin-1'))}")

    def _is_listed(self, page: bytes) -> bool:
        return bool(self._origins) and (_EVERY_PAGE.encode() in self._origins or page.lower() in self._origins)

    # --- the key ----------------------------------------------------------------------------------------------------

    def _check_key(self, headers: dict[bytes, bytes], scope: Scope) -> None:
        """Set CLIENT and TRUSTED. Raises RequestError if a key is needed and no right one is there."""
        given = _keys_in(headers)
        peer = scope.get("client")
        address = str(peer[0]) if peer else ""
        scope[TRUSTED] = not self._keys
        if self._keys:
            right = self._right_key(given)
            scope[TRUSTED] = right is not None
            if right is None and scope["path"] not in _OPEN:
                raise RequestError("the API key is missing or wrong", code="invalid_api_key", status=401)
            given = (right,) if right is not None else ()
        elif given and not _is_loopback(address):
            given = ()  # nobody checks these keys: with a new one for each request a client would get many turns
        scope[CLIENT] = self._digest(given[0] if given else b"", address)

    def _digest_of(self, key: bytes, address: str) -> str:
        return hashlib.blake2b(key + b"\0" + address.encode(), digest_size=8, key=self._salt).hexdigest()

    def _right_key(self, given: Iterable[bytes]) -> bytes | None:
        """Return the given key that is right; None if none is. The time does not depend on the keys' contents."""
        found = None
        for each in given:
            for key in self._keys:
                if hmac.compare_digest(each, key):
                    found = each
        return found


@lru_cache(maxsize=1024)
def _is_loopback(address: str) -> bool:
    return net.is_loopback(address)


def _forms(key: str) -> set[bytes]:
    """Return the bytes by which clients send a key: UTF-8, or Latin-1 as Python's http.client does."""
    forms = {key.encode()}
    try:
        forms.add(key.encode("latin-1"))
    except UnicodeEncodeError:
        return forms
    return forms


def _keys_in(headers: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """Return the keys of a request: `Authorization: Bearer KEY`, `x-api-key: KEY` or `api-key: KEY`."""
    found = [headers[name].strip() for name in _KEY_HEADERS if name in headers]
    if (line := headers.get(b"authorization")) is not None:
        line = line.strip()
        found.insert(0, line[7:].strip() if line[:7].lower() == b"bearer " else line)
    return tuple(found)


def _own_names() -> set[str]:
    """Return the names under which other machines find this one. No name is looked up."""
    name = socket.gethostname().lower().rstrip(".")
    short = name.partition(".")[0]
    return {"localhost", name, short, f"{short}.local"}


def _name_of(host: str) -> str:
    """Return the name or address in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _authority(page: bytes) -> bytes:
    """Return host and port of an origin. The scheme is left out: a proxy in front may add TLS."""
    return page.rpartition(b"://")[2].strip().lower()


def _refused_page(what: str) -> RequestError:
    message = f"a web page {what} may not use this server: start it with --cors and the page's origin to allow it"
    return RequestError(message, code="origin_not_allowed", status=403)


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN])


# --- CORS: what a browser asks and reads when a page of another origin is allowed -------------------------------------

_ASKED_METHOD = b"access-control-request-method"
_ASKED_HEADERS = b"access-control-request-headers"
_ASKED_NETWORK = b"access-control-request-private-network"
_READABLE = b"x-tourkit-model, x-tourkit-constraint, x-tourkit-emulated, x-tourkit-ignored, retry-after, x-request-id"
_KEPT = b"600"  # seconds that a browser may remember the answer


def _with_cors(send: Send, page: bytes) -> Send:
    """Return a `send` that lets the page read the answer."""
    more = [
        (b"access-control-allow-origin", page),
        (b"access-control-expose-headers", _READABLE),
        (b"vary", b"origin"),
    ]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sending


async def _answer_question(headers: dict[bytes, bytes], send: Send) -> None:
    """Answer the question that a browser sends before the request of a page (CORS preflight)."""
    answer = [(b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"), (b"access-control-max-age", _KEPT)]
    if _ASKED_HEADERS in headers:
        answer.append((b"access-control-allow-headers", headers[_ASKED_HEADERS]))
    if _ASKED_NETWORK in headers:
        answer.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
