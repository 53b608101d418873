"""A hub on loopback that speaks the real protocol and fails on demand, for the tests of prefetch.

Not collected by pytest. Faults are set per file (`hub.faults["weights.gguf"] = …`). The log records the requests and
the sent bytes.
"""

import contextlib
import hashlib
import json
import random
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "acme/tiny-gguf"
_STEP = 64 << 10  # bytes per send: small enough to stop at the byte that a test wants


def noise(size: int, seed: int) -> bytes:
    """Return random bytes in place of weights. The same seed gives the same bytes."""
    return random.Random(seed).randbytes(size)


@dataclass
class Fault:
    """A fault of one file. `times`: how often it happens, None for always. The other fields say what happens."""

    kind: str  # see Handler._body and Handler._resolve
    times: int | None = None
    at: int = 0  # byte of the body at which the fault happens
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seen: int = 0


@dataclass
class Sent:
    """One answered GET of a file: the request, and how many bytes of the body were sent."""

    path: str
    start: int
    status: int
    sent: int = 0
    authorization: str | None = None


class FaultyHub:
    """Serve `files` (path: content) as repository `repo` at `commit`; the names in `lfs` are LFS files."""

    handler: type[BaseHTTPRequestHandler]  # Handler, unless another server is made of this one

    def __init__(self, files: dict[str, bytes], *, repo: str = REPO, commit: str = COMMIT) -> None:
        self.repo, self.commit, self.files = repo, commit, dict(files)
        self.lfs = {path for path in files if path.endswith((".gguf", ".safetensors"))}
        self.faults: dict[str, Fault] = {}
        self.api_faults: list[Fault] = []  # for /api/…, used one after the other
        self.cdn: FaultyHub | None = None  # the target of redirects for LFS files; None: no redirect
        self.relative = False  # redirect with a Location without a host
        self.links: dict[str, int] = {}  # signed link: how often it may still be used
        self.link_uses = 1000
        self.gated: str | None = None  # the token that gives access to the files
        self.refuse: tuple[int, dict[str, str]] | None = None  # answer every file with this status and these headers
        self.log: list[Sent] = []
        self.api_log: list[str] = []
        self.paths: list[str] = []  # the target of every request
        self.release = threading.Event()  # ends every stall
        self.send_buffer: int | None = None  # size of the kernel's send buffer; None: the default
        self.on_sent: Callable[[int], None] = lambda total: None
        self.sent_bytes = 0
        self.gate = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), self.handler)
        self.server.hub = self
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FaultyHub":
        return self

    def __exit__(self, *exc: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.close_clients()
        self.server.server_close()
        self.thread.join()

    def settle(self) -> None:
        """Wait until every connection has ended, so that the log is complete. The clients must be closed before."""
        with socket.create_connection(self.server.server_address[:2]) as last:  # it is accepted after all others
            last.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while last.recv(4096):
                pass
        with self.server.ended:
            self.server.ended.wait_for(lambda: not self.server.clients)

    def fault_for(self, path: str) -> Fault | None:
        """Return the next fault of a file, and count it."""
        with self.gate:
            fault = self.faults.get(path)
            if fault is None or (fault.times is not None and fault.seen >= fault.times):
                return None
            fault.seen += 1
            return fault

    def new_link(self, path: str) -> str:
        with self.gate:
            token = f"SECRET{len(self.links):04d}"
            self.links[token] = self.link_uses
        return f"/cdn/{urllib.parse.quote(path)}?Signature={token}"

    def use_link(self, token: str) -> bool:
        with self.gate:
            left = self.links.get(token, 0)
            self.links[token] = left - 1
            return left > 0

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for path, content in sorted(self.files.items()):
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
            if path in self.lfs:
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FaultyHub

    def __init__(self, *args: Any) -> None:
        self.clients: set[socket.socket] = set()
        self.accepted = 0  # connections so far
        self.ended = threading.Condition()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.ended:
            self.clients.add(request)
            self.accepted += 1
        if self.hub.send_buffer is not None:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.hub.send_buffer)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.ended:
            self.clients.discard(request)
            self.ended.notify_all()

    def close_clients(self) -> None:
        for client in list(self.clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up: the tests do this on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        with hub.gate:
            hub.paths.append(self.path)
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        if path.startswith("/api/models/"):
            return self._api(hub, path.removeprefix("/api/models/"))
        if path.startswith("/cdn/"):
            token = urllib.parse.parse_qs(url.query)["Signature"][0]
            return self._cdn(hub, path.removeprefix("/cdn/"), token)
        before = f"/{hub.repo}/resolve/{hub.commit}/"
        if path.startswith(before):
            return self._resolve(hub, path.removeprefix(before))
        return self.plain(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _api(self, hub: FaultyHub, path: str) -> None:
        with hub.gate:
            hub.api_log.append(path)
            fault = hub.api_faults.pop(0) if hub.api_faults else None
        if fault is not None:
            if fault.kind == "reset":
                return self._reset()
            if fault.kind == "stall":
                hub.release.wait()
                return self._reset()
            return self.plain(fault.status, fault.body, fault.headers)
        if not path.startswith(hub.repo):
            return self.plain(401, b"", {"X-Error-Code": "RepoNotFound"})
        rest = path.removeprefix(hub.repo)
        if rest in ("", "/revision/main", f"/revision/{hub.commit}"):
            info = {"id": hub.repo, "sha": hub.commit, "gated": "manual" if hub.gated else False}
            return self.json(info | {"tags": ["gguf", "license:apache-2.0"], "private": False})
        if rest == f"/tree/{hub.commit}":
            return self.json(hub.tree())
        return self.plain(404, b"", {"X-Error-Code": "RevisionNotFound"})

    def _resolve(self, hub: FaultyHub, path: str) -> None:
        if hub.refuse is not None:
            return self.plain(hub.refuse[0], b"", hub.refuse[1])
        if hub.gated is not None and self.headers.get("Authorization") != f"Bearer {hub.gated}":
            return self.plain(403, b"", {"X-Error-Code": "GatedRepo"})
        if path not in hub.files:
            return self.plain(404, b"", {"X-Error-Code": "EntryNotFound"})
        if hub.cdn is None or path not in hub.lfs:
            return self.send_file(hub, path)
        location = hub.cdn.new_link(path)
        headers = {
            "Location": location if hub.relative else hub.cdn.url + location,
            "X-Repo-Commit": hub.commit,
            "X-Linked-Size": str(len(hub.files[path])),
            "X-Linked-Etag": f'"{hashlib.sha256(hub.files[path]).hexdigest()}"',
        }
        return self.plain(302, b"Found. Redirecting", headers)

    def _cdn(self, hub: FaultyHub, path: str, token: str) -> None:
        if not hub.use_link(token):
            return self.plain(403, b"<Error>Request has expired</Error>", {})
        return self.send_file(hub, path)

    def send_file(self, hub: FaultyHub, path: str) -> None:
        content = hub.files[path]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        entry = Sent(path, start, 206 if start else 200, authorization=self.headers.get("Authorization"))
        with hub.gate:
            hub.log.append(entry)
        fault = hub.fault_for(path)
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            entry.status = fault.status
            return self.plain(fault.status, fault.body, fault.headers)
        if start >= len(content) and start:
            entry.status = 416
            return self.plain(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        if kind == "ignore range":
            start, entry.status = 0, 200
        self._head(entry, start, len(content), kind)
        body = content[start:]
        if kind == "shifted" and start:
            body = content[start - 1 : -1]
        if kind == "flip" and fault and fault.at >= start:
            flipped = bytearray(body)
            flipped[fault.at - start] ^= 1
            body = bytes(flipped)
        for block in self._until_it_breaks(body, fault):
            self.wfile.write(block)
            with hub.gate:
                entry.sent += len(block)
                hub.sent_bytes += len(block)
                total = hub.sent_bytes
            hub.on_sent(total)
        return None

    def _head(self, entry: Sent, start: int, size: int, kind: str) -> None:
        self.send_response(entry.status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size - start))
        if entry.status == 206:
            moved = 1 if kind == "shifted" else 0
            self.send_header("Content-Range", f"bytes {start - moved}-{size - 1 - moved}/{size}")
        self.end_headers()

    def _until_it_breaks(self, body: bytes, fault: Fault | None) -> Iterator[bytes]:
        """Yield the blocks of a body up to the byte of the fault, then do the fault."""
        breaks = fault if fault and fault.kind in ("truncated", "reset", "stall") else None
        end = min(breaks.at, len(body)) if breaks else len(body)
        for begin in range(0, end, _STEP):
            yield body[begin : min(begin + _STEP, end)]
        if breaks is None:
            return
        if breaks.kind == "stall":
            self.server.hub.release.wait()
        self.close_connection = True
        if breaks.kind == "reset":
            self._reset()

    def _reset(self) -> None:
        """Close the connection with a reset, not a normal end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def json(self, value: Any) -> None:
        self.plain(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


FaultyHub.handler = Handler


def manifest_toml(repo: str, roles: dict[str, str], variants: dict[str, list[str]]) -> str:
    """Return a manifest. `roles`: role → model id. Each model has one variant in `repo` with these file patterns."""
    lines = ["schema = 1", 'name = "test-set"', "[roles]", *(f'{role} = ["{id_}"]' for role, id_ in roles.items())]
    for id_, patterns in variants.items():
        lines += [f"[models.{id_}]", f'repo = "{repo}"', 'license = "apache-2.0"', "context = 4096"]
        lines += [f"[[models.{id_}.variants]]", 'format = "gguf"', 'quant = "Q4_K_M"', f'repo = "{repo}"']
        lines += ['revision = "main"', f"files = {json.dumps(patterns)}"]
    return "\n".join(lines) + "\n"
