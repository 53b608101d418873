"""Grammars on the tiny model's real vocabulary: forced tokens, refused tokens and schemas, close-out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammars import Grammars

from tourkit.backends.llama_cpp import LlamaRunner
from tourkit.errors import EngineError, RequestError
from tourkit.generation import Constraint
from tourkit.grammar.limits import MAX_ITEMS, MAX_LENGTH, bounded
from tourkit.grammar.matcher import Matcher
from tourkit.grammar.prepared import Manner
from tourkit.grammar.shortest import closing_texts


@pytest.fixture(scope="module")
def runner(tiny_gguf: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(tiny_gguf, slots=1, context=256)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def compiler(runner: LlamaRunner) -> Grammars:
    return Grammars(runner)


def start(compiler: Grammars, schema: dict[str, Any], **how: bool) -> Matcher:
    return compiler.matcher(Constraint.json_schema(schema), Manner(**how))


def text_of(runner: LlamaRunner, tokens: list[int]) -> str:
    return b"".join(runner.piece(token) for token in tokens).decode(errors="replace")


def close_out(runner: LlamaRunner, matcher: Matcher, tokens: list[int], limit: int = 400) -> list[int]:
    """Add closing tokens and forced tokens until the document is complete."""
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


def accepts(runner: LlamaRunner, matcher: Matcher, text: str) -> bool:
    """Return whether the grammar allows the whole text and the document is then complete."""
    for token in runner.tokenize(text, add_special=False, parse_special=False):
        if not matcher.allows(token):
            return False
        matcher.accept([token])
    return matcher.done or any(matcher.allows(token) for token in runner.eog)


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


def test_a_model_that_begins_with_a_space_may(runner: LlamaRunner) -> None:
    """SentencePiece models begin with such a token. A schema that no document can meet is refused for them too."""
    spaced = Grammars(runner, leading_space=True)
    circle = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}

    assert accepts(runner, start(spaced, {"type": "object"}), ' {"a": 1}')
    assert accepts(runner, start(spaced, {"type": "object"}, compact=True), ' {"a":1}')
    assert accepts(runner, start(spaced, {"type": "array", "uniqueItems": True}), " [1]")
    with pytest.raises(RequestError, match="no document"):
        start(spaced, circle)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_a_document_cut_off_anywhere_is_closed_out_valid(
    runner: LlamaRunner, compiler: Grammars, seed: int, compact: bool
) -> None:
    """Random tokens under the grammar, up to a random point, and then only closing tokens give a valid document."""
    rng = random.Random(seed)
    matcher, tokens = start(compiler, RICH, compact=compact), []
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


def test_what_must_come_is_forced_without_sampling(runner: LlamaRunner, compiler: Grammars) -> None:
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


def test_there_is_a_space_after_commas_and_colons_or_none_at_all(runner: LlamaRunner, compiler: Grammars) -> None:
    texts = ['{"a": [1, 2], "b": 3}', '{"a":[1,2],"b":3}', '{"a": [1,2], "b": 3}', '{ "a": [1, 2], "b": 3 }']
    schema = {"type": "object"}

    spaced = [text for text in texts if accepts(runner, start(compiler, schema), text)]
    compact = [text for text in texts if accepts(runner, start(compiler, schema, compact=True), text)]

    assert (spaced, compact) == (texts[:1], texts[1:2])


def test_a_refused_token_is_an_error_not_an_exception_from_below(runner: LlamaRunner, compiler: Grammars) -> None:
    matcher = start(compiler, {"type": "object"})
    wrong = runner.tokenize("x", add_special=False, parse_special=False)

    assert not matcher.allows(wrong[0])
    with pytest.raises(EngineError, match="grammar"):
        matcher.accept(wrong)


def test_each_matcher_of_a_compiled_schema_stands_for_itself(runner: LlamaRunner, compiler: Grammars) -> None:
    one, two = start(compiler, {"type": "object"}), start(compiler, {"type": "object"})
    brace = runner.tokenize("{", add_special=False, parse_special=False)

    one.accept(brace)

    assert two.allows(brace[0])


@pytest.mark.parametrize(
    ("schema", "reason", "code"),
    [
        ({"type": "strnig"}, "strnig", "invalid_schema"),
        ({"type": "object", "properties": []}, "properties", "invalid_schema"),
        ({"type": "string", "minLength": "5"}, "'5'", "invalid_schema"),
        ({"$ref": "#/$defs/missing"}, "missing", "invalid_schema"),
        ({"$ref": "https://example.org/elsewhere.json"}, "elsewhere", "invalid_schema"),
        ({"type": "array", "items": {"pattern": "(a"}}, "regular expression", "invalid_schema"),
        ({"enum": []}, "no document", "unsupported_schema"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength", "unsupported_schema"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "'a'", "unsupported_schema"),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"], "not": {"required": ["a"]}}, "'a'", None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "no document", "unsupported_schema"),
    ],
    ids=str,
)
def test_a_schema_no_document_can_meet_is_refused_with_a_reason(
    compiler: Grammars, schema: dict[str, Any], reason: str, code: str | None
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        start(compiler, schema)

    assert "\n" not in str(refused.value)
    assert refused.value.param == "response_format"
    assert code is None or refused.value.code == code


def test_a_schema_too_large_is_refused_before_it_is_compiled(compiler: Grammars) -> None:
    with pytest.raises(RequestError, match="characters"):
        start(compiler, {"enum": ["x" * 1_000_001]})


def test_an_object_with_thousands_of_optional_keys_can_be_begun(runner: LlamaRunner, compiler: Grammars) -> None:
    """Such an object hits llguidance's limit only after its opening brace."""
    matcher = start(compiler, {"type": "object", "properties": {f"key{i}": {"type": "null"} for i in range(2500)}})

    matcher.accept(runner.tokenize("{", add_special=False, parse_special=False))

    assert matcher.forced() or matcher.allows(runner.tokenize("}", add_special=False, parse_special=False)[0])
    assert matcher.level == "strict"


def test_a_schema_nested_too_deep_is_refused_before_it_is_compiled(compiler: Grammars) -> None:
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
        ({"type": "number"}, {"type": "number", "minimum": -(10**15), "maximum": 10**15, "multipleOf": 1e-9}),
        ({"type": "number", "minimum": 0}, {"type": "number", "minimum": 0, "multipleOf": 1e-9}),
        ({"type": "number", "minimum": 1e-13}, {"type": "number", "minimum": 1e-13}),
        (
            {"type": "number", "multipleOf": 0.5},
            {"type": "number", "multipleOf": 0.5, "minimum": -(10**15), "maximum": 10**15},
        ),
        (
            {"type": "integer", "multipleOf": 1.0, "minimum": 0},
            {"type": "integer", "multipleOf": 1.0, "minimum": 0, "maximum": 10**15},
        ),
        ({"type": "integer", "multipleOf": 3, "minimum": 1e20}, {"type": "integer", "multipleOf": 3, "minimum": 1e20}),
        ({"type": "integer", "multipleOf": 3, "enum": [3]}, {"type": "integer", "multipleOf": 3, "enum": [3]}),
        (
            {"type": "number", "allOf": [{"multipleOf": 5}, {"type": "number", "maximum": 10}]},
            {
                "type": "number",
                "allOf": [{"multipleOf": 5}, {"type": "number", "maximum": 10}],
                "minimum": -(10**15),
                "maximum": 10**15,
            },
        ),
        ({"enum": ["string"]}, {"enum": ["string"]}),
        (True, True),
        (
            {"properties": {"type": {"type": "string"}}},
            {"properties": {"type": {"type": "string", "maxLength": MAX_LENGTH}}, "additionalProperties": False},
        ),
    ],
    ids=str,
)
def test_limits_are_added_only_where_a_schema_sets_none(schema: Any, expected: Any) -> None:
    assert bounded(schema) == expected


@pytest.mark.parametrize(
    ("schema", "text", "takes"),
    [
        ({"type": "number"}, "0.123456789", True),
        ({"type": "number"}, "0.1234567891", False),
        ({"type": "number", "minimum": 0, "maximum": 1000}, "3.141592653", True),
        ({"type": "number", "minimum": 0, "maximum": 1000}, "3.1415926535", False),
        ({"type": "number", "multipleOf": 1e-10}, "0.1234567891", True),
        ({"type": "integer", "multipleOf": 1.0}, "1" * 15, True),
        ({"type": "integer", "multipleOf": 1.0}, "1" * 17, False),
        ({"allOf": [{"type": "number", "multipleOf": 5}, {"type": "number", "maximum": 10}]}, "6.5", False),
        ({"allOf": [{"type": "number", "multipleOf": 5}, {"type": "number", "maximum": 10}]}, "5", True),
    ],
    ids=str,
)
def test_a_number_does_not_go_on_for_ever(
    runner: LlamaRunner, compiler: Grammars, schema: dict[str, Any], text: str, takes: bool
) -> None:
    assert accepts(runner, start(compiler, schema), text) is takes


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {}},
        {"properties": {"a": {}}, "additionalProperties": {"type": "null"}},
        {"properties": {"a": {}}, "patternProperties": {"^x-": {}}},
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"properties": {"a": {}}, "dependentSchemas": {"a": {"required": ["b"]}}},
        {"properties": {"a": {}}, "$recursiveRef": "#"},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"$ref": "#/$defs/base", "properties": {"b": {}}, "$defs": {"base": {"properties": {"a": {}}}}},
    ],
    ids=str,
)
def test_an_object_that_may_need_other_keys_stays_open(schema: dict[str, Any]) -> None:
    assert bounded(schema) == schema


def test_a_property_named_as_a_reference_is_none() -> None:
    """Definitions that no allOf names describe whole objects, so unnamed keys are forbidden in them."""
    definition = {"properties": {"$ref": {"type": "null"}, "properties": {"type": "null"}}}

    limited = bounded({"$defs": {"a": definition}, "allOf": [{"properties": {"$ref": {"type": "null"}}}]})

    assert limited["$defs"]["a"] == definition | {"additionalProperties": False}


def test_what_is_costly_to_compile_is_written_once_for_all_that_name_it(
    runner: LlamaRunner, compiler: Grammars
) -> None:
    price = {"type": "number", "description": "in roubles", "$comment": "net of tax"}
    schema = {
        "type": "object",
        "properties": {"net": price, "gross": {"type": "number"}, "code": {"type": "string", "pattern": "^[A-Z]{2}$"}},
        "required": ["net", "gross", "code"],
        "$defs": {"unused": {"type": "null"}},
    }

    limited = bounded(schema)

    properties, once = limited["properties"], limited["$defs"]
    assert properties["net"] == properties["gross"] != properties["code"]
    assert [part.get("type") for part in once.values()] == ["null", "number", "string"]
    matcher = start(compiler, schema)
    assert matcher.level == "strict"
    assert accepts(runner, matcher, '{"net": 1.5, "gross": 2, "code": "AB"}')
    assert not accepts(runner, start(compiler, schema), '{"net": 1.5, "gross": 1' + "0" * 16 + ', "code": "AB"}')
    assert not accepts(runner, start(compiler, schema), '{"net": 1.5, "gross": 2, "code": "ABC"}')


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$id": "inner", "properties": {"b": {"type": "integer"}}}}},
        {"allOf": [{"properties": {"b": {"type": "integer"}}}, {"properties": {"b": {"minimum": 0}}}]},
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {"properties": {"b": {"type": "integer"}}, "$defs": True},
        {"properties": {"b": {"type": "integer", "enum": [1], "minimum": 0}}},
    ],
    ids=str,
)
def test_nothing_is_referred_to_where_the_reference_could_mean_something_else(schema: dict[str, Any]) -> None:
    assert "$ref" not in json.dumps(bounded(schema))


@pytest.mark.parametrize(
    ("kind", "text", "takes"),
    [
        ("date", "2024-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "2023-04-31", False),
        ("date", "0000-01-01", False),
        ("time", "23:59:60Z", False),
        ("date-time", "2024-12-31T23:59:59+03:00", True),
    ],
)
def test_dates_and_times_are_those_that_exist(
    runner: LlamaRunner, compiler: Grammars, kind: str, text: str, takes: bool
) -> None:
    matcher = start(compiler, {"type": "string", "format": kind})

    assert accepts(runner, matcher, json.dumps(text)) is takes


@pytest.mark.parametrize(
    ("constraint", "taken", "refused"),
    [
        (Constraint("regex", "[0-9]{3}-[a-z]+"), "123-ab", "12-ab"),
        (Constraint("choice", '["yes", "no", "может быть", "say \\"hi\\"\\n"]'), 'say "hi"\n', "perhaps"),
        (Constraint("choice", '["yes", "no", "может быть"]'), "может быть", "y"),
        (Constraint("grammar", 'start: "a" /[0-9]+/ ("," /[0-9]+/)*'), "a1,22", "1"),
        (Constraint("grammar", 'root ::= "yes" | "no" [0-9]+'), "no12", "no"),
        (Constraint.json_object(), '{"a": [1]}', "[1]"),
    ],
    ids=str,
)
def test_every_kind_of_constraint_is_held_to(
    runner: LlamaRunner, compiler: Grammars, constraint: Constraint, taken: str, refused: str
) -> None:
    assert accepts(runner, compiler.matcher(constraint), taken)
    assert not accepts(runner, compiler.matcher(constraint), refused)
    assert compiler.matcher(constraint).level == "strict"


@pytest.mark.parametrize(
    ("constraint", "param"),
    [
        (Constraint("regex", "(unclosed"), "regex"),
        (Constraint("regex", "(?=ahead)x"), "regex"),
        (Constraint("regex", " "), "regex"),
        (Constraint("choice", "[]"), "choice"),
        (Constraint("choice", '["a", 1]'), "choice"),
        (Constraint("choice", "yes"), "choice"),
        (Constraint("grammar", "start: missing"), "grammar"),
        (Constraint("grammar", "root ::= ("), "grammar"),
        (Constraint("haiku", "5-7-5"), "response_format"),
    ],
    ids=str,
)
def test_a_grammar_that_cannot_be_read_is_refused_by_the_name_of_its_field(
    compiler: Grammars, constraint: Constraint, param: str
) -> None:
    with pytest.raises(RequestError) as refused:
        compiler.matcher(constraint)

    assert (refused.value.param, refused.value.code) == (param, "invalid_grammar")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("constraint", "begun"),
    [
        (Constraint("regex", "[a-z]+@[a-z]+\\.com"), "some"),
        (Constraint("regex", "(ab)*c"), "aba"),
        (Constraint("choice", '["say \\"hi\\"", "say nothing"]'), "say"),
        (Constraint("grammar", 'start: "<" /[^>]+/ ">"'), "<b"),
    ],
    ids=str,
)
def test_a_text_that_is_not_json_is_ended_too(
    runner: LlamaRunner, compiler: Grammars, constraint: Constraint, begun: str
) -> None:
    matcher = compiler.matcher(constraint)
    tokens = runner.tokenize(begun, add_special=False, parse_special=False)
    matcher.accept(tokens)

    close_out(runner, matcher, tokens)

    assert accepts(runner, compiler.matcher(constraint), text_of(runner, tokens))


def test_a_short_answer_is_left_to_the_model(compiler: Grammars) -> None:
    """A choice or a short pattern reserves no tokens that its text does not need."""
    assert compiler.matcher(Constraint("choice", '["positive", "negative"]')).reserve == 0
    assert compiler.matcher(Constraint("regex", "[0-9]+")).reserve == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "part",
    [
        {"pattern": "^[a-z]+@[a-z]+\\.[a-z]{2,4}$"},
        {"pattern": "^(a|b)*c$"},
        {"pattern": "dashboard|report"},
        {"minLength": 40},
        {"format": "uuid"},
        {"format": "email"},
        {"format": "ipv6"},
    ],
    ids=str,
)
def test_a_string_that_must_have_a_form_is_ended_in_that_form(
    runner: LlamaRunner, compiler: Grammars, part: dict[str, Any], seed: int
) -> None:
    schema = {"type": "object", "properties": {"s": {"type": "string", **part}}, "required": ["s"]}
    matcher, rng = start(compiler, schema), random.Random(seed)
    tokens = runner.tokenize('{"s": "', add_special=False, parse_special=False)
    matcher.accept(tokens)
    for _ in range(3):
        noise = np.array([rng.random() for _ in range(runner.n_vocab)], dtype=np.float32)
        matcher.mask(noise)
        tokens.append(int(noise.argmax()))
        matcher.accept(tokens[-1:])
    drawn = len(tokens)

    close_out(runner, matcher, tokens)

    jsonschema.validate(json.loads(text_of(runner, tokens)), schema)
    assert len(tokens) - drawn <= matcher.reserve


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
def test_what_is_left_to_write_has_the_schemas_shape(schema: dict[str, Any]) -> None:
    relaxed = json.loads(json.dumps(schema).replace('"pattern"', '"x-pattern"'))

    jsonschema.validate(json.loads(closing_texts(relaxed)[0]), relaxed)


def test_what_is_left_to_write_ends_where_a_schema_refers_to_itself() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}

    assert json.loads(closing_texts(tree)[0]) is not None
