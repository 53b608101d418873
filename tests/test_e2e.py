"""All steps on real input: a bundle from mirror, lock and prefetch, served offline to real clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from mirroring import mirrored
from serving import Serving, make_bundle, serving
from template_names import NAMES

pytestmark = pytest.mark.starts

# A model with random weights seldom ends an answer by itself, so every document costs thousands of tokens.
# `make test-documents` asks about every document, CI about a few. test_tiny_model.py asks a trained model about all.
EVERY = bool(os.environ.get("TOURKIT_EVERY_DOCUMENT"))
TEMPLATES = Path(__file__).parent.parent / "templates"
MANIFEST = """\
schema = 1
name = "e2e"
summary = "The tiny random model in every role"
[roles]
brain = ["tiny-random"]
fast = ["tiny-random"]
tool = ["tiny-random"]
graph = ["tiny-random"]
[models.tiny-random]
repo = "tourkit/tiny-random"
license = "apache-2.0"
context = 8192
[[models.tiny-random.variants]]
format = "gguf"
quant = "F16"
repo = "tourkit/tiny-random"
revision = "main"
files = ["*.gguf"]
"""


def tourkit(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tourkit", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def work(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a `bundle` that the commands lock and prefetch made from a mirror."""
    work = tmp_path_factory.mktemp("trip")
    (work / "e2e.toml").write_text(MANIFEST)
    make_bundle(work / "upstream", tiny_gguf)
    with mirrored(work / "upstream") as url:
        for command in (["lock", "e2e.toml"], ["prefetch", "e2e.toml", "--to", "bundle"]):
            done = tourkit(*command, cwd=work, HF_ENDPOINT=url)
            assert done.returncode == 0, done.stderr
    return work


@pytest.fixture(scope="module")
def served(work: Path) -> Iterator[Serving]:
    with serving(work / "bundle", work / "serve.log", "--offline", "--context", "8192") as running:
        yield running


def test_the_bundle_is_whole_for_tourkit_and_for_coreutils(work: Path) -> None:
    ours = tourkit("verify", "bundle", cwd=work)
    theirs = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=work / "bundle", check=False)

    assert ours.returncode == 0, ours.stdout + ours.stderr
    assert theirs.returncode == 0


def test_one_flipped_byte_in_any_file_of_the_bundle_is_named(work: Path) -> None:
    bundle = work / "bundle"
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])

        done = tourkit("verify", "bundle", "--json", cwd=work)

        path.write_bytes(good)
        assert done.returncode == 1
        assert json.loads(done.stdout)["damaged"] == [path.relative_to(bundle).as_posix()]


def schemas() -> dict[str, Any]:
    folder = TEMPLATES / "json_extraction" / "schemas"
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def sample_documents() -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for name in NAMES
        for line in (TEMPLATES / name / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_the_openai_client_gets_valid_json_for_sample_documents_streaming_and_not(served: Serving) -> None:
    """Ask about the documents of all templates. A document without a schema gets one of the schemas in turn."""
    by_kind = schemas()
    every = list(by_kind.values())
    documents = sample_documents()[:: 1 if EVERY else 9]

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:

        def ask(numbered: tuple[int, dict[str, Any]]) -> None:
            i, document = numbered
            schema = by_kind.get(document.get("kind", ""), every[i % len(every)])
            options: dict[str, Any] = {
                "model": ("brain", "fast", "tool", "graph")[i % 4],
                "messages": [{"role": "user", "content": document["text"]}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "record", "schema": schema, "strict": True},
                },
                "max_tokens": 600,
                "seed": i,
            }
            whole = client.chat.completions.create(**options).choices[0].message.content or ""
            stream = client.chat.completions.create(**options, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            for text in (whole, streamed):
                jsonschema.validate(json.loads(text), schema)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, enumerate(documents)))

    assert len(documents) >= (30 if EVERY else 4) * len(NAMES)
    assert {document["lang"] for document in documents} == {"en", "ru"}


@pytest.mark.parametrize("name", NAMES)
def test_a_template_turns_sample_documents_into_a_record_in_order(name: str, served: Serving, work: Path) -> None:
    lines = (TEMPLATES / name / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    lines = lines if EVERY else [lines[0], lines[-1]]
    (work / f"{name}.documents.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    done = tourkit(
        *("run", name, "--input", f"{name}.documents.jsonl", "--output", f"{name}.jsonl"),
        cwd=work,
        TOURKIT_URL=served.url,
    )

    assert done.returncode == 0, done.stderr
    asked = [json.loads(line)["id"] for line in lines]
    records = [json.loads(line) for line in (work / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["id"] for record in records] == asked
    failures = [record for record in records if not record["ok"]]
    assert failures == []
