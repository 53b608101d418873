"""Score a GGUF of the tiny model on held-out data with tourkit's own engine.

`python -m tools.tiny.evaluate MODEL.gguf [--count N] [--json OUT]`. Decoding is greedy and, except for repair,
constrained to the schema.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tools.tiny import prompts, tasks
from tools.tiny.documents import Split
from tools.tiny.names import HELD
from tools.tiny.parity import ask
from tools.tiny.tasks import Sample

SUITES = {
    "unseen entities": Split(names=HELD),
    "unseen templates": Split(names=HELD, lines=HELD),
    "unseen schemas": Split(names=HELD, schemas=HELD),
    "unseen keys": Split(names=HELD, keys=HELD),
}
VOTES, TEMPERATURE = 9, 0.7
LANGUAGES = ("en", "ru")

Ask = Callable[..., list[str]]


def asker(path: Path, threads: int) -> Ask:
    """Return a function that returns the texts of `n` answers to a conversation."""
    from tourkit.backends.llama_cpp.runner import LlamaRunner
    from tourkit.backends.runner_engine import RunnerEngine
    from tourkit.generation import Constraint, Request, SamplingParams

    engine = RunnerEngine(LlamaRunner(path, slots=8, context=2048, threads=threads), "llama_cpp")

    def answer(
        messages: list[dict[str, str]], schema: dict[str, Any] | None, n: int = 1, temperature: float = 0, seed: int = 1
    ) -> list[str]:
        params = SamplingParams(max_tokens=400, temperature=temperature, seed=seed)
        constraint = Constraint.json_schema(schema) if schema else None
        return ask(engine, Request(messages=tuple(messages), params=params, n=n, constraint=constraint))

    return answer


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Return the leaves by path. A list is one leaf."""
    if not isinstance(value, dict):
        return {at: value}
    return {path: leaf for key, part in value.items() for path, leaf in flat(part, f"{at}/{key}").items()}


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def ask_all(answer: Ask, items: Iterable[Sample], free: bool = False) -> list[tuple[Sample, Any]]:
    """Return each sample with the parsed greedy answer to its last question."""
    items = list(items)
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda item: answer(item.messages[:-1], None if free else item.schema)[0], items)
        return [(item, parsed(text)) for item, text in zip(items, texts, strict=True)]


def samples(name: str, count: int, make: Callable[..., Sample], split: Split) -> dict[str, list[Sample]]:
    """Return `count` samples per language. The same name gives the same samples."""
    result = {}
    for lang in LANGUAGES:
        rng = Random(f"eval:{name}:{lang}")
        result[lang] = [make(rng, split, lang=lang) for _ in range(count)]
    return result


def extraction(answer: Ask, name: str, split: Split, count: int) -> dict[str, dict[str, float]]:
    """Return the shares of exact objects and right fields, by language."""
    scores = {}
    for lang, items in samples(name, count, tasks.json_sample, split).items():
        found = ask_all(answer, items)
        fields = right = 0
        for item, data in found:
            gold, got = flat(item.gold), flat(data)
            fields += len(gold)
            right += sum(key in got and got[key] == value for key, value in gold.items())
        exact = sum(data == item.gold for item, data in found)
        scores[lang] = {"exact": round(exact / count, 4), "fields": round(right / fields, 4), "objects": count}
    return scores


@dataclass(frozen=True, slots=True)
class _Client:
    """What templates/graph_extraction needs of a client."""

    answer: Ask

    def structured(
        self, messages: list[dict[str, str]], schema: dict[str, Any], temperature: float, thinking: bool
    ) -> Any:
        return json.loads(self.answer(messages, schema, temperature=temperature)[0])


def graphs(answer: Ask, split: Split, count: int, as_list: bool) -> dict[str, float]:
    """Return F1 of nodes (name and type) and edges, as templates/graph_extraction asks.

    `as_list`: in its earlier form.
    """
    template = prompts.template("graph_extraction")
    items = [item for part in samples("graph", count, _full_graph, split).values() for item in part]

    def both(item: Sample) -> tuple[Counter[Any], Counter[Any]]:
        nodes, edges = template.ask(item.about["text"], _Client(answer), as_list)
        return _bag(nodes), _bag(edges)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(both, items))
    gold = [(_bag(item.gold["nodes"]), _bag(item.gold["edges"])) for item in items]
    return {
        "nodes": f1([(g[0], f[0]) for g, f in zip(gold, found, strict=True)]),
        "edges": f1([(g[1], f[1]) for g, f in zip(gold, found, strict=True)]),
        "texts": len(items),
    }


def _full_graph(rng: Random, split: Split, *, lang: str) -> Sample:
    return tasks.graph_sample(rng, split, lang=lang, full=True)


def _bag(items: list[dict[str, str]]) -> Counter[Any]:
    return Counter(tuple(sorted(item.items())) for item in items)


def f1(pairs: list[tuple[Counter[Any], Counter[Any]]]) -> float:
    common = sum((gold & found).total() for gold, found in pairs)
    both = sum(gold.total() + found.total() for gold, found in pairs)
    return round(2 * common / both, 4) if both else 0.0


def share_right(
    answer: Ask, name: str, make: Callable[..., Sample], split: Split, count: int, free: bool = False
) -> float:
    items = [item for part in samples(name, count, make, split).values() for item in part]
    return round(sum(data == item.gold for item, data in ask_all(answer, items, free)) / len(items), 4)


def voting(answer: Ask, split: Split, count: int) -> dict[str, float]:
    """Compare one greedy answer with the majority of nine samples, with the standard error of the difference."""
    items = [item for part in samples("arithmetic", count, tasks.arithmetic_sample, split).values() for item in part]
    greedy = [_number(data) == item.gold["answer"] for item, data in ask_all(answer, items)]

    def vote(item: Sample) -> bool:
        texts = answer(item.messages[:-1], item.schema, n=VOTES, temperature=TEMPERATURE)
        numbers = [number for text in texts if (number := _number(parsed(text))) is not None]
        return bool(numbers) and Counter(numbers).most_common(1)[0][0] == item.gold["answer"]

    with ThreadPoolExecutor(2) as pool:
        voted = list(pool.map(vote, items))
    gains = [int(v) - int(g) for v, g in zip(voted, greedy, strict=True)]
    n = len(items)
    mean = sum(gains) / n
    error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (n - 1) / n)
    return {
        "greedy": round(sum(greedy) / n, 4),
        "voted": round(sum(voted) / n, 4),
        "gain": round(mean, 4),
        "standard_error": round(error, 4),
        "problems": n,
    }


def _number(data: Any) -> str | None:
    return data["answer"] if isinstance(data, dict) else None


def evaluate(path: Path, count: int, threads: int = 2, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return every score of the model card, from `count` samples per language and suite."""
    answer = asker(path, threads)
    as_list = prompts.learnt_as_list(path.parents[1])
    result: dict[str, Any] = {"model": path.name, "count": count, "extraction": {}}
    for name, split in SUITES.items():
        result["extraction"][name] = extraction(answer, name, split, count)
        say(f"{name}: {result['extraction'][name]}")
    for name in ("unseen entities", "unseen templates"):
        split = SUITES[name]
        result[name] = {
            "graph": graphs(answer, split, count // 2, as_list),
            "classify": share_right(answer, "classify", tasks.classify_sample, split, count),
            "repair": share_right(answer, "repair", tasks.repair_sample, split, count // 2, free=True),
            "cite": share_right(answer, "cite", tasks.cite_sample, split, count),
        }
        say(f"{name}: {result[name]}")
    for name, split in {"seen wording": Split(), "unseen wording": Split(lines=HELD)}.items():
        result.setdefault("arithmetic", {})[name] = voting(answer, split, count)
        say(f"arithmetic, {name}: {result['arithmetic'][name]}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=200, help="samples per language and suite")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = evaluate(args.model, args.count, args.threads)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
