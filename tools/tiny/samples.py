"""Write held-out documents for the demo and the tests, with their answers: `python -m tools.tiny.samples DIR`.

Each template gets two JSON Lines files: documents for `tourkit run`, and gold for `tourkit eval`.
"""

import re
import sys
from pathlib import Path
from random import Random
from typing import Any

from tools.tiny import prompts, tasks
from tools.tiny.documents import Split
from tools.tiny.evaluate import LANGUAGES
from tools.tiny.names import HELD, TRAIN
from tools.tiny.tasks import Sample

SHIPPED = prompts.ROOT / "weights" / "tiny"
COUNT = 12  # documents per template, every second one in Russian
SPLIT = Split(names=HELD)


def documents(template: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (document, gold) pairs with names that training never saw. They are the same on every machine."""
    rng = Random(f"samples:{template}")
    found = []
    for index in range(COUNT):
        lang = LANGUAGES[index % 2]
        head = {"id": f"{template.split('_')[0]}-{index + 1:02}", "lang": lang}
        found.append(_MAKERS[template](rng, head, lang))
    return found


def _json(rng: Random, head: dict[str, Any], lang: str) -> tuple[dict[str, Any], dict[str, Any]]:
    sample = tasks.json_sample(rng, SPLIT, lang=lang)
    while any(re.fullmatch(r"[a-z]\d", key) for key in sample.about["keys"]):  # keys without a meaning for the reader
        sample = tasks.json_sample(rng, SPLIT, lang=lang)
    return {**head, "text": sample.about["text"], "schema": sample.schema}, {"id": head["id"], "data": sample.gold}


def _graph(rng: Random, head: dict[str, Any], lang: str) -> tuple[dict[str, Any], dict[str, Any]]:
    sample = tasks.graph_sample(rng, SPLIT, lang=lang, full=True)
    form = {"form": "list"} if prompts.learnt_as_list(SHIPPED) else {}
    return {**head, **form, "text": sample.about["text"]}, {"id": head["id"], **sample.gold}


def _sum(rng: Random, head: dict[str, Any], lang: str) -> tuple[dict[str, Any], dict[str, Any]]:
    sample: Sample = tasks.arithmetic_sample(rng, Split(lines=TRAIN), lang=lang)
    text = sample.messages[-2]["content"]
    return {**head, "kind": "number", "text": text}, {"id": head["id"], "answer": int(sample.gold["answer"])}


_MAKERS = {"json_extraction": _json, "graph_extraction": _graph, "self_consistency": _sum}


def main() -> None:
    for template in _MAKERS:
        folder = Path(sys.argv[1]) / template
        folder.mkdir(parents=True, exist_ok=True)
        pairs = documents(template)
        for name, part in (("documents", 0), ("gold", 1)):
            lines = "".join(tasks.dumps(pair[part]) + "\n" for pair in pairs)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
