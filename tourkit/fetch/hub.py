"""The hub: what it says about repositories, and the bytes of one file from any start.

huggingface_hub asks the questions about repositories. It neither checks nor resumes downloads, so the bytes of files
go over the connections of tourkit/fetch/http.py. tourkit/fetch/download.py decides where the bytes are written.
"""

import contextlib
import hashlib
import http.client
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from tourkit import __version__
from tourkit.errors import HubError, Unreachable, WrongContent
from tourkit.fetch import hub_client
from tourkit.fetch.http import Answer, Connections, Patience, is_unknown_host, origin, proxy_for, reason, retry_after
from tourkit.fetch.stream import (
    MOST_REDIRECTS,
    REDIRECTS,
    NoAnswerError,
    PassingError,
    ServerWords,
    Stream,
    again,
    extent,
    is_good,
    may_pass,
    redirected,
)
from tourkit.manifest.models import HubFile, Source
from tourkit.net import is_loopback

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT = "https://huggingface.co"
_BLOCK = 1 << 20  # bytes of one read
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST = 1 << 53  # bytes of a file
_LARGEST_READ = 256 << 20  # bytes of a file that is not in LFS; a hub puts files of more than 10 MB there
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """What the hub says about a repository at one revision. `commit`: 40 hex digits."""

    repo: str
    commit: str
    gated: bool
    license: str | None


class Hub:
    """A client of the hub at `endpoint` (default: HF_ENDPOINT) with `token` (default: HF_TOKEN, then the stored one).

    Several threads may use it. `note` gets a line for every repeated attempt. Call `close` at the end.
    """

    words = ServerWords(
        server="hub",
        wrong_bytes="try another network or endpoint; `tourkit lock` if the lock is not from this hub",
        web_page="log in to the network if it shows a login page, or correct HF_ENDPOINT",
        other_file="check HF_ENDPOINT; `tourkit lock` if the lock is not from this hub",
    )

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        *,
        patience: Patience | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.patience = patience or Patience()
        try:
            parts = urlsplit(self.endpoint)
            self._origin = origin(self.endpoint)
        except ValueError:  # a port that is no number, half an IPv6 address
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HubError(f"the endpoint {self.endpoint!r} is not an http(s) address: correct HF_ENDPOINT")
        self._local = is_loopback(parts.hostname)
        self._note = note
        self._token = token
        self._token_known = token is not None
        self._hf_api: HfApi | None = None
        self._gate = threading.RLock()
        self._connections = Connections(self.patience.stall_s)

    def close(self) -> None:
        """Close the open connections. The hub can still be used: it opens new ones."""
        self._connections.close()
        with self._gate:
            if self._hf_api is not None:
                hub_client.close()

    def interrupt(self) -> None:
        """Wake the threads that wait for bytes; they get PassingError."""
        self._connections.interrupt()

    # ---- what the hub says -------------------------------------------------------------------------

    def info(self, repo: str, revision: str) -> RepoInfo:
        """Return the commit of a revision, whether the repository is gated, and its licence. Raises HubError."""
        return self._again(repo, lambda: self._info(repo, revision))

    def has(self, repo: str, commit: str) -> bool:
        """Return whether the hub has a repository at this commit. It is asked once; no answer counts as no."""
        try:
            return self._info(repo, commit).commit == commit
        except HubError:
            return False

    def _info(self, repo: str, revision: str) -> RepoInfo:
        """Ask once what `info` returns."""

        def ask() -> RepoInfo:
            info = self._api().model_info(
                repo, revision=revision, timeout=self.patience.stall_s, token=self._hf_token()
            )
            if not info.sha:
                raise HubError(f"{repo}@{revision}: the hub states no commit: check {self.endpoint}")
            if not _COMMIT.fullmatch(info.sha):
                raise ValueError("a commit that is none")
            return RepoInfo(repo, info.sha, bool(info.gated), _license(info.tags or []))

        return self._asking(f"{repo}@{revision}", repo, ask)

    def tree(self, repo: str, commit: str) -> tuple[HubFile, ...]:
        """Return every file of the repository at `commit`, sorted by path. Raises HubError."""

        def ask() -> tuple[HubFile, ...]:
            entries = self._api().list_repo_tree(repo, recursive=True, revision=commit, token=self._hf_token())
            files = [_hub_file(entry) for entry in entries if hasattr(entry, "blob_id")]
            return tuple(sorted(files, key=lambda file: file.path))

        # No retries here: huggingface_hub itself retries a tree.
        try:
            return self._asking(f"{repo}@{commit[:12]}", repo, ask)
        except PassingError as exc:
            raise self.given_up(f"{repo}@{commit[:12]}", exc) from exc

    def read(self, repo: str, commit: str, file: HubFile) -> bytes:
        """Return the bytes of a small file, checked by size and by git SHA-1 or SHA-256. Raises HubError."""
        where = f"{repo}/{file.path}"

        def fetch() -> bytes:
            data, block = bytearray(), memoryview(bytearray(_BLOCK))  # a size that lies must not take its memory
            with self.open(Source(repo, commit, file.path)) as stream:
                while len(data) <= file.size and (got := stream.readinto(block)):  # one byte more is noticed
                    data += block[:got]
            if len(data) < file.size and not stream.is_html:
                raise PassingError(f"{len(data)} bytes instead of {file.size}")
            _check_read(where, bytes(data), file)
            return bytes(data)

        if file.size > _LARGEST_READ:
            raise HubError(f"{where}: {file.size} bytes outside LFS, which no hub has: check {self.endpoint}")
        return self._again(where, fetch)

    # ---- bytes --------------------------------------------------------------------------------------

    def name(self, source: Source) -> str:
        """Return what messages call the file."""
        return f"{source.repo}/{source.path}"

    def pinned_name(self, source: Source) -> str:
        """Return the file's name with its commit."""
        return f"{self.name(source)} at {source.commit[:12]}"

    @contextlib.contextmanager
    def open(self, source: Source, *, start: int = 0) -> Iterator[Stream]:
        """Open the bytes of a file from `start` on. `Stream.start` is 0 if the server cannot resume.

        Raises PassingError for a failure that may pass, RangeRefusedError, and HubError for one that will not.
        """
        self._refuse_offline()
        repo, where = source.repo, self.name(source)
        headers = {"User-Agent": f"tourkit/{__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = f"{self.endpoint}/{quote(repo)}/resolve/{quote(source.commit, safe='')}/{quote(source.path)}"
        announced = None
        for hops in range(MOST_REDIRECTS + 1):  # noqa: B007 - used after the loop
            answer = self._get(url, headers)
            announced = announced or _announced_sha256(answer.headers)
            if answer.status not in REDIRECTS:
                break
            location = answer.headers.get("Location", "")
            answer.discard()
            url = redirected(url, location, where, server="hub", fix="check HF_ENDPOINT")
        else:
            raise HubError(f"{where}: more than {MOST_REDIRECTS} redirects: check {self.endpoint}")
        try:
            self._check_status(answer, repo, where, redirected=hops > 0)
            begin, total = extent(answer, start)
            yield Stream(answer, begin, total, announced)
        finally:
            answer.close()

    def given_up(self, where: str, last: PassingError) -> HubError:
        """Return the error to raise when a failure did not pass."""
        fix = f"check the network and the endpoint {self.endpoint} (HF_ENDPOINT), then run it again"
        kind = Unreachable if isinstance(last, NoAnswerError) else HubError
        return kind(f"{where}: {last}, it still fails after several attempts: {fix}")

    def _get(self, url: str, headers: dict[str, str]) -> Answer:
        if origin(url) == self._origin and (token := self._known_token()):
            headers = headers | {"Authorization": f"Bearer {token}"}
        try:
            return self._connections.get(url, headers)
        except ssl.SSLCertVerificationError as exc:
            raise self._untrusted(urlsplit(url).hostname, exc.verify_message) from exc
        except (OSError, http.client.HTTPException) as exc:
            if is_unknown_host(exc):
                raise self._unknown_host(url) from exc
            raise PassingError(f"{urlsplit(url).hostname}: {reason(exc)}") from exc

    def _check_status(self, answer: Answer, repo: str, where: str, *, redirected: bool) -> None:
        """Raise the error for an HTTP status: PassingError if it may pass, another HubError if it will not."""
        if is_good(answer, where):
            return
        status, code = answer.status, answer.headers.get("X-Error-Code", "")
        if code == "GatedRepo":
            raise self._gated(repo)
        if redirected and status in (401, 403, 404, 410) and not code:
            raise PassingError(f"HTTP {status} from the storage behind the hub")  # the signed link expired: get another
        if status in (401, 403):
            raise self._refused(repo, status)
        if status in (404, 410):
            raise HubError(f"{where}: the commit or the file is gone from the hub: run `tourkit lock`")
        raise HubError(f"{where}: HTTP {status} from the hub: check the endpoint {self.endpoint}")

    # ---- the client for questions -------------------------------------------------------------------

    def _api(self) -> "HfApi":
        self._refuse_offline()
        with self._gate:
            if self._hf_api is None:
                self._hf_api = hub_client.new_api(self.endpoint, self.patience.stall_s, trust_env=not self._local)
            return self._hf_api

    def _asking(self, where: str, repo: str, ask: Callable[[], T]) -> T:
        """Ask one question, and turn every failure into one of tourkit's own errors."""
        self._api()  # sets the environment before the first import
        from huggingface_hub import errors
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

        try:
            return ask()
        except errors.GatedRepoError as exc:  # a subclass of RepositoryNotFoundError, so it comes first
            raise self._gated(repo) from exc
        except errors.RevisionNotFoundError as exc:
            raise HubError(f"{where}: no such revision: correct `revision` in the manifest") from exc
        except errors.RepositoryNotFoundError as exc:
            fix = "correct `repo` in the manifest, or set HF_TOKEN to a token that may read it"
            raise HubError(f"{repo}: no such repository at {self.endpoint}, or a private one: {fix}") from exc
        except errors.HfHubHTTPError as exc:
            raise self._of_status(exc.response.status_code, exc.response.headers, repo) from exc
        except httpx.TransportError as exc:
            cause = _root_cause(exc)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise self._untrusted(urlsplit(self.endpoint).hostname, cause.verify_message) from exc
            if is_unknown_host(cause):
                raise self._unknown_host(self.endpoint) from exc
            raise NoAnswerError(f"{urlsplit(self.endpoint).hostname}: {reason(cause)}") from exc
        except httpx.TooManyRedirects as exc:
            raise HubError(f"{where}: more than {MOST_REDIRECTS} redirects: check {self.endpoint}") from exc
        except httpx.DecodingError as exc:
            fix = "run it again, or check the proxy and HF_ENDPOINT"
            raise HubError(f"{where}: the answer of {self.endpoint} cannot be unpacked: {fix}") from exc
        except errors.HFValidationError as exc:
            raise HubError(f"{repo!r} is no repository name: correct `repo` in the manifest") from exc
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:  # not in the hub's format
            fix = "log in to the network if it shows a login page, or correct HF_ENDPOINT"
            raise HubError(f"{where}: {self.endpoint} does not answer as a hub: {fix}") from exc

    def _of_status(self, status: int, headers: Any, repo: str) -> HubError:
        if may_pass(status):
            return PassingError(f"HTTP {status}", retry_after(headers.get("Retry-After", "")))
        if status in (401, 403):
            return self._refused(repo, status)
        return HubError(f"{repo}: HTTP {status} from the hub: check the endpoint {self.endpoint}")

    def _again(self, where: str, call: Callable[[], T]) -> T:
        """Call until it succeeds, fails for good, or has failed `attempts` times."""
        return again(call, where, self.patience, self.given_up, self._note)

    # ---- tokens and refusals ------------------------------------------------------------------------

    def _known_token(self) -> str | None:
        with self._gate:
            if not self._token_known:
                self._token = hub_client.default_token()
                self._token_known = True
            return self._token

    def _hf_token(self) -> str | bool:
        return self._known_token() or False  # False: huggingface_hub must not look for one

    def _gated(self, repo: str) -> HubError:
        fix = f"accept the licence at {self.endpoint}/{repo} and set HF_TOKEN to a token of that account"
        return HubError(f"{repo} is gated: {fix}")

    def _refused(self, repo: str, status: int) -> HubError:
        what = "the hub refused the token" if self._known_token() else "the hub asks for a token"
        fix = f"set HF_TOKEN to a valid token that may read {self.endpoint}/{repo}"
        return HubError(f"{repo}: {what} (HTTP {status}): {fix}")

    def _unknown_host(self, url: str) -> HubError:
        """The error if a name does not exist: the proxy's if the URL is asked through one, else that of the URL."""
        parts = urlsplit(url)
        proxy = proxy_for(parts)
        if proxy is not None:
            return Unreachable(f"there is no host {proxy.hostname!r}: correct {parts.scheme.upper()}_PROXY")
        if origin(url) == self._origin:
            return Unreachable(f"there is no host {parts.hostname!r}: correct HF_ENDPOINT, or check the network")
        return HubError(f"there is no host {parts.hostname!r}, to which {self.endpoint} redirects: check the network")

    def _untrusted(self, host: str | None, why: str) -> HubError:
        fix = "set SSL_CERT_FILE to your network's certificates, or log in to the network"
        return HubError(f"{host}: its certificate is not trusted ({why}): {fix}")

    def _refuse_offline(self) -> None:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if os.environ.get(name, "").upper() in hub_client.TRUE and not self._local:
                raise HubError(f"{name} is set, so {self.endpoint} must not be asked: unset it")


def _license(tags: list[str]) -> str | None:
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


def _hub_file(entry: Any) -> HubFile:
    """Return a file of a tree. Raises ValueError for one that no hub lists."""
    sha256 = entry.lfs.sha256 if entry.lfs else None
    if not isinstance(entry.path, str) or type(entry.size) is not int or not 0 <= entry.size <= _LARGEST:
        raise ValueError("a file without a path or a size")
    if not isinstance(entry.blob_id, str) or not (sha256 is None or _SHA256.fullmatch(sha256)):
        raise ValueError("a file without a hash")
    return HubFile(entry.path, entry.size, sha256, None if entry.lfs else entry.blob_id)


def _check_read(where: str, data: bytes, file: HubFile) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    sha256 = hashlib.sha256(data).hexdigest()
    same = len(data) == file.size
    if not same or file.blob_id not in (None, git) or file.sha256 not in (None, sha256):
        raise WrongContent(f"{where}: the bytes do not match the hub's own list: run it again")


def _announced_sha256(headers: Message) -> str | None:
    """Return the SHA-256 that a hub states in its redirect for LFS files."""
    etag = headers.get("X-Linked-Etag", "").strip('"')
    return etag if _SHA256.fullmatch(etag) else None


def _root_cause(exc: BaseException) -> BaseException:
    while (cause := exc.__cause__ or exc.__context__) is not None:
        exc = cause
    return exc
