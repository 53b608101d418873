"""The trip of the demo on real models: SmolLM2-135M-Instruct answers, all-MiniLM-L6-v2 makes vectors.

The documents and the right answers are those of the templates. A model of this size gets many things wrong: each wrong
answer is shown with the right one.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tourkit import data
from tourkit.client import Client
from tourkit.commands.demo_steps import Say, command, server, step
from tourkit.commands.minilm import write_gguf
from tourkit.errors import EngineError, HubError, UsageError, one_line
from tourkit.units import counted

_SET = "smol"
_CONTEXT = 2048  # tokens: enough for each request below, and a small KV cache
_VECTORS = "models/all-minilm-l6-v2/F32-WHEEL"  # in the bundle
# Questions, and a word of the right answer.
_QUESTIONS = (
    ("What is the capital of France? Answer in one sentence.", "Paris"),
    ("Which planet is called the red planet? Answer in one sentence.", "Mars"),
    ("What is 17 + 25? Answer with the number.", "42"),
)
# Questions to the documents, and the document that answers each. No question has a rare word of its document.
_SEARCHES = (
    ("Which road can cars not use this summer?", "notice-02"),
    ("Who examined the saliva?", "lab-04"),
    ("Where can I listen to music in November?", "event-02"),
    ("I want money for my small project. What is the last day to ask?", "notice-04"),
)
_WIDTH = 90  # characters of a document that are shown


def is_kept(folder: Path) -> bool:
    """Return whether an earlier demo left its bundle in the folder: then nothing is downloaded."""
    return (folder / "bundle" / _VECTORS).is_dir()


def missing_index() -> str:
    """Return why the package index cannot give the models now; "" if it can."""
    from tourkit.fetch.http import Patience
    from tourkit.fetch.packages.offers import offers
    from tourkit.fetch.wheels.package_index import PackageIndex
    from tourkit.fetch.wheels.pip_settings import read_settings
    from tourkit.manifest import lock

    index = None
    try:
        index = PackageIndex(read_settings(), Patience(attempts=1, stall_s=10))
        locked = lock.read(data.MANIFESTS / f"{_SET}.lock.json").variants
        for variant in (each for each in locked if isinstance(each, lock.LockedVariant)):
            for pin in variant.parts:
                if not any(offer.file == pin.file for offer in offers(pin.part.package, index)):
                    return f"the package index has no {pin.file}"
    except (HubError, UsageError) as exc:
        return f"the package index cannot be asked ({one_line(str(exc))})"
    finally:
        if index is not None:
            index.close()
    return ""


def trip(say: Say, work: Path, documents: int) -> None:
    """Run all steps in the folder `work`. `documents`: for each template. Raises EngineError if a step fails."""
    say("Two real models of 90 MB each: SmolLM2-135M-Instruct writes, all-MiniLM-L6-v2 makes vectors.")
    say("They are small, so they make mistakes. = marks a right answer, ≠ a wrong one, with the right one beside it.")
    fetch = ["prefetch", _SET, "--to", "bundle"]
    command(say, work, "Download what the lock of the set smol pins, from the package index", fetch)
    command(say, work, "Check every byte of the bundle, as on site", ["verify", "bundle"])
    serve = ["serve", "--bundle", "bundle", "--offline", "--port", "0", "--context", str(_CONTEXT)]
    with server(say, work, [*serve, "--role", "brain", "--role", "fast"]) as url:
        with step(say, "Questions to the role brain"), Client(url) as client:
            _ask(say, client)
        _extract(say, work, url, documents)
        _vote(say, work, url, (documents + 1) // 2)
    with step(say, "MiniLM's safetensors as GGUF: llama.cpp serves it without torch"):
        write_gguf(work / "bundle" / _VECTORS, work / "minilm.gguf")
    with server(say, work, ["serve", "minilm.gguf", "--offline", "--port", "0"]) as url:
        _search(say, url)


def _ask(say: Say, client: Client) -> None:
    right = 0
    for question, word in _QUESTIONS:
        answer = " ".join(client.chat(question, model="brain", temperature=0, max_tokens=40).text.split())
        good = word in answer
        answer = _short(answer)
        right += good
        say(f"    {question}")
        say(f"      = {answer}" if good else f"      ≠ {answer} (right: {word})")
    say(f"  {right} of {len(_QUESTIONS)} answers right")


def _extract(say: Say, work: Path, url: str, documents: int) -> None:
    """Show each field that the template finds in English documents, beside the right value."""
    chosen = _spread(_english("json_extraction"), documents)
    title = f"{counted(len(chosen), 'document')} through the template json_extraction"
    right = total = 0
    for (document, gold), record in zip(chosen, _run(say, work, url, "json_extraction", title, chosen), strict=True):
        say(f"    {document['id']}: {_short(document['text'])}")
        if not record["ok"]:
            say(f"      ≠ {record['error']}")
        found, wanted = dict(_fields(record.get("data"))), dict(_fields(gold["data"]))
        good = [f"{key}: {value}" for key, value in wanted.items() if found.get(key) == value]
        if good:
            say(f"      = {', '.join(good)}")
        for key in {**wanted, **found}:
            if found.get(key) != wanted.get(key):
                say(f"      ≠ {key}: {found.get(key, 'missing')} (right: {wanted.get(key, 'no such field')})")
        right += len(good)
        total += len(wanted)
    say(f"  {right} of {total} fields right")


def _vote(say: Say, work: Path, url: str, documents: int) -> None:
    """Show the winner of the vote on problems with a few possible answers."""
    problems = [pair for pair in _english("self_consistency") if "choices" in pair[0]]
    chosen = _spread(problems, documents)
    title = f"A vote over several samples of each answer: {counted(len(chosen), 'problem')}"
    right = 0
    for (document, gold), record in zip(chosen, _run(say, work, url, "self_consistency", title, chosen), strict=True):
        say(f"    {document['id']}: {document['text']}")
        answer, wanted = record.get("answer", record.get("error")), gold["answer"]
        votes = f"{record['share']:.0%} of {record['samples']} votes" if record["ok"] else "no vote"
        right += answer == wanted
        say(f"      = {answer}, {votes}" if answer == wanted else f"      ≠ {answer}, {votes} (right: {wanted})")
    say(f"  {right} of {len(chosen)} answers right")


def _search(say: Say, url: str) -> None:
    """Show the document whose vector is nearest to the vector of each question."""
    texts = {document["id"]: document["text"] for document, _ in _english("json_extraction")}
    with step(say, f"Search {len(texts)} documents by meaning: the nearest vector"):
        known = _vectors(url, list(texts.values()))
        asked = _vectors(url, [question for question, _ in _SEARCHES])
        right = 0
        for (question, wanted), vector in zip(_SEARCHES, asked, strict=True):
            nearness = [sum(a * b for a, b in zip(vector, other, strict=True)) for other in known]
            found = list(texts)[nearness.index(max(nearness))]
            right += found == wanted
            say(f"    {question}")
            mark, note = ("=", "") if found == wanted else ("≠", f" (right: {wanted}: {_short(texts[wanted])})")
            say(f"      {mark} {found}: {_short(texts[found])}{note}")
        say(f"  {right} of {len(_SEARCHES)} documents right")


def _vectors(url: str, texts: Sequence[str]) -> list[list[float]]:
    """Return the vector of each text. Raises EngineError if the server refuses them."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    try:
        body = json.dumps({"model": "minilm", "input": texts})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.HTTPStatus.OK:
            raise EngineError(f"/v1/embeddings answered {response.status}: {one_line(answer.decode(errors='replace'))}")
    finally:
        connection.close()
    return [row["embedding"] for row in json.loads(answer)["data"]]


_Pair = tuple[dict[str, Any], dict[str, Any]]  # a document, and what is right about it


def _english(template: str) -> list[_Pair]:
    """Return the English documents of a template: SmolLM2 and MiniLM know no other language."""
    folder = data.TEMPLATES / template
    documents, golds = (
        [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        for part in ("documents", "gold")
    )
    return [pair for pair in zip(documents, golds, strict=True) if pair[0]["lang"] == "en"]


def _spread(pairs: Sequence[_Pair], count: int) -> list[_Pair]:
    """Return `count` pairs, spread over all of them, so that each kind of document is chosen."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def _run(say: Say, work: Path, url: str, template: str, title: str, chosen: Sequence[_Pair]) -> list[dict[str, Any]]:
    """Run a template on the documents as a user does, and return its records."""
    docs, out = work / f"{template}.docs.jsonl", work / f"{template}.out.jsonl"
    lines = [json.dumps(document, ensure_ascii=False) for document, _ in chosen]
    docs.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for left in (out, out.with_name(f"{out.name}.journal")):  # of an earlier demo, which may have been interrupted
        left.unlink(missing_ok=True)
    command(say, work, title, ["run", template, "--input", docs.name, "--output", out.name], {"TOURKIT_URL": url})
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def _fields(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Return each value in an object by its path, such as items.0.price, as text."""
    if isinstance(value, dict):
        return [field for name, part in value.items() for field in _fields(part, f"{key}.{name}".lstrip("."))]
    if isinstance(value, list) and value:
        return [field for i, part in enumerate(value) for field in _fields(part, f"{key}.{i}")]
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _WIDTH else f"{plain[:_WIDTH].rstrip()}…"
