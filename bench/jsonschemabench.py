"""Test the grammars on real-world JSON Schemas: the rung of the ladder, compile time, soundness, valid documents.

Needs no model server: the vocabulary comes from the tiny random model, the logits are seeded noise.
Run: python bench/jsonschemabench.py [--limit N] [--path FILE.jsonl.gz]
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tools.random_gguf import write_random_gguf
from tourkit.backends.llama_cpp import LlamaRunner
from tourkit.errors import EngineError, RequestError
from tourkit.generation import Constraint
from tourkit.grammar.check import validate
from tourkit.grammar.compiler import GrammarCompiler
from tourkit.grammar.matcher import Matcher
from tourkit.grammar.prepare import Preparer
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.repair import repair

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "jsonschemabench-dev.jsonl.gz"
BUDGET = 160  # the most random tokens before the close-out begins
CLOSING = 4000  # the most tokens of a close-out; a longer one counts as failed


@dataclass
class Tally:
    """What was counted over all schemas."""

    levels: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    compile_ms: list[float] = field(default_factory=list)
    instances: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)  # level, labelled valid, accepted
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)  # level, outcome
    closed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=None, help="number of schemas, spread over the file")
    parser.add_argument("--path", type=Path, default=DATA)
    parser.add_argument("--walks", type=int, default=2, help="documents per schema")
    parser.add_argument("--verbose", action="store_true", help="print every problem")
    options = parser.parse_args()
    if not options.path.exists():
        print(f"skipped: there is no {options.path.name}; give the file with --path", file=sys.stderr)
        return
    with gzip.open(options.path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if options.limit:
        rows = rows[:: max(1, len(rows) // options.limit)][: options.limit]
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "tiny.gguf"
        write_random_gguf(gguf)
        runner = LlamaRunner(gguf, slots=1, context=64)
        gc.freeze()  # as a worker does after loading
        try:
            tally = measure(rows, runner, options.walks)
        finally:
            runner.close()
    report(tally, len(rows), options.verbose)


def measure(rows: list[dict[str, Any]], runner: LlamaRunner, walks: int) -> Tally:
    tally = Tally()
    vocabulary = runner.grammar_tokenizer()
    pieces = [runner.piece(token) for token in range(runner.n_vocab)]
    preparer = Preparer(vocabulary, pieces, lambda text: len(tokens_of(runner, text)))
    compiler = GrammarCompiler(vocabulary, runner.n_vocab, runner.eog, runner.piece)
    for number, row in enumerate(rows):
        constraint = Constraint("json_schema", json.dumps(row["schema"]))
        started = time.perf_counter()
        try:
            prepared = preparer.prepare(constraint)
            matcher = matcher_of(compiler, prepared)
        except RequestError as exc:
            tally.refused[f"{row['id']}: {exc}"] += 1
            continue
        finally:
            tally.compile_ms.append((time.perf_counter() - started) * 1000)
        tally.levels[matcher.level] += 1
        tally.dropped.update(pointer.rpartition("/")[2] for pointer in matcher.dropped)
        for test in row["tests"]:
            label(tally, row, test, matcher_of(compiler, prepared), runner)
        for walk in range(walks):
            seed = number * walks + walk
            outcome = generate(tally, row, matcher_of(compiler, prepared), runner, seed)
            if outcome == "invalid":  # as the server does: try once more, with a tighter grammar if there is one
                tight = matcher_of(compiler, preparer.prepare(constraint, Manner(tight=True)))
                again = generate(tally, row, tight, runner, seed + 1_000_000)
                outcome = "valid after a retry" if again.startswith("valid") else "invalid after a retry"
            tally.documents[matcher.level, outcome] += 1
    return tally


def matcher_of(compiler: GrammarCompiler, prepared: Prepared) -> Matcher:
    return compiler.matchers(prepared, 1)[0]


def tokens_of(runner: LlamaRunner, text: str) -> list[int]:
    return list(runner.tokenize(text, add_special=False, parse_special=False))


def label(tally: Tally, row: dict[str, Any], test: dict[str, Any], matcher: Matcher, runner: LlamaRunner) -> None:
    """Check whether the grammar accepts a labelled document."""
    accepted = True
    for token in tokens_of(runner, json.dumps(test["data"], ensure_ascii=False)):
        if not matcher.allows(token):
            accepted = False
            break
        matcher.accept([token])
    accepted = accepted and (matcher.done or any(matcher.allows(token) for token in runner.eog))
    tally.instances[matcher.level, test["valid"], accepted] += 1
    if accepted and not test["valid"]:
        tally.notes.append(f"{row['id']}: invalid accepted at {matcher.level}: {json.dumps(test['data'])[:150]}")


def generate(tally: Tally, row: dict[str, Any], matcher: Matcher, runner: LlamaRunner, seed: int) -> str:
    """Generate a random document, cut it off at random and close it out. Return what jsonschema says about it."""
    rng = np.random.default_rng(seed)
    level = matcher.level
    try:
        tokens = walked(matcher, runner, rng, random.Random(seed).randrange(BUDGET))
        drawn = len(tokens)
        cut_off = not matcher.done
        close(matcher, runner, rng, tokens)
    except (EngineError, RequestError) as exc:
        tally.notes.append(f"{row['id']}: {str(exc)[:150]}")
        return "grammar failed"
    if cut_off:
        within = len(tokens) - drawn <= matcher.reserve
        tally.closed["within the reserve" if within else "later"] += 1
        if not within:
            tally.notes.append(f"{row['id']}: closed in {len(tokens) - drawn} tokens, reserve {matcher.reserve}")
    return checked(tally, row, level, b"".join(runner.piece(token) for token in tokens))


def walked(matcher: Matcher, runner: LlamaRunner, rng: np.random.Generator, n: int) -> list[int]:
    """Draw up to `n` random tokens that prefer quotes: without this, every document is one long string."""
    liked = np.zeros(runner.n_vocab, dtype=np.float32)
    liked[[token for token in range(runner.n_vocab) if runner.piece(token) in (b'"', b",", b"]", b"}", b", ")]] = 4
    tokens: list[int] = []
    while len(tokens) < n and not matcher.done:
        logits = rng.gumbel(size=runner.n_vocab).astype(np.float32) + liked
        matcher.mask(logits)
        token = int(logits.argmax())
        if token in runner.eog:
            break
        matcher.accept([token])
        forced = [] if matcher.done else matcher.forced()
        matcher.accept(forced)
        tokens += [token, *forced]
    return tokens


def close(matcher: Matcher, runner: LlamaRunner, rng: np.random.Generator, tokens: list[int]) -> None:
    end = len(tokens) + CLOSING
    while not matcher.done and len(tokens) < end:
        token = matcher.closing_token(rng.gumbel(size=runner.n_vocab).astype(np.float32))
        if token in runner.eog:
            return
        matcher.accept([token])
        forced = [] if matcher.done else matcher.forced()
        matcher.accept(forced)
        tokens += [token, *forced]


def checked(tally: Tally, row: dict[str, Any], level: str, text: bytes) -> str:
    try:
        data = json.loads(text)
    except ValueError:
        tally.notes.append(f"{row['id']}: not JSON at {level}: {text[:80]!r} … {text[-80:]!r}")
        return "not JSON"
    errors = validate(row["schema"], data)
    if not errors:
        return "valid"
    repaired, _done = repair(row["schema"], data)
    if not validate(row["schema"], repaired):
        return "valid after repair"
    tally.notes.append(f"{row['id']}: invalid at {level}: {errors[0][:200]}")
    return "invalid"


def report(tally: Tally, total: int, verbose: bool) -> None:
    compiled = sum(tally.levels.values())
    times = sorted(tally.compile_ms)
    p50, p90, p99 = (times[int(len(times) * share)] for share in (0.5, 0.9, 0.99))
    print(f"schemas {total}: compiled {compiled} ({compiled / total:.2%}), refused {total - compiled}")
    print("  " + ", ".join(f"{level} {n}" for level, n in tally.levels.most_common()))
    print(f"  dropped keywords: {', '.join(f'{key} {n}' for key, n in tally.dropped.most_common(8)) or 'none'}")
    for reason, _n in tally.refused.most_common(10):
        print(f"  refused {reason[:200]}")
    print(f"compile ms: p50 {p50:.2f}, p90 {p90:.2f}, p99 {p99:.1f}, most {times[-1]:.0f}")
    for level in tally.levels:
        n = tally.instances
        invalid = n[level, False, True] + n[level, False, False]
        valid = n[level, True, True] + n[level, True, False]
        print(f"instances at {level}: invalid accepted {n[level, False, True]}/{invalid},", end=" ")
        print(f"valid rejected {n[level, True, False]}/{valid}")
    for (level, outcome), count in sorted(tally.documents.items()):
        print(f"documents at {level}: {outcome} {count}")
    cut = sum(tally.closed.values())
    print(f"cut off {cut}: closed within the reserve {tally.closed['within the reserve'] / max(cut, 1):.1%}")
    for note in tally.notes if verbose else tally.notes[:10]:
        print(f"  {note}")


if __name__ == "__main__":
    main()
