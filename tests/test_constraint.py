"""Grammars on the real vocabulary of the tiny model: what is forced, refused, closed out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tourkit.backends.llama_cpp import LlamaRunner
from tourkit.engine.bounded import MAX_ITEMS, MAX_LENGTH, bounded
from tourkit.engine.constraint import GrammarCompiler, Matcher
from tourkit.engine.minimal import minimal_instance
from tourkit.engine.types import Constraint
from tourkit.errors import EngineError, RequestError


@pytest.fixture(scope="module")
def runner(tiny_gguf: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(tiny_gguf, slots=1, max_len=256)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def compiler(runner: LlamaRunner) -> GrammarCompiler:
    return GrammarCompiler(runner.grammar_tokenizer(), runner.n_vocab, runner.eog, runner.piece, lambda text: len(text))


def start(compiler: GrammarCompiler, schema: dict[str, Any]) -> Matcher:
    return compiler.matcher(Constraint.json_schema(schema))


def text_of(runner: LlamaRunner, tokens: list[int]) -> str:
    return b"".join(runner.piece(token) for token in tokens).decode(errors="replace")


def close_out(runner: LlamaRunner, matcher: Matcher, tokens: list[int], limit: int = 400) -> list[int]:
    """Go on with the closing token, and what is forced, until the document is complete."""
    flat = np.zeros(runner.n_vocab, dtype=np.float32)
    while not matcher.done and len(tokens) < limit:
        token = matcher.closing_token(flat)
        if token in runner.eog:
            break
        matcher.accept([token])
        forced = matcher.forced() if not matcher.done else []
        matcher.accept(forced)
        tokens += [token, *forced]
    return tokens


RICH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "kind": {"enum": ["notice", "invoice", "announcement"]},
        "total": {"type": ["number", "null"]},
        "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "people": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
        "note": {"type": "string"},
    },
    "required": ["title", "kind", "total", "date", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(40))
def test_a_document_cut_off_anywhere_is_closed_out_valid(
    runner: LlamaRunner, compiler: GrammarCompiler, seed: int
) -> None:
    """Random tokens under the grammar up to a random point, then only closing tokens: valid JSON of the schema."""
    rng = random.Random(seed)
    matcher, tokens = start(compiler, RICH), []
    for _ in range(rng.randrange(60)):
        noise = np.array([rng.random() for _ in range(runner.n_vocab)], dtype=np.float32)
        matcher.mask(noise)
        token = int(noise.argmax())
        if matcher.done or token in runner.eog:
            break
        matcher.accept([token])
        tokens.append(token)
    drawn = len(tokens)

    close_out(runner, matcher, tokens)

    jsonschema.validate(json.loads(text_of(runner, tokens)), RICH)
    assert len(tokens) - drawn <= matcher.reserve


def test_what_must_come_is_forced_without_sampling(runner: LlamaRunner, compiler: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"const": 42}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    matcher = start(compiler, schema)
    first = runner.tokenize("{", add_special=False, parse_special=False)

    matcher.accept(first)

    assert text_of(runner, first + matcher.forced()) == '{"answer": 42}'


def test_a_refused_token_is_an_error_not_an_exception_from_below(
    runner: LlamaRunner, compiler: GrammarCompiler
) -> None:
    matcher = start(compiler, {"type": "object"})
    wrong = runner.tokenize("x", add_special=False, parse_special=False)

    assert not matcher.allows(wrong[0])
    with pytest.raises(EngineError, match="grammar"):
        matcher.accept(wrong)


def test_each_matcher_of_a_compiled_schema_stands_for_itself(runner: LlamaRunner, compiler: GrammarCompiler) -> None:
    one, two = start(compiler, {"type": "object"}), start(compiler, {"type": "object"})
    brace = runner.tokenize("{", add_special=False, parse_special=False)

    one.accept(brace)

    assert two.allows(brace[0])


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "properties": {"a": {"not": {"enum": [1]}}}, "required": ["a"]}, "not"),
        ({"type": "strnig"}, "strnig"),
        ({"$ref": "#/$defs/missing"}, "missing"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_with_a_reason(
    compiler: GrammarCompiler, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        start(compiler, schema)

    assert "\n" not in str(refused.value)


def test_a_schema_nested_too_deep_is_refused_before_it_is_compiled(compiler: GrammarCompiler) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}

    with pytest.raises(RequestError, match="levels deep"):
        start(compiler, schema)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"type": "string", "maxLength": MAX_LENGTH}),
        ({"type": "string", "maxLength": 5}, {"type": "string", "maxLength": 5}),
        ({"type": "string", "minLength": 9000}, {"type": "string", "minLength": 9000, "maxLength": 9000}),
        ({"type": "string", "enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        ({"type": "string", "pattern": "a+"}, {"type": "string", "pattern": "a+"}),
        ({"type": "array"}, {"type": "array", "maxItems": MAX_ITEMS}),
        ({"type": "number"}, {"type": "number", "minimum": -(10**15), "maximum": 10**15}),
        ({"type": "number", "minimum": 0}, {"type": "number", "minimum": 0}),
        ({"enum": ["string"]}, {"enum": ["string"]}),
        (True, True),
        (
            {"properties": {"type": {"type": "string"}}},
            {"properties": {"type": {"type": "string", "maxLength": MAX_LENGTH}}},
        ),
    ],
    ids=str,
)
def test_limits_are_added_only_where_a_schema_sets_none(schema: Any, expected: Any) -> None:
    assert bounded(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        RICH,
        {
            "$defs": {"n": {"type": "integer"}},
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/n"}},
            "required": ["a"],
        },
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 2}]},
        {"type": ["string", "null"], "minLength": 3},
    ],
)
def test_the_minimal_instance_has_the_schemas_shape(schema: dict[str, Any]) -> None:
    relaxed = json.loads(json.dumps(schema).replace('"pattern"', '"x-pattern"'))

    jsonschema.validate(minimal_instance(relaxed), relaxed)


def test_a_schema_that_refers_to_itself_has_a_minimal_instance() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}

    assert minimal_instance(tree) is not None
