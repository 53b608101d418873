"""graph_extraction on SmolLM2, a real model with 135 million parameters: what holds however small the model is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.tiny import evaluate, prompts

pytestmark = pytest.mark.starts

TEMPLATE = prompts.template("graph_extraction")
DOCUMENTS = Path(__file__).resolve().parents[1] / "templates" / "graph_extraction" / "documents.jsonl"
ASKED = "news-03"


class Asker:
    """A client that asks a model in this process. `answers`: the texts of all answers, in order."""

    def __init__(self, model: Path) -> None:
        self._ask = evaluate.asker(model, threads=1)
        self.answers: list[str] = []

    def structured(
        self, messages: list[dict[str, str]], schema: dict[str, Any], temperature: float, thinking: bool
    ) -> Any:
        [text] = self._ask(messages, schema, temperature=temperature)
        self.answers.append(text)
        return json.loads(text)


def test_names_come_from_the_text_and_no_pair_of_entities_is_joined_twice(smollm2: Path) -> None:
    lines = map(json.loads, DOCUMENTS.read_text(encoding="utf-8").splitlines())
    document = next(document for document in lines if document["id"] == ASKED)
    client = Asker(smollm2)
    record = TEMPLATE.run(document, client)

    assert len(client.answers) == 2
    names = [node["name"] for node in record["nodes"]]
    assert len(names) >= 2
    assert not any(re.search(r"\d{3}", name) for name in names), "the model counts"
    assert sum(name in document["text"] for name in names) > len(names) / 2
    pairs = [(edge["from"], edge["to"]) for edge in record["edges"]]
    assert pairs
    assert len(set(pairs)) == len(pairs)
    assert all(source != target for source, target in pairs)
    assert record["dropped"] == []
