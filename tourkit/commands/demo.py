"""`tourkit demo`: from the hub to the answers with the built-in tiny model. Each step runs a command of tourkit.

The names in the documents are new to the model: its training had others. Every answer is compared with the document.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tourkit import data, scratch
from tourkit.errors import EngineError, LocalError

Say = Callable[[str], None]

_MODEL = "tiny"
_REPO = "tourkit/tiny-GGUF"
_COMMIT = "0" * 39 + "1"  # the demo's own hub has one made-up commit
_QUANT = "F16"
_CONTEXT = 2048  # tokens: the context the model was trained for
_MANIFEST = f"""\
schema = 1
name = "demo"
summary = "All roles on the built-in tiny model"
[roles]
brain = ["{_MODEL}"]
fast = ["{_MODEL}"]
tool = ["{_MODEL}"]
graph = ["{_MODEL}"]
[models.{_MODEL}]
repo = "{_REPO}"
license = "apache-2.0"
context = {_CONTEXT}
[[models.{_MODEL}.variants]]
format = "gguf"
quant = "{_QUANT}"
repo = "{_REPO}"
revision = "main"
files = ["*.gguf"]
"""
TEMPLATES = ("json_extraction", "graph_extraction", "self_consistency")


def run(say: Say, *, keep: Path | None = None, documents: int = 6) -> None:
    """Run all steps in the folder `keep`, or in a temporary folder.

    Raises EngineError if a step fails, LocalError if the weights are missing.
    """
    if not data.TINY_GGUF.is_file():
        raise LocalError(f"{data.TINY_GGUF}: no tiny model: check out weights/ too, or run `make tiny-model`")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        _trip(say, keep.resolve(), documents)
        say(f"\nThe bundle and the results are in {keep}")
        return
    with scratch.folder("demo") as folder:
        _trip(say, folder, documents)


def _trip(say: Say, work: Path, documents: int) -> None:
    """Run the steps in the folder `work`, so that the printed commands have short paths."""
    started = time.monotonic()
    with _step(say, "Make a hub to fetch from; it holds the built-in tiny model"):
        _make_upstream(work / "upstream")
        (work / "demo.toml").write_text(_MANIFEST)
    with _server(say, work, ["mirror", "upstream", "--host", "127.0.0.1", "--port", "0"]) as endpoint:
        hub = {"HF_ENDPOINT": endpoint}
        _command(say, work, "Pin every file: commit, size, SHA-256", ["lock", "demo.toml"], hub)
        fetch = ["prefetch", "demo.toml", "--to", "bundle"]
        _command(say, work, "Download the files of the lock into a bundle", fetch, hub)
    _command(say, work, "The hub is stopped; check every byte of the bundle", ["verify", "bundle"])
    serve = ["serve", "--bundle", "bundle", "--offline", "--port", "0", "--context", str(_CONTEXT)]
    with _server(say, work, serve) as url:
        for name in TEMPLATES:
            _template(say, work, name, url, documents)
    say(f"\nAll steps together: {time.monotonic() - started:.1f} s")


def _make_upstream(root: Path) -> None:
    from tourkit.bundle.build import build_index
    from tourkit.bundle.index import BundleModel, BundleVariant, write_index

    model = BundleModel(_MODEL, _REPO, "apache-2.0", _CONTEXT, None, False)
    variant = BundleVariant(_MODEL, _QUANT, "gguf", _REPO, "main", _COMMIT)
    folder = root / variant.id.folder
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data.TINY_GGUF, folder / data.TINY_GGUF.name)
    write_index(root, build_index(root, "upstream", {"tool": [_MODEL]}, [model], [variant]))


def _template(say: Say, work: Path, name: str, url: str, documents: int) -> None:
    """Run a template on some documents, and compare the answers with the right ones."""
    source = data.TINY_DOCUMENTS / name
    lines = {
        part: (source / f"{part}.jsonl").read_text(encoding="utf-8").splitlines() for part in ("documents", "gold")
    }
    chosen = _spread(list(zip(lines["documents"], lines["gold"], strict=True)), documents)
    docs, out = f"{name}.docs.jsonl", f"{name}.out.jsonl"
    (work / docs).write_text("".join(f"{document}\n" for document, _ in chosen), encoding="utf-8")
    (work / out).unlink(missing_ok=True)
    title = f"{len(chosen)} documents through the template {name}"
    _command(say, work, title, ["run", name, "--input", docs, "--output", out], {"TOURKIT_URL": url})
    records = (work / out).read_text(encoding="utf-8").splitlines()
    hits = total = 0
    for (document, gold), record in zip(chosen, records, strict=True):
        right, found = facts(json.loads(gold)), facts(json.loads(record))
        _show(say, json.loads(document), json.loads(record), json.loads(gold))
        hits += (right & found).total()
        total += right.total()
    say(f"  {hits} of {total} facts found correctly")


def _spread(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Return `count` pairs, spread over the file. The two languages alternate in it, so both are chosen."""
    count = min(count, len(pairs))
    return [pairs[min(i * len(pairs) // count + i % 2, len(pairs) - 1)] for i in range(count)]


def facts(record: dict[str, Any]) -> Counter[str]:
    """Return the facts in a record of one of the three templates: fields, nodes, edges, or the answer."""
    if "nodes" in record:
        nodes = ["{name} is a {type}".format(**node) for node in record["nodes"]]
        return Counter(nodes + ["{from} {label} {to}".format(**edge) for edge in record["edges"]])
    if "answer" in record:
        return Counter([f"the answer is {record['answer']}"])
    return Counter(_leaves(record.get("data"), ""))


def _leaves(value: Any, at: str) -> list[str]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{at}/{key}")]
    return [f"{at}: {json.dumps(value, ensure_ascii=False)}"]


def _show(say: Say, document: dict[str, Any], record: dict[str, Any], gold: dict[str, Any]) -> None:
    text = " ".join(str(document.get("text", "")).split())
    say(f"    {document['id']}: {text[:90]}{'…' if len(text) > 90 else ''}")
    stated = ", ".join(facts(record).elements()).replace('"', "") if record.get("ok") else str(record.get("error"))
    say(f"      {'=' if facts(record) == facts(gold) else '≠'} {stated[:220]}{'…' if len(stated) > 220 else ''}")


@contextmanager
def _step(say: Say, title: str) -> Iterator[None]:
    say(f"\n▸ {title}")
    started = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - started:.1f} s")


def _command(say: Say, work: Path, title: str, arguments: list[str], environment: dict[str, str] | None = None) -> None:
    with _step(say, title):
        say(f"  $ tourkit {' '.join(arguments)}")
        done = subprocess.run(
            [sys.executable, "-m", "tourkit", *arguments],
            cwd=work,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            say(f"  {line}")
        if done.returncode != 0:
            raise EngineError(f"`tourkit {arguments[0]}` exited with {done.returncode}: {_last_line(done.stderr)}")


@contextmanager
def _server(say: Say, work: Path, arguments: list[str]) -> Iterator[str]:
    """Run a server command until the block ends. Yields the URL that the server prints."""
    say(f"\n▸ In the background: $ tourkit {' '.join(arguments)}")
    log = work / f"{arguments[0]}.log"
    with log.open("w", encoding="utf-8") as errors:
        command = [sys.executable, "-m", "tourkit", *arguments]
        process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _url(process, log)
        finally:
            process.terminate()
            process.communicate()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    for line in process.stdout or ():
        found = re.search(r"http://[^\s/)]+", line)
        if found:
            return found[0]
    raise EngineError(f"the server did not start: {_last_line(log.read_text(encoding='utf-8'))}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]
