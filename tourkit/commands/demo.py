"""`tourkit demo`: from the weights to the answers. Each step runs a command of tourkit.

The models are real (demo_real). Here is the trip of the built-in tiny model, which needs no network. The names in its
documents are new to it: its training had others. Every answer is compared with the right one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tourkit import data, scratch
from tourkit.commands import demo_real
from tourkit.commands.demo_steps import Say, command, server, step
from tourkit.errors import LocalError

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


def run(say: Say, *, keep: Path | None = None, documents: int = 6, tiny: bool = False) -> None:
    """Run all steps in the folder `keep`, or in a temporary folder.

    `documents`: for each template. `tiny`: the built-in model instead of the real ones. It also takes their place if
    the package index cannot be asked. Raises EngineError if a step fails, LocalError if the weights are missing.
    """
    kept = keep is not None and demo_real.is_kept(keep)
    why = "you asked for --tiny" if tiny else "" if kept else demo_real.missing_index()
    if why:
        say(f"The built-in tiny model (5 million parameters) takes the place of the real models: {why}")
        if not data.TINY_GGUF.is_file():
            raise LocalError(f"{data.TINY_GGUF}: no tiny model: check out weights/ too, or run `make tiny-model`")
    trip = _tiny_trip if why else demo_real.trip
    with scratch.folder("demo") if keep is None else _kept(keep) as folder:
        started = time.monotonic()
        trip(say, folder, documents)
        say(f"\nAll steps together: {time.monotonic() - started:.1f} s")
    if keep is not None:
        say(f"The bundle and the results are in {keep}")


def _kept(folder: Path) -> AbstractContextManager[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return nullcontext(folder.resolve())


def _tiny_trip(say: Say, work: Path, documents: int) -> None:
    """Run the steps in the folder `work`, so that the printed commands have short paths."""
    with step(say, "Make a hub to fetch from; it holds the built-in tiny model"):
        _make_upstream(work / "upstream")
        (work / "demo.toml").write_text(_MANIFEST)
    with server(say, work, ["mirror", "upstream", "--host", "127.0.0.1", "--port", "0"]) as endpoint:
        hub = {"HF_ENDPOINT": endpoint}
        command(say, work, "Pin every file: commit, size, SHA-256", ["lock", "demo.toml"], hub)
        fetch = ["prefetch", "demo.toml", "--to", "bundle"]
        command(say, work, "Download the files of the lock into a bundle", fetch, hub)
    command(say, work, "The hub is stopped; check every byte of the bundle", ["verify", "bundle"])
    serve = ["serve", "--bundle", "bundle", "--offline", "--port", "0", "--context", str(_CONTEXT)]
    with server(say, work, serve) as url:
        for name in TEMPLATES:
            _template(say, work, name, url, documents)


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
    for left in (out, f"{out}.journal"):  # of an earlier demo, which may have been interrupted
        (work / left).unlink(missing_ok=True)
    title = f"{len(chosen)} documents through the template {name}"
    command(say, work, title, ["run", name, "--input", docs, "--output", out], {"TOURKIT_URL": url})
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
    if missed := ", ".join((facts(gold) - facts(record)).elements()).replace('"', ""):
        say(f"        (right: {missed})")
