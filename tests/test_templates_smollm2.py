"""The templates on a real small model, SmolLM2-135M-Instruct. It knows English only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import serve_command

from tourkit.client import Client, Reply
from tourkit.data import TEMPLATES
from tourkit.pipelines.templates import load_template

pytestmark = pytest.mark.starts


def rows(name: str, file: str) -> dict[str, dict[str, Any]]:
    text = (TEMPLATES / name / file).read_text(encoding="utf-8")
    return {row["id"]: row for row in map(json.loads, text.splitlines())}


@pytest.fixture(scope="module")
def smollm2_url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("smollm2") / "log"
    with serve_command([str(smollm2), "--offline", "--context", "2048"], log) as running:
        yield running.url


def fields(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if not isinstance(value, dict)} | data.get("contact", {})


def test_json_extraction_invents_no_text_and_gets_half_of_a_notice_right(smollm2_url: str) -> None:
    """Without the choices that the document offers, 1 of these 7 fields was right, and e-mail and phone invented."""
    document, gold = rows("json_extraction", "documents.jsonl")["notice-01"], rows("json_extraction", "gold.jsonl")
    with Client(smollm2_url) as client:
        record = load_template("json_extraction").run(document, client)

    wanted, found = fields(gold["notice-01"]["data"]), fields(record["data"])
    assert (record["ok"], record["ungrounded"]) == (True, [])
    assert (found["phone"], found["email"]) == (wanted["phone"], wanted["email"])
    assert sum(found[key] == value for key, value in wanted.items()) >= 4


class Hurried(Client):
    """A client whose deadline comes when the first sample is whole."""

    def _whole_answers(self, *given: Any) -> Iterator[tuple[int, Reply]]:
        for answer in super()._whole_answers(*given):
            self.ends = time.monotonic()
            yield answer


def test_self_consistency_votes_with_the_samples_from_before_the_deadline(smollm2_url: str) -> None:
    document = {"id": "q", "text": "Is ice cold?", "choices": ["yes", "no"]}
    with Hurried(smollm2_url, ends=time.monotonic() + 3600) as client:
        record = load_template("self_consistency").run(document, client)

    assert (record["ok"], record["late"], record["samples"], record["voted"]) == (True, True, 1, 1)
    assert record["answer"] in document["choices"]
