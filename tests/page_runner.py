"""Run the commands of a page as a reader types them, and compare what they print with what the page shows.

The convention of the pages:

- A block in the language `console` has commands after `$ ` and what they print. The blocks of a page run from top to
  bottom in one folder. A line of output that is only `…` stands for lines that the page leaves out, and a line that
  ends with `…` is the beginning of a longer one.
- A block that begins with `# NAME.py` or `# NAME.toml` is a file. It is written before the next command.
- `tourkit serve` and `tourkit mirror` run until the page ends, or until a later one takes the same port. Each gets a
  free port; it replaces the port of the page in the commands that follow.
- `/media/usb` is a folder of the run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import waiting

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w[\w.-]*\.(?:py|toml))\n")
SERVERS = {"serve": "8000", "mirror": "8090"}  # command: its default port
DRIVE = "/media/usb"
LEFT_OUT = "…"


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page and the lines that the page shows after it. Without lines, it must succeed and may print."""

    text: str
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class File:
    name: str
    text: str


def steps(page: str) -> Iterator[Command | File]:
    """The commands and the files of a page, in its order."""
    for language, body in BLOCK.findall(page):
        if language == "console":
            yield from _commands(body)
        elif named := FILE.match(body):
            yield File(named[1], body)


def _commands(body: str) -> Iterator[Command]:
    lines = body.splitlines()
    assert lines[0].startswith("$ "), f"a console block begins with a command: {lines[0]}"
    while lines:
        text = lines.pop(0).removeprefix("$ ")
        while text.endswith("\\"):
            text = text[:-1] + lines.pop(0).strip()
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield Command(text, tuple(line for line in shown if line.strip()))


# --- shapes ----------------------------------------------------------------------------------------------------------

HASH = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,64}\b…?")
# A word such as tiny-f16 or json-01 keeps its digits.
NUMBER = re.compile(r"(?<![\w-])[-+]?\d[\d.,:/-]*(?:\s?(?:[KMGT]iB|B|ms|s|%))?(?!\w)")


def shape(line: str) -> str:
    """A line without its figures: numbers with units, hashes and spaces. Of JSON, the keys and the kinds of values."""
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict | list):
        return json.dumps(_kinds(parsed))
    return " ".join(NUMBER.sub("0", HASH.sub("0", line)).split())


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_kinds(part) for part in value]
    if isinstance(value, bool | None):
        return value
    return "text" if isinstance(value, str) else "number"


def fits(shown: list[str], printed: list[str]) -> bool:
    """Whether the printed lines have the shapes of the shown ones, of which some may stand for others (LEFT_OUT)."""
    if not shown:
        return not printed
    first, rest = shown[0].strip(), shown[1:]
    if first == LEFT_OUT:
        return any(fits(rest, printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and _same(first, printed[0]) and fits(rest, printed[1:])


def _same(shown: str, printed: str) -> bool:
    if shown.endswith(LEFT_OUT):
        return shape(printed).startswith(shape(shown.removesuffix(LEFT_OUT)))
    return shape(shown) == shape(printed)


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Server:
    process: subprocess.Popen[bytes]
    log: Path
    url: str


@dataclass(slots=True)
class Run:
    """One page's run in `folder`. `instead` maps a command to what was printed by it before: it is not run again."""

    folder: Path
    environment: dict[str, str]
    instead: dict[str, str] = field(default_factory=dict)
    _servers: dict[str, _Server] = field(default_factory=dict)

    def step(self, step: Command | File) -> str:
        """Run a step. Return what is wrong: it prints something else than the page shows, or it fails. Else ""."""
        if isinstance(step, File):
            (self.folder / step.name).write_text(self._located(step.text), encoding="utf-8")
            return ""
        text = self._located(step.text)
        words = [word for word in shlex.split(text, comments=True) if word != "&"]
        if words[:1] == ["export"]:
            name, _, value = words[1].partition("=")
            self.environment[name] = value
            return ""
        if words[:1] == ["cd"]:
            self.folder = self.folder / words[1]
            return ""
        if words[:1] == ["tourkit"] and words[1] in SERVERS:
            printed = self._start(words, len(step.shown))
        else:
            printed, failed = self.instead.get(step.text, ""), False
            if not printed:
                printed, failed = self._call(text)
            if failed and not step.shown:
                return f"$ {step.text}\nfails: {printed}"
        lines = [line for line in self._as_on_the_page(printed).splitlines() if line.strip()]
        if not step.shown or fits(list(step.shown), lines):
            return ""
        return "\n".join([f"$ {step.text}", "the page shows:", *step.shown, "it prints:", *lines])

    def close(self) -> None:
        for server in self._servers.values():
            _end(server)
        self._servers.clear()

    def _located(self, text: str) -> str:
        """A command or a file with this run's folder and ports in place of the page's."""
        text = text.replace(DRIVE, str(self.folder / "usb"))
        for port, server in self._servers.items():
            text = re.sub(rf"http://[\w.-]+:{port}\b", server.url, text)
        return text

    def _as_on_the_page(self, printed: str) -> str:
        return printed.replace(str(self.folder / "usb"), DRIVE).replace(f"{self.folder}/", "")

    def _call(self, text: str) -> tuple[str, bool]:
        """What a command prints, with its last line on stderr if it fails; and whether it fails."""
        done = subprocess.run(
            ["bash", "-c", text], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 127:
            raise AssertionError(f"{text}: {done.stderr}")
        if done.returncode == 0:
            return done.stdout, False
        return done.stdout + "".join(done.stderr.splitlines(keepends=True)[-1:]), True

    def _start(self, words: list[str], expected: int) -> str:
        """Start a server on a free port and return as many lines of it as are expected: others may come at any time."""
        port = words[words.index("--port") + 1] if "--port" in words else SERVERS[words[1]]
        if port in self._servers:
            _end(self._servers.pop(port))
        log = self.folder / f"{words[1]}-{port}.log"
        command = [*words, *([] if "--host" in words else ["--host", "127.0.0.1"]), "--port", "0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        server = _Server(process, log, "")
        self._servers[port] = server

        def printed() -> list[str]:
            return [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]

        waiting.until(lambda: process.poll() is not None or len(printed()) >= max(expected, 1))
        urls = re.findall(r"http://[^\s/)]+", log.read_text(encoding="utf-8"))
        assert urls, f"{shlex.join(words)} did not start: {log.read_text(encoding='utf-8')}"
        server.url = urls[0]
        if words[1] == "serve" and port == SERVERS["serve"]:
            self.environment["TOURKIT_URL"] = server.url
        return "\n".join(printed()[:expected])


def _end(server: _Server) -> None:
    server.process.terminate()
    server.process.wait()


def prepare(folder: Path, hub: str) -> Run:
    """A run in `folder`, which looks like a checkout to its commands: `hub` is the URL of a hub with the tiny model."""
    for name in ("weights", "templates", "tools", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "usb").mkdir()
    (folder / "manifests").mkdir()
    for path in (ROOT / "manifests").glob("*.*"):
        (folder / "manifests" / path.name).write_bytes(path.read_bytes())
    programs = folder / ".programs"
    programs.mkdir()
    for name, arguments in (("tourkit", "-m tourkit "), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / ".hub"),
        "COLUMNS": "120",
    }
    return Run(folder, environment)
