"""Write the figures of docs/tiny-model.md: `python -m tools.tiny.card --scores FILE --parity FILE --weights DIR`.

The text of the card is written by hand. This module writes the part between its two marks.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tools.tiny import prompts

CARD = Path(__file__).resolve().parents[2] / "docs" / "tiny-model.md"
BEGIN, END = "<!-- figures: written by tools/tiny/card.py -->\n", "<!-- end of figures -->\n"


def figures(scores: dict[str, Any], parity: dict[str, Any], recipe: dict[str, Any], weights: Path) -> str:
    """Return the tables of the card as Markdown."""
    return "\n".join(
        [
            *_aims(scores, parity),
            *_extraction(scores),
            *_others(scores),
            *_voting(scores),
            *_parity(parity),
            *_run(recipe),
            *_files(weights),
            "",
        ]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _aims(scores: dict[str, Any], parity: dict[str, Any]) -> list[str]:
    """Return the table of goals and results, with each language on its own."""

    def fields(suite: str) -> list[float]:
        return [row["fields"] for row in scores["extraction"][suite].values()]

    seen = scores["unseen entities"]
    aims = [
        ("fields, unseen entities (en, ru)", 0.95, fields("unseen entities")),
        ("fields, unseen templates (en, ru)", 0.85, fields("unseen templates")),
        ("fields, unseen schemas (en, ru)", 0.70, fields("unseen schemas")),
        ("graph edges, unseen entities, F1", 0.85, [seen["graph"]["edges"]]),
        ("classification, unseen entities", 0.95, [seen["classify"]]),
        *((f"{name}: same text as the safetensors", 0.97 if "Q8" in name else 0.99, [share])
          for name, share in parity["same_text"].items()),
    ]  # fmt: skip
    lines = ["### Against the aims", "", "| | aim | reached | |", "|---|---|---|---|"]
    for name, aim, found in aims:
        verdict = "met" if min(found) >= aim else "missed"
        lines.append(f"| {name} | {_percent(aim)} | {', '.join(map(_percent, found))} | {verdict} |")
    vote = scores["arithmetic"]["seen wording"]
    verdict = "met" if vote["gain"] > vote["standard_error"] else "missed"
    gain = f"{100 * vote['gain']:+.1f} ± {100 * vote['standard_error']:.1f} points"
    lines.append(f"| sums: a vote of nine against one greedy answer | more than its error | {gain} | {verdict} |")
    return [*lines, ""]


def _extraction(scores: dict[str, Any]) -> list[str]:
    lines = ["### JSON extraction, constrained to the schema, greedy", ""]
    lines += ["| held out | language | fields right | whole objects right | objects |", "|---|---|---|---|---|"]
    for name, languages in scores["extraction"].items():
        for lang, row in languages.items():
            lines.append(
                f"| {name} | {lang} | {_percent(row['fields'])} | {_percent(row['exact'])} | {row['objects']} |"
            )
    return [*lines, ""]


def _others(scores: dict[str, Any]) -> list[str]:
    lines = ["### Other tasks", "", "| task | unseen entities | unseen templates |", "|---|---|---|"]
    seen, unseen = scores["unseen entities"], scores["unseen templates"]
    rows = {
        "graph: F1 of nodes with types": lambda part: part["graph"]["nodes"],
        "graph: F1 of edges": lambda part: part["graph"]["edges"],
        "classification": lambda part: part["classify"],
        "JSON repair, whole object right (not constrained)": lambda part: part["repair"],
        "short answer and its sentence, both right": lambda part: part["cite"],
    }
    return [
        *lines,
        *(f"| {name} | {_percent(score(seen))} | {_percent(score(unseen))} |" for name, score in rows.items()),
        "",
    ]


def _voting(scores: dict[str, Any]) -> list[str]:
    lines = ["### Arithmetic: one greedy answer and a vote of nine at temperature 0.7", ""]
    lines += ["| wording | greedy | vote | gain | standard error | problems |", "|---|---|---|---|---|---|"]
    verdicts = []
    for name, row in scores["arithmetic"].items():
        gain, error = 100 * row["gain"], 100 * row["standard_error"]
        lines.append(
            f"| {name} | {_percent(row['greedy'])} | {_percent(row['voted'])} | {gain:+.1f} | {error:.1f} "
            f"| {row['problems']} |"
        )
        if gain <= error:
            verdicts.append(f"On {name} voting does not beat one greedy answer by more than its standard error.")
        elif gain <= 2 * error:
            verdicts.append(f"On {name} voting is ahead by one to two standard errors: a hint, no more.")
        else:
            verdicts.append(f"On {name} voting beats one greedy answer by more than two standard errors.")
    return [*lines, "", " ".join(verdicts), ""]


def _parity(parity: dict[str, Any]) -> list[str]:
    lines = ["### The formats against each other", ""]
    lines += [f"Greedy text identical to that of the safetensors under transformers, {parity['prompts']} prompts:", ""]
    lines += ["| format | identical |", "|---|---|"]
    lines += [f"| {name} | {_percent(share)} |" for name, share in parity["same_text"].items()]
    split = parity["split_differently"]
    return [*lines, "", f"llama.cpp and the tokenizer file split {split} of {parity['texts']} texts differently.", ""]


def _run(recipe: dict[str, Any]) -> list[str]:
    """Return the table of the runs, first to last: each continues from the one before."""
    names = {
        "steps": "steps", "tokens": "tokens read", "learnt_tokens": "of them learnt",
        "minutes_taken": "minutes", "seed": "seed", "rate": "rate",
    }  # fmt: skip
    runs: list[dict[str, Any]] = []
    run: dict[str, Any] | None = recipe
    while run is not None:
        runs.insert(0, run)
        run = run["before"]
    heads = [f"{number}: {run['run']}" for number, run in enumerate(runs, 1)]
    lines = ["### The runs", "", f"| | {' | '.join(heads)} |", "|---" * (len(runs) + 1) + "|"]
    lines += [f"| {text} | {' | '.join(str(run[name]) for run in runs)} |" for name, text in names.items()]
    lines.append(f"| prompts that are different today | {' | '.join(_changed(run['prompts']) for run in runs)} |")
    versions = ", ".join(f"{name} {recipe[name]}" for name in ("torch", "transformers", "tokenizers", "python"))
    return [*lines, "", f"{recipe['parameters']} parameters; {versions}.", ""]


def _changed(trained: dict[str, str]) -> str:
    """Return the names of the templates whose prompts are not those of the training any more."""
    return ", ".join(name for name, digest in prompts.digests().items() if trained[name] != digest) or "none"


def _files(weights: Path) -> list[str]:
    lines = ["### Files", "", "| file | bytes | SHA-256 |", "|---|---|---|"]
    for line in (weights / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, path = line.split("  ")
        lines.append(f"| {path} | {(weights / path).stat().st_size} | `{digest}` |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--parity", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    read = [json.loads(path.read_text(encoding="utf-8")) for path in (args.scores, args.parity)]
    recipe = json.loads((args.weights / "recipe.json").read_text(encoding="utf-8"))
    text = CARD.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    CARD.write_text(before + BEGIN + figures(*read, recipe, args.weights) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
