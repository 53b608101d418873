"""Any server with a file at a fixed address: the bytes of a side asset from any start, and its size and SHA-256.

It sends no password. tourkit/fetch/download.py decides where the bytes are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from tourkit.errors import HubError, Unreachable, WrongContent
from tourkit.fetch.http import Answer, Connections, Patience, is_unknown_host, reason
from tourkit.fetch.stream import (
    NoAnswerError,
    PassingError,
    ServerWords,
    Stream,
    again,
    opened,
)
from tourkit.manifest.assets import shown
from tourkit.manifest.models import Link

_BLOCK = 1 << 20  # bytes of one read
_CORRECT = "correct `url` of this asset in the manifest"
_CHANGED = "the file has changed there: correct `url` or `sha256` in the manifest, or delete the lock, then lock again"


class WebServer:
    """A client of any web server. Several threads may use it. Call `close` at the end.

    `note` gets a line for every repeated attempt of `measure`.
    """

    words = ServerWords(
        server="server",
        wrong_bytes=_CHANGED,
        web_page=f"log in to the network if it shows a login page, or {_CORRECT}",
        other_file=_CHANGED,
    )

    def __init__(self, patience: Patience | None = None, *, note: Callable[[str], None] = lambda line: None) -> None:
        self.patience = patience or Patience()
        self._note = note
        self._connections = Connections(self.patience.stall_s)

    def name(self, source: Link) -> str:
        """Return the address without its query, which may be signed."""
        return shown(source.url)

    def pinned_name(self, source: Link) -> str:
        """Return the same as `name`: an address has no version."""
        return self.name(source)

    def open(self, source: Link, *, start: int = 0) -> contextlib.AbstractContextManager[Stream]:
        """Open the bytes of a file from `start` on. `Stream.start` is 0 if the server cannot resume.

        Raises PassingError for a failure that may pass, RangeRefusedError, and HubError for one that will not.
        """
        where = self.name(source)
        return opened(
            source.url,
            self._get,
            lambda status: _refusal(status, where),
            where,
            start=start,
            server="server",
            fix=_CORRECT,
        )

    def measure(self, source: Link) -> tuple[int, str]:
        """Read a file once, and return its size in bytes and its SHA-256. Raises HubError."""
        where = self.name(source)
        return again(lambda: self._measured(source, where), where, self.patience, self.given_up, self._note)

    def given_up(self, where: str, last: PassingError) -> HubError:
        """Return the error to raise when a failure did not pass."""
        kind = Unreachable if isinstance(last, NoAnswerError) else HubError
        return kind(f"{where}: {last}, it still fails after several attempts: check the network, or {_CORRECT}")

    def interrupt(self) -> None:
        """Wake the threads that wait for bytes; they get PassingError."""
        self._connections.interrupt()

    def close(self) -> None:
        """Close the open connections. The client can still be used: it opens new ones."""
        self._connections.close()

    def _measured(self, source: Link, where: str) -> tuple[int, str]:
        digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(_BLOCK))
        with self.open(source) as stream:
            if stream.is_html and not urlsplit(source.url).path.endswith((".html", ".htm")):
                raise WrongContent(f"{where}: a web page came instead of the file: {self.words.web_page}")
            while got := stream.readinto(block):
                digest.update(block[:got])
                size += got
        return size, digest.hexdigest()

    def _get(self, url: str, headers: dict[str, str]) -> Answer:
        host = urlsplit(url).hostname
        try:
            return self._connections.get(url, headers)
        except ssl.SSLCertVerificationError as exc:
            fix = "set SSL_CERT_FILE to your network's certificates, or log in to the network"
            raise HubError(f"{host}: its certificate is not trusted ({exc.verify_message}): {fix}") from exc
        except (OSError, http.client.HTTPException) as exc:
            if is_unknown_host(exc):
                raise HubError(f"there is no host {host!r}: {_CORRECT}, or check the network") from exc
            raise PassingError(f"{host}: {reason(exc)}") from exc


def _refusal(status: int, where: str) -> HubError:
    if status in (401, 403, 407):
        return HubError(f"{where}: the server asks for a password (HTTP {status}): use an open address")
    return HubError(f"{where}: HTTP {status} from the server: {_CORRECT}")
