"""A hub on loopback for benchmarks: one repository from a folder, bytes sent by sendfile, no faults.

`python bench/local_hub.py FOLDER` prints its URL and serves until its standard input ends. Every file is an LFS file,
so both sides know its SHA-256. It is redirected to a storage path, as on the real hub.
"""

import hashlib
import json
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPO = "bench/three-gguf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    storage: str  # another origin, as the real hub's is
    sha256: dict[str, str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._redirect(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        elif path.startswith("/storage/"):
            self._send(self.folder / path.removeprefix("/storage/"))
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            self._json([self._entry(name) for name in sorted(self.sha256)])
        elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/{COMMIT}"):
            self._json({"id": REPO, "sha": COMMIT, "gated": False, "private": False, "tags": []})
        else:
            self.send_error(404)

    def _entry(self, name: str) -> dict[str, Any]:
        size, oid = (self.folder / name).stat().st_size, self.sha256[name]
        pointer = hashlib.sha1(oid.encode()).hexdigest()
        lfs = {"oid": oid, "size": size, "pointerSize": 134}
        return {"type": "file", "path": name, "size": size, "oid": pointer, "lfs": lfs}

    def _redirect(self, name: str) -> None:
        self.send_response(302)
        for key, value in {
            "Location": f"{self.storage}/storage/{urllib.parse.quote(name)}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str((self.folder / name).stat().st_size),
            "X-Linked-Etag": f'"{self.sha256[name]}"',
            "Content-Length": "0",
        }.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, path: Path) -> None:
        size = path.stat().st_size
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file:
                self.connection.sendfile(file, start)

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    Handler.sha256 = {}
    for path in sorted(Handler.folder.iterdir()):
        with path.open("rb") as file:
            Handler.sha256[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    hub, storage = (ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2))
    Handler.storage = f"http://127.0.0.1:{storage.server_address[1]}"
    for server in (hub, storage):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{hub.server_address[1]}", flush=True)
    sys.stdin.read()
    for server in (hub, storage):
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
