"""One GET at a time over http.client: connections kept open per thread, TLS, proxies, reads into a given buffer.

This module knows nothing about hubs and indexes: no redirects, no retries, no tokens. urllib3 was tried instead: it
copies what it reads, a prefetch took a tenth more CPU time, and only a few lines were saved.
"""

import base64
import contextlib
import email.utils
import http.client
import random
import socket
import ssl
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from urllib.parse import SplitResult, unquote, urlsplit

from tourkit.errors import HubError
from tourkit.net import is_loopback

_TICK_S = 0.25  # a slow read returns at least this often: progress moves, Ctrl-C is noticed
_IDLE_S = 15.0  # a router may forget a connection that is idle for longer, without telling either end
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_DISCARD = 64 << 10  # bytes of an unwanted body that are read to keep the connection


@dataclass(slots=True, eq=False)
class _Link:
    """One connection to an origin, direct or through a proxy."""

    http: http.client.HTTPConnection
    origin: str
    absolute: bool = False  # an http proxy wants the whole URL in the request line
    headers: dict[str, str] = field(default_factory=dict)
    sock: socket.socket | None = None  # kept here: http.client drops it while the last answer is read
    idle_since: float = 0.0  # time.monotonic()


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long failures that may pass are retried. All but `attempts` are in seconds."""

    attempts: int = 8  # failures in a row without a new byte
    delay_s: float = 1.0  # before the second attempt; doubles after each failure
    longest_s: float = 30.0
    retry_after_s: float = 300.0  # the longest wait that a server's Retry-After can ask for
    stall_s: float = 30.0  # a connection that is silent for this long counts as broken

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Return the seconds to wait after `failures` failures in a row. `asked_s`: what the server asked for."""
        if asked_s is not None:
            return min(max(asked_s, 0.0), self.retry_after_s)
        delay = min(self.delay_s * 2.0 ** (failures - 1), self.longest_s)
        return delay * random.uniform(0.75, 1.25)  # so that the threads do not all retry at once


class Connections:
    """Connections kept open for the next GET of the same thread to the same origin.

    `tls` gives the TLS settings for a URL (default: the system's). `proxy`: an address to use instead of those of the
    environment.
    """

    def __init__(self, stall_s: float, *, tls: Callable[[str], ssl.SSLContext] | None = None, proxy: str = "") -> None:
        self._stall_s = stall_s
        self._tls_for = tls or (lambda url: ssl.create_default_context())
        self._proxy = proxy
        self._mine = threading.local()
        self._open: set[_Link] = set()
        self._gate = threading.Lock()
        self._tls: dict[str, ssl.SSLContext] = {}  # by origin
        weakref.finalize(self, _close_all, self._open)

    def get(self, url: str, headers: dict[str, str]) -> "Answer":
        """Send a GET. The caller must close the answer. Raises OSError or http.client.HTTPException."""
        parts = urlsplit(url)
        kept = self._idle().pop(origin(url), None)
        if kept is not None and time.monotonic() - kept.idle_since > _IDLE_S:
            self.drop(kept)
        elif kept is not None:
            # The server may have closed it while it was idle: then try a new one.
            with contextlib.suppress(ConnectionError):
                return self._send(kept, parts, headers)
        return self._send(self._link(parts, origin(url)), parts, headers)

    def close(self) -> None:
        """Close every connection of every thread; later GETs open new ones."""
        with self._gate:
            links = list(self._open)
            self._mine = threading.local()
        for link in links:
            self.drop(link)

    def interrupt(self) -> None:
        """Wake threads that wait for bytes: their read ends as if the server closed the connection."""
        with self._gate:
            sockets = [link.sock for link in self._open if link.sock is not None]
        for sock in sockets:
            with contextlib.suppress(OSError):  # it was closed in the meantime
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own: it first sends a closing message

    def keep(self, link: _Link) -> None:
        link.idle_since = time.monotonic()
        self._idle()[link.origin] = link

    def drop(self, link: _Link) -> None:
        with self._gate:
            self._open.discard(link)
        link.http.close()

    def _idle(self) -> dict[str, _Link]:
        if not hasattr(self._mine, "idle"):
            self._mine.idle = {}
        idle: dict[str, _Link] = self._mine.idle
        return idle

    def _send(self, link: _Link, parts: SplitResult, headers: dict[str, str]) -> "Answer":
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if link.absolute:
            target = f"{parts.scheme}://{parts.netloc}{target}"
        try:
            if link.sock is None:
                _connect(link.http)
                link.sock = link.http.sock
            link.http.request("GET", target, headers=headers | link.headers)
            return Answer(self, link, link.http.getresponse())
        except BaseException:
            self.drop(link)
            raise

    def _link(self, parts: SplitResult, key: str) -> _Link:
        host, port, secure = parts.hostname or "", parts.port, parts.scheme == "https"
        proxy = proxy_for(parts, self._proxy)
        if proxy is None:
            link = _Link(self._new(secure, host, port, key), key)
        else:
            link = _Link(self._new(secure, proxy.hostname or "", proxy.port or 80, key), key)
            if secure:
                link.http.set_tunnel(host, port or 443, _credentials(proxy))
            else:
                link.absolute, link.headers = True, _credentials(proxy)
        with self._gate:
            self._open.add(link)
        return link

    def _new(self, secure: bool, host: str, port: int | None, key: str) -> http.client.HTTPConnection:
        if not secure:
            return http.client.HTTPConnection(host, port, timeout=self._stall_s)
        with self._gate:
            if key not in self._tls:
                self._tls[key] = self._tls_for(key)
        return http.client.HTTPSConnection(host, port, timeout=self._stall_s, context=self._tls[key])


class Answer:
    """The answer to one GET. Its body is read into the caller's buffer and never stored."""

    def __init__(self, connections: Connections, link: _Link, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers: Message = response.headers
        self.length = response.length  # bytes of the body, None if the server does not say
        self._left = response.length
        self._ended = self._left == 0
        self._failure: Exception | None = None
        self._connections = connections
        self._link = link
        self._response = response

    def readinto(self, view: memoryview) -> int:
        """Read into `view` and return the number of bytes, 0 at the end of the body.

        Bytes that came before a failure are returned first. Raises OSError or http.client.HTTPException;
        ConnectionError if the body is cut short.
        """
        if self._failure is not None:
            raise self._failure
        filled = 0
        until = time.monotonic() + _TICK_S
        while filled < len(view) and not self._ended:
            try:
                filled += self._some(view[filled:])
            except (OSError, http.client.HTTPException) as exc:
                self._failure = exc
                if not filled:
                    raise
                break
            if time.monotonic() > until:
                break
        return filled

    def _some(self, view: memoryview) -> int:
        if self._left is None:
            data = self._response.read1(len(view))
            self._ended = not data
            view[: len(data)] = data
            return len(data)
        # One system call per step: HTTPResponse.readinto would lose the bytes it has if the connection breaks.
        got: int = self._response.fp.readinto1(view[: self._left])
        if not got:
            raise ConnectionError(f"the body ended {self._left} bytes early")
        self._left -= got
        self._ended = self._left == 0
        return got

    def discard(self) -> None:
        """Read a short rest of the body, so that the connection can be kept; then close the answer."""
        scrap = memoryview(bytearray(_DISCARD))
        read = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while read < _DISCARD and (got := self.readinto(scrap)):
                read += got
        self.close()

    def close(self) -> None:
        """Keep the connection if the body was read to its end, else close it."""
        whole = self._ended and self._failure is None and not self._response.will_close
        self._response.close()
        if whole:
            self._connections.keep(self._link)
        else:
            self._connections.drop(self._link)


def _connect(connection: http.client.HTTPConnection) -> None:
    """Connect. A text that cannot be the name of a host is one that nobody knows. Raises OSError."""
    try:
        connection.connect()
    except UnicodeError as exc:
        raise socket.gaierror(socket.EAI_NONAME, "not a host's name") from exc


def origin(url: str) -> str:
    """Return scheme, host and port of a URL. A token may be sent to the hub's own origin only."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def proxy_for(parts: SplitResult, given: str = "") -> SplitResult | None:
    """Return the proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY set for this URL; None for loopback.

    A `given` proxy replaces those of the first three.

    Raises HubError for a proxy that is not an http:// one, such as a SOCKS proxy.
    """
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    named = given or proxies.get(parts.scheme) or proxies.get("all")
    if not named or is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http":
        fix = f"set {parts.scheme.upper()}_PROXY to an http:// address"
        raise HubError(f"the proxy for {host} is {proxy.scheme}://, which is not supported: {fix}")
    return proxy


def retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or an HTTP date); None for other text."""
    value = value.strip()
    if value.isdecimal():
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None


def is_unknown_host(exc: BaseException) -> bool:
    """Return whether the name service says that there is no host of this name. No later attempt helps.

    EAI_AGAIN, a name service that does not answer, may pass.
    """
    return isinstance(exc, socket.gaierror) and exc.errno in _NO_SUCH_NAME


def reason(exc: BaseException) -> str:
    """Describe a failure in a few words, without the URL, which may be signed."""
    known: list[tuple[type[BaseException], str]] = [
        (TimeoutError, "no answer in time"),
        (http.client.RemoteDisconnected, "the connection was closed without an answer"),
        (ConnectionResetError, "the connection was reset"),
        (ConnectionRefusedError, "the connection was refused"),
        (socket.gaierror, "the host name is not known here"),
    ]
    for kind, words in known:
        if isinstance(exc, kind):
            return words
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    return type(exc).__name__


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _close_all(links: set[_Link]) -> None:
    for link in list(links):
        link.http.close()
