"""Serve a bundle as a Hugging Face-compatible hub on a closed LAN: metadata, tree, ranged downloads.

The mirror answers from the index alone: no part of a URL ever becomes a path on disk. It does not check bytes.
`tourkit verify` checks them, and clients can with the SHA-256 in the answers.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tourkit import net
from tourkit.bundle.index import read_index
from tourkit.bundle.verify import verify
from tourkit.connections import USUAL, BoundedServer
from tourkit.errors import NotSo
from tourkit.files import NotPlainError, open_below
from tourkit.mirror.page import page
from tourkit.mirror.repos import HeldFile, Repo, Snapshot, author_of, entry, info, refs, repos
from tourkit.net import Urls

_BLOCK = 1 << 20  # bytes of one read and one send
_PAGE = 1000  # tree entries in one answer, the hub's own limit
_MOST_BODY = 8 << 20  # bytes of a paths-info request
_LOG = logging.getLogger("tourkit.mirror.app")


class _NotHereError(Exception):
    """Answered as 404. Clients of the hub tell the cases apart by `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _CutShortError(Exception):
    """A file ended before the length that was promised."""


def app(root: Path) -> Starlette:
    """The hub for the bundle at `root`. Raises what `read_index` raises."""
    routes = [
        Route("/", _home),
        Route("/api/models", _models),
        Route("/api/whoami-v2", _whoami),
        Route("/api/models/{rest:path}", _paths_info, methods=["POST"]),
        Route("/api/models/{rest:path}", _model),
        Route("/{rest:path}", _resolve),
    ]
    starlette = Starlette(routes=routes, exception_handlers={_NotHereError: _not_here})
    starlette.state.root = root
    starlette.state.repos = repos(read_index(root))
    return starlette


def serve(root: Path, host: str, port: int, on_ready: Callable[[Urls], None]) -> None:
    """Serve the bundle until a signal. `on_ready` gets the URLs once the server answers (port 0: any free port).

    Raises NotSo if files are missing or have a wrong size, LocalError if the address cannot be used.
    """
    report = verify(root, quick=True)
    if bad := report.missing + report.damaged:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        details = tuple(f"{each.kind}: {each.path} ({each.detail})" for each in report.problems if each.path in bad)
        line = f"{root}: {bad[0]}{more} missing or damaged: see `tourkit verify {root}`"
        raise NotSo(line, details=details if more else ())
    starlette = app(root)
    listener = net.listen(host, port)
    with listener:
        urls = net.urls_of(listener)
        config = uvicorn.Config(
            starlette,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,  # second: Ctrl-C does not wait for running downloads
        )
        _Server(config, lambda: on_ready(urls)).run(sockets=[listener])


class _Server(BoundedServer):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config, USUAL)  # clients reuse a connection between big files
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


# ---- paths to repositories ---------------------------------------------------------------------------


def _find_repo(request: Request) -> tuple[Repo, str]:
    """Return the repository at the start of the path (`org/name`, or a name alone), and the rest of the path."""
    parts = request.path_params["rest"].split("/")
    known: dict[str, Repo] = request.app.state.repos
    for length in (2, 1):
        repo = known.get("/".join(parts[:length]))
        if repo is not None:
            return repo, "/".join(parts[length:])
    name = "/".join(parts[:2])
    raise _NotHereError("RepoNotFound", f"this bundle has no repository {name!r}: see / for the list")


def _find_revision(repo: Repo, rest: str) -> tuple[Snapshot, str]:
    """Return the snapshot at the start of `rest`, and the path after it. A revision may contain slashes."""
    for name in sorted(repo.names, key=len, reverse=True):
        if rest == name or rest.startswith(f"{name}/"):
            return repo.snapshots[repo.names[name]], rest[len(name) + 1 :]
    raise _NotHereError("RevisionNotFound", f"{repo.id} has only these revisions here: {', '.join(repo.names)}")


# ---- answers -----------------------------------------------------------------------------------------


async def _not_here(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, _NotHereError)
    words = {"RepoNotFound": "Repository not found", "RevisionNotFound": "Invalid rev id"}
    headers = {"X-Error-Code": exc.code, "X-Error-Message": words.get(exc.code, "Entry not found")}
    return JSONResponse({"error": str(exc)}, 404, headers)


async def _home(request: Request) -> Response:
    base = str(request.base_url).rstrip("/")
    listing = [
        (repo.id, repo.license, [(snapshot.commit, _sizes(snapshot)) for snapshot in repo.snapshots.values()])
        for repo in request.app.state.repos.values()
    ]
    return HTMLResponse(page(base, listing))


def _sizes(snapshot: Snapshot) -> dict[str, int]:
    return {path: file.size for path, file in snapshot.files.items()}


async def _whoami(_: Request) -> Response:
    return JSONResponse({"error": "this mirror has no accounts: it needs no token"}, 401)


async def _models(request: Request) -> Response:
    query = request.query_params
    wanted = query.get("search", "").casefold()
    author = query.get("author")
    limit = _number(query.get("limit"), _PAGE)
    chosen = [
        _shown(request, repo, repo.default)
        for repo in request.app.state.repos.values()
        if wanted in repo.id.casefold() and author in (None, author_of(repo))
    ]
    return JSONResponse(chosen[:limit])


async def _model(request: Request) -> Response:
    """Answer GET /api/models/{repo} and the paths below it."""
    repo, rest = _find_repo(request)
    action, _, rest = rest.partition("/")
    match action:
        case "":
            return JSONResponse(_shown(request, repo, _find_revision(repo, "main")[0]))
        case "revision":
            return JSONResponse(_shown(request, repo, _find_revision(repo, rest)[0]))
        case "refs":
            return JSONResponse(refs(repo))
        case "tree":
            return _tree(request, *_find_revision(repo, rest))
        case "sha256sums":
            files = _find_revision(repo, rest or "main")[0].files
            return PlainTextResponse("".join(f"{file.sha256}  {path}\n" for path, file in files.items()))
        case "paths-info":
            return JSONResponse({"error": "use POST"}, 405, {"Allow": "POST"})
    raise _NotHereError("EntryNotFound", f"this mirror does not answer {action!r}")


async def _paths_info(request: Request) -> Response:
    repo, rest = _find_repo(request)
    action, _, rest = rest.partition("/")
    if action != "paths-info":
        return JSONResponse({"error": "this mirror is read-only"}, 405, {"Allow": "GET, HEAD"})
    snapshot, _ = _find_revision(repo, rest)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY:
            return JSONResponse({"error": f"more than {_MOST_BODY} bytes"}, 413)
    paths = _asked_paths(request.headers.get("content-type", ""), body)
    if paths is None:
        return JSONResponse({"error": "paths: expected a list of paths, as a form or as JSON"}, 400)
    folders = snapshot.folders
    answer = [entry(snapshot, path) for path in paths if path in snapshot.files or path in folders]
    return JSONResponse(answer)


def _asked_paths(content_type: str, body: bytes) -> list[str] | None:
    if not content_type.startswith("application/json"):
        return parse_qs(body.decode(errors="replace")).get("paths", [])
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    paths = raw.get("paths") if isinstance(raw, dict) else None
    return paths if isinstance(paths, list) and all(isinstance(path, str) for path in paths) else None


def _shown(request: Request, repo: Repo, snapshot: Snapshot) -> dict[str, Any]:
    query = request.query_params
    return info(repo, snapshot, blobs="blobs" in query, expand=query.getlist("expand"))


def _tree(request: Request, snapshot: Snapshot, folder: str) -> Response:
    query = request.query_params
    folders = snapshot.folders
    folder = folder.strip("/")
    if folder and folder not in folders:
        raise _NotHereError("EntryNotFound", f"{folder!r} is no folder of this commit")
    prefix = f"{folder}/" if folder else ""
    paths = sorted(path for path in [*snapshot.files, *folders] if path.startswith(prefix))
    if query.get("recursive", "false").casefold() not in ("true", "1"):
        paths = [path for path in paths if "/" not in path[len(prefix) :]]
    start = _number(query.get("cursor"), 0)
    limit = max(1, min(_number(query.get("limit"), _PAGE), _PAGE))
    shown = [entry(snapshot, path) for path in paths[start : start + limit]]
    headers = {}
    if start + limit < len(paths):
        following = request.url.include_query_params(cursor=start + limit)
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(shown, headers=headers)


def _number(text: str | None, default: int) -> int:
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else default


# ---- files -------------------------------------------------------------------------------------------


async def _resolve(request: Request) -> Response:
    """Answer GET and HEAD /{repo}/resolve/{revision}/{path}: the whole file or one range."""
    if request.path_params["rest"].startswith("api/"):
        raise _NotHereError("EntryNotFound", "this mirror does not answer this path")
    repo, rest = _find_repo(request)
    action, _, rest = rest.partition("/")
    if action != "resolve":
        raise _NotHereError("EntryNotFound", f"this mirror has no such page: files are at /{repo.id}/resolve/")
    snapshot, path = _find_revision(repo, rest)
    file = snapshot.files.get(path)
    if file is None:
        raise _NotHereError("EntryNotFound", f"{repo.id} at {snapshot.commit} has no file {path!r} here")
    etag = f'"{file.sha256}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "X-Linked-ETag": etag,
        "X-Linked-Size": str(file.size),
        "X-Repo-Commit": snapshot.commit,
        "X-Content-Type-Options": "nosniff",
        "Content-Type": "application/octet-stream",
    }
    start, end, status = 0, file.size, 200
    if request.headers.get("if-range", etag) == etag:
        span = _span(request.headers.get("range"), file.size)
        if span is not None:
            (start, end), status = span, 206
            if start >= end:
                return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{file.size}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    root: Path = request.app.state.root
    where = root / file.path
    reason = await run_in_threadpool(_changed, root, file)
    if reason is not None:
        _LOG.error("%s: %s: run `tourkit verify`", where, reason)
        return JSONResponse({"error": f"{file.path}: {reason}; the mirror's bundle needs repair"}, 500)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return _FileResponse(_blocks(root, file.path, start, end), status, headers)


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the requested bytes [start, end). None means the whole file: RFC 9110 lets a server ignore a range.

    An empty interval means that the file has none of the requested bytes.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", (header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    return None if start < size and end <= start else (start, end)


def _changed(root: Path, file: HeldFile) -> str | None:
    """Return why the file on disk is not the file of the index; None if name and size match."""
    try:
        descriptor = open_below(root, file.path)
    except NotPlainError:
        return "no longer a plain file"
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    try:
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    return None if size == file.size else f"{size} bytes on disk, {file.size} in the index"


def _blocks(root: Path, path: str, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes [start, end) of a file. Raises _CutShortError if they are not there (any more)."""
    try:
        with os.fdopen(open_below(root, path), "rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_BLOCK, end - start))
                if not block:
                    raise _CutShortError(f"{root / path}: ended at byte {start}, {end} were promised")
                start += len(block)
                yield block
    except OSError as exc:
        raise _CutShortError(f"{root / path}: cannot be read at byte {start} ({exc.strerror})") from exc


class _FileResponse(StreamingResponse):
    """A stream that breaks the connection and logs one line if the file is too short: the client must notice."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except _CutShortError as exc:
            _LOG.error("%s: run `tourkit verify`", exc)
