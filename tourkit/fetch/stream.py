"""The bytes of one answer of a server, from any start: redirects, ranges, and the failures that may pass.

The hub (tourkit/fetch/hub.py), a package index (tourkit/fetch/wheels/package_index.py) and any other server
(tourkit/fetch/web.py) give such streams.
"""

import contextlib
import http.client
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

from tourkit import __version__
from tourkit.errors import HubError
from tourkit.fetch.http import Answer, Patience, reason, retry_after
from tourkit.manifest.models import Link, Source

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
_ADDRESS = re.compile(r"[^\x00-\x1f\x7f]{1,16384}")  # no control character; a signed link has about 1000 characters
T = TypeVar("T")
_Asked = TypeVar("_Asked", Source, Link, contravariant=True)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class PassingError(HubError):
    """A failure that may pass: try again, after `wait_s` seconds if the server states them."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class NoAnswerError(PassingError):
    """The endpoint did not answer: it would not answer about another repository either."""


class RangeRefusedError(HubError):
    """HTTP 416: the file on the hub is shorter than the part that we have."""


class Stream:
    """The bytes of one file from `start`. `total` (bytes of the whole file) and `sha256` are None if not stated."""

    def __init__(self, answer: Answer, start: int, total: int | None, sha256: str | None) -> None:
        self.start = start
        self.total = total
        self.sha256 = sha256
        self.is_html = answer.headers.get_content_type() == "text/html"
        self._answer = answer

    def readinto(self, view: memoryview) -> int:
        """Read into `view` and return the number of bytes, 0 at the end. Raises PassingError on a broken connection."""
        try:
            return self._answer.readinto(view)
        except (OSError, http.client.HTTPException) as exc:
            raise PassingError(reason(exc)) from exc


@dataclass(frozen=True, slots=True)
class ServerWords:
    """What messages call a kind of server, and the fix for each of its faults."""

    server: str
    wrong_bytes: str
    web_page: str
    other_file: str


class Server(Protocol[_Asked]):
    """Where the bytes of a file come from: the hub, a package index or another server."""

    patience: Patience
    words: ServerWords

    def name(self, source: _Asked) -> str:
        """Return what messages call the file."""

    def pinned_name(self, source: _Asked) -> str:
        """Return its name with its version."""

    def open(self, source: _Asked, *, start: int = 0) -> contextlib.AbstractContextManager[Stream]:
        """Open the bytes from `start` on. Raises PassingError, RangeRefusedError and HubError."""

    def given_up(self, where: str, last: PassingError) -> HubError:
        """Return the error to raise when a failure did not pass."""

    def interrupt(self) -> None:
        """Wake the threads that wait for bytes; they get PassingError."""

    def close(self) -> None:
        """Close the open connections."""


def redirected(url: str, location: str, where: str, *, server: str, fix: str) -> str:
    """Return the address that a redirect of `url` leads to. `server` and `fix` are words for the errors.

    Raises HubError for an address that is invalid, or not encrypted if `url` is.
    """
    target, scheme = _resolved(url, location)
    if not scheme:
        raise HubError(f"{where}: the {server} redirects to an invalid address: {fix}")
    if scheme not in ("http", "https"):
        raise HubError(f"{where}: the {server} redirects to {scheme}:// instead of http: {fix}")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise HubError(f"{where}: the {server} redirects from https to http, which is not encrypted: {fix}")
    return target


def _resolved(url: str, location: str) -> tuple[str, str]:
    """Return the address that a Location of `url` names, and its scheme; "" as the scheme if it is no address."""
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        _ = parts.port  # ValueError for one that is no number
        host = (parts.hostname or "").encode("idna")  # UnicodeError, a ValueError, for what cannot be a host's name
    except ValueError:
        return "", ""
    named = parts.scheme not in ("http", "https") or (host and b" " not in host)
    return target, parts.scheme if named and _ADDRESS.fullmatch(location) else ""


def follow(url: str, where: str, get: Callable[[str], Answer], *, server: str, fix: str) -> Answer:
    """Return the answer of `url` after its redirects. `server` and `fix` are words for the errors. Raises HubError."""
    for _ in range(MOST_REDIRECTS + 1):
        answer = get(url)
        if answer.status not in REDIRECTS:
            return answer
        location = answer.headers.get("Location", "")
        answer.discard()
        url = redirected(url, location, where, server=server, fix=fix)
    raise HubError(f"{where}: more than {MOST_REDIRECTS} redirects: {fix}")


def is_good(answer: Answer, where: str) -> bool:
    """Return whether the status of an answer is that of bytes. Raises PassingError if it may be another one soon.

    Raises RangeRefusedError if the server has no bytes from the requested start on.
    """
    if answer.status == 416:
        raise RangeRefusedError(f"{where}: HTTP 416")
    if may_pass(answer.status):
        raise PassingError(f"HTTP {answer.status}", retry_after(answer.headers.get("Retry-After", "")))
    return answer.status in (200, 206)


def may_pass(status: int) -> bool:
    """Return whether a server that answers with this HTTP status may answer with another one soon."""
    return status in (408, 429) or status >= 500


@contextlib.contextmanager
def opened(
    url: str,
    get: Callable[[str, dict[str, str]], Answer],
    refusal: Callable[[int], HubError],
    where: str,
    *,
    start: int,
    server: str,
    fix: str,
) -> Iterator[Stream]:
    """Open the bytes at an address from `start` on. `Stream.start` is 0 if the server cannot resume.

    `get` asks one address with these headers. `refusal` makes the error for a status that will not pass. Raises what
    `is_good`, `follow` and `extent` raise, too.
    """
    headers = {"User-Agent": f"tourkit/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    answer = follow(url, where, lambda url: get(url, headers), server=server, fix=fix)
    try:
        if not is_good(answer, where):
            raise refusal(answer.status)
        begin, total = extent(answer, start)
        yield Stream(answer, begin, total, None)
    finally:
        answer.close()


def again(
    call: Callable[[], T],
    where: str,
    patience: Patience,
    given_up: Callable[[str, PassingError], HubError],
    note: Callable[[str], None],
) -> T:
    """Call until it succeeds, fails for good, or has failed `patience.attempts` times. `note` gets a line each time."""
    for failures in range(1, patience.attempts + 1):
        try:
            return call()
        except PassingError as exc:
            if failures == patience.attempts:
                raise given_up(where, exc) from exc
            pause_s = patience.pause_s(failures, exc.wait_s)
            note(f"{where}: {exc}; retry in {pause_s:.0f} s")
        time.sleep(pause_s)
    raise HubError(f"{where}: not asked: `attempts` must be at least 1")


def extent(answer: Answer, asked: int) -> tuple[int, int | None]:
    """Return the first byte and the size of the whole file by the answer. Raises PassingError for another range."""
    if answer.status == 200:
        return 0, answer.length
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != asked:
        raise PassingError("the server sent another range than the requested one")
    return asked, None if match[3] == "*" else int(match[3])
