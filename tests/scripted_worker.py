"""A worker without tourkit and without a model, which starts in a moment: a real process that follows a script.

The gateway starts it as `python -m scripted_worker`. `launch.model` names the script, and `launch.path` is a folder for
its notes: `starts` gets a character for each process, `asked` a line for each request. A file `go` in it ends the
waiting of every request `wait`, and the stream of every request `stream`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

IDLE = {"seconds": 0.0, "tokens": 0, "rate": 0.0}
STUCK = {"seconds": 700.0, "tokens": 512, "rate": 100.0}


def tell(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def beat(activity: dict[str, Any] = IDLE) -> None:
    tell({"activity": activity, "loop_wait": 0.0, "trial": "", "ends": False})


def beat_for_ever(period: float) -> None:
    while True:
        beat()
        time.sleep(period)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def serve(notes: Path) -> str:
    """Serve in a thread and return the address. The library is imported here, so that a process can die sooner."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        """Notes the prompt of a request and does what it says. The first `hold` waits for ever."""

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
            had = (notes / "asked").read_text().split() if (notes / "asked").exists() else []
            with (notes / "asked").open("a") as file:
                file.write(f"{prompt}\n")
            if prompt == "die":
                die()
            if prompt == "die-in-trial":
                trial = {"trial": self.headers["x-tourkit-request"], "ends": False}
                tell({"activity": IDLE, "loop_wait": 0.0} | trial)
                die()
            while prompt == "wait" and not (notes / "go").exists():
                time.sleep(0.01)
            if prompt == "hold" and "hold" not in had:
                threading.Event().wait()
            if prompt == "stream":
                self.stream()
                return
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def stream(self) -> None:
            """Send one event, wait for `go`, and send the end."""
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b'data: {"n": 1}\n\n')
            while not (notes / "go").exists():
                time.sleep(0.01)
            self.wfile.write(b"data: [DONE]\n\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    script, notes = spec["launch"]["model"], Path(spec["launch"]["path"])
    with (notes / "starts").open("a") as file:
        file.write(".")
    starts = len((notes / "starts").read_text())
    if script == "never-loads":
        die()
    if script.startswith("dies-") and starts <= int(script.split("-")[1]):
        tell({"address": "127.0.0.1:9", "error": None})
        die()
    if script.startswith("full-") and starts <= int(script.split("-")[1]):
        tell({"address": "", "error": "cudaMalloc failed: out of memory"})
        return
    tell({"address": serve(notes), "error": None})
    if script == "hangs-in-a-call" and starts == 1:
        beat(STUCK)
    if script != "is-silent-once" or starts > 1:
        threading.Thread(target=beat_for_ever, args=(spec["beat"],), daemon=True).start()
    sys.stdin.read()  # it ends when the gateway closes it


if __name__ == "__main__":
    main()
