"""Constraints that once ended or hung a worker: each is refused with a reason, or prepared in little time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tourkit.errors import RequestError
from tourkit.generation import Constraint
from tourkit.grammar.check import validate
from tourkit.grammar.closing import Closing, ClosingRanks
from tourkit.grammar.compiler import GrammarCompiler, new_matcher
from tourkit.grammar.lark_syntax import embedded, measures
from tourkit.grammar.matcher import slow_time
from tourkit.grammar.patterns import compiled, is_linear
from tourkit.grammar.prepare import Preparer
from tourkit.grammar.prepared import PLAIN, Manner, Prepared
from tourkit.grammar.regex_example import example
from tourkit.grammar.regex_syntax import HUGE, size
from tourkit.grammar.repair import repair
from tourkit.grammar.shortest import closing_texts

TOKENIZER = Path(__file__).parents[2] / "weights" / "tiny" / "onnx" / "tokenizer.json"
CATASTROPHE = "^(a+)+$"  # a search by backtracking takes 2ⁿ steps for n letters
VICTIM = "a" * 60 + "b"


@pytest.fixture(scope="module")
def vocabulary() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(TOKENIZER.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def preparer(vocabulary: Any) -> Preparer:
    pieces = [vocabulary.decode_bytes([token]) for token in range(vocabulary.vocab_size)]
    return Preparer(vocabulary, pieces, len)


@pytest.fixture(scope="module")
def compiler(vocabulary: Any) -> GrammarCompiler:
    eog = frozenset([vocabulary.eos_token])
    return GrammarCompiler(vocabulary, vocabulary.vocab_size, eog, lambda token: vocabulary.decode_bytes([token]))


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def nested_lists(count: int, levels: int) -> dict[str, Any]:
    """Return a schema of lists in lists, each of `count` items or more."""
    found: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        found = {"type": "array", "items": found, "minItems": count}
    return found


def chain(names: list[str], separator: str = ":") -> str:
    """Return a grammar in which each rule only names the next one."""
    first = "root" if separator == "::=" else "start"
    rules = [f"{name} {separator} {following}" for name, following in zip([first, *names], names, strict=False)]
    return "\n".join([*rules, f'{names[-1]} {separator} "a"\n'])


@pytest.mark.parametrize(
    "value",
    [
        {"const": -(2**63)},
        {"const": 2**63},
        {"const": -(2**63) + 1},  # as a double it is −2⁶³
        {"const": 1e300},
        {"const": 10**400},
        {"enum": [1, -(2**63)]},
        {"enum": [{"a": [-(2**63)]}]},
        {"properties": {"a": {"anyOf": [{"const": -(2**63)}]}}},
        {"$defs": {"a": {"const": -(2**63)}}},
        {"const": float("nan")},
    ],
    ids=str,
)
def test_a_value_at_or_beyond_2_63_is_refused(preparer: Preparer, value: Any) -> None:
    """llguidance negates −2⁶³ for ever and ends the process."""
    with pytest.raises(RequestError, match="not within ±2\\^63") as refused:
        preparer.prepare(schema(value))

    assert (refused.value.code, refused.value.param) == ("unsupported_schema", "response_format")


@pytest.mark.parametrize("value", [2**63 - 1025, -(2**63) + 1025, 0.1, [2**53], True])
def test_a_value_within_2_63_is_kept(preparer: Preparer, value: Any) -> None:
    assert preparer.prepare(schema({"const": value})).level == "strict"


@pytest.mark.parametrize(
    ("value", "dropped"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": -(2**63)}, ("/maximum", "/minimum")),
        ({"type": "integer", "minimum": -(2**63), "maximum": 5}, ("/minimum",)),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ("/maximum", "/minimum")),
        ({"exclusiveMinimum": 2**64}, ("/exclusiveMinimum",)),
        ({"properties": {"a": {"type": "number", "exclusiveMaximum": 1e19}}}, ("/properties/a/exclusiveMaximum",)),
        ({"type": "integer", "minimum": -(2**63), "not": {"minimum": 3}}, ("/minimum",)),
    ],
    ids=str,
)
def test_a_bound_at_or_beyond_2_63_is_dropped_and_reported(
    preparer: Preparer, value: Any, dropped: tuple[str, ...]
) -> None:
    prepared = preparer.prepare(schema(value))

    assert (prepared.level, prepared.dropped) == ("relaxed", dropped)


def test_a_number_that_must_be_huge_may_still_be_huge(preparer: Preparer, vocabulary: Any) -> None:
    """The dropped bound leaves a nearer one, so that the usual limit of ±10¹⁵ does not forbid every valid answer."""
    prepared = preparer.prepare(schema({"type": "integer", "minimum": 2**64}))
    matcher = new_matcher(vocabulary, prepared.grammar, large=prepared.large)
    tokens = vocabulary.greedy_tokenize(str(2**64 + 1))

    assert matcher.validate_tokens(tokens) == len(tokens)


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("grammar", chain([f"r{i}" for i in range(2698)]), "rules"),
        ("grammar", chain([f"T{i}" for i in range(3790)]), "rules"),
        ("grammar", chain([f"r{i}" for i in range(2698)], "::="), "rules"),
        ("grammar", chain([f"r{i}" for i in range(500)]), "in a row"),
        ("grammar", chain([f"T{i}" for i in range(500)]), "in a row"),
        ("grammar", "start: " + "(" * 3000 + '"a"' + ")" * 3000, "levels deep"),
        ("grammar", 'start: T\nT: "b"{99999}', "repeats"),
        ("grammar", "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "a"', "repeats"),
        ("grammar", 'start: %json {"const": -9223372036854775808}', "2\\^63"),
        ("grammar", 'start: %json {"type": "integer", "minimum": -9223372036854775808}', "2\\^63"),
        ("grammar", 'start: %json {"type": "string", "pattern": "(a{9999}){9999}"}', "repeats"),
        ("grammar", "start: %json {", "cannot be read"),
        ("grammar", 'start: r\nr: s{9999}\ns: "b"{9999}', "too complex|Too many"),
        ("grammar", "start: T\nT: /(a|b)*a(a|b){12}/ & ~/.*abab.*/ & /(ab|ba|aa|bb){40}/", "too many"),
        ("regex", "0a{9999}{9999}", "repeats"),
        ("regex", "0x{900000}", "repeats"),
        ("regex", "(a{0,9999}){0,9999}", "repeats"),
        ("regex", "a{99999999999999999999}", "repeats"),
        ("regex", "(" * 3000 + "a" + ")" * 3000, "levels deep"),
        ("choice", json.dumps(["x" * 900_000]), "20000 characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_text_constraint_that_is_too_large_is_refused(
    preparer: Preparer, kind: str, source: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        preparer.prepare(Constraint(kind, source))

    assert (refused.value.code, refused.value.param) == ("constraint_too_complex", kind)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "[a-z]{1,5000}"),
        ("regex", "\\w{5000}"),
        ("grammar", chain([f"r{i}" for i in range(60)])),
        ("grammar", 'start: w\nw: W ("," W){0,999}\nW: /[a-z]{1,40}/'),
        ("grammar", 'start: %json {"type": "integer"} "!"'),
        ("choice", json.dumps([f"option {i}" for i in range(5000)])),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_ordinary_text_constraint_is_not(preparer: Preparer, kind: str, source: str) -> None:
    assert preparer.prepare(Constraint(kind, source)).level == "strict"


@pytest.mark.parametrize("source", ['root ::= missing "a"', "root ::= a\na ::= b-c", 'root ::= "\\q"', "root ::= ("])
def test_a_gbnf_grammar_that_cannot_be_read_is_refused(preparer: Preparer, source: str) -> None:
    with pytest.raises(RequestError, match=r"cannot be (read|enforced)") as refused:
        preparer.prepare(Constraint("grammar", source))

    assert (refused.value.code, refused.value.param) == ("invalid_grammar", "grammar")


@pytest.mark.parametrize("source", ["(a?){30}a{30}", "(a+)+", "(a|a)*b", "(.*a){60}", "(.*a.*b.*c){20}d"])
def test_a_regex_made_for_backtracking_is_prepared_at_once(preparer: Preparer, source: str) -> None:
    assert preparer.prepare(Constraint("regex", source)).level == "strict"
    assert preparer.prepare(schema({"type": "string", "pattern": source})).level == "strict"


def test_a_shortest_example_is_found_in_linear_time() -> None:
    assert example("(a?){30}a{30}") == "a" * 30


@pytest.mark.parametrize("pattern", ["^(?=x)", "(a)\\1", "^\\w{0,5000}$", "(" * 3000 + "a" + ")" * 3000], ids=len)
def test_a_pattern_that_re2_cannot_read_is_dropped_and_reported(preparer: Preparer, pattern: str) -> None:
    prepared = preparer.prepare(schema({"type": "string", "pattern": pattern}))

    assert (prepared.level, prepared.dropped) == ("relaxed", ("/pattern",))


@pytest.mark.parametrize(
    "value",
    [
        {"pattern": CATASTROPHE},
        {"not": {"not": {"pattern": CATASTROPHE}}},
        {"if": {"pattern": CATASTROPHE}, "else": False},
        {"propertyNames": {"pattern": CATASTROPHE}},
        {"patternProperties": {CATASTROPHE: {}}, "additionalProperties": False},
        {"patternProperties": {CATASTROPHE: {}}, "unevaluatedProperties": False},
        {"allOf": [{"patternProperties": {CATASTROPHE: {}}}], "unevaluatedProperties": False},
        {"$ref": "#/$defs/a", "$defs": {"a": {"patternProperties": {CATASTROPHE: {}}, "additionalProperties": False}}},
    ],
    ids=str,
)
def test_a_pattern_made_for_backtracking_is_checked_in_linear_time(value: dict[str, Any]) -> None:
    """Each of these hung in `re` before."""
    keyed = "roperties" in str(value) or "propertyNames" in value

    assert validate(value, {VICTIM: 1} if keyed else VICTIM)
    assert not validate(value, {"aaa": 1} if keyed else "aaa")


@pytest.mark.parametrize("value", ["(" * 2000, "a{99999}{99999}", "^(a+)+$", "(?=a)", "\\p{L}"], ids=lambda v: v[:12])
def test_the_format_regex_is_what_re2_or_python_can_read(value: str) -> None:
    assert bool(validate({"format": "regex"}, value)) is (value[:2] == "((" or "}{" in value)


def test_a_message_about_keys_names_the_patterns_of_the_schema() -> None:
    patterns = {"^x": {"type": "integer"}, "y$": {}}

    errors = validate({"patternProperties": patterns, "additionalProperties": False}, {"x": "1", "abc": 2})

    assert errors == [
        "/x: '1' is not of type 'integer'",
        ": 'abc' does not match any of the regexes: '^x', 'y$'",
    ]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("^\\u0041[\\u0430-\\u044f]+$", "Aя", "Az"),
        ("^\\u{1F600}$", "😀", "😁"),
        ("^\\ud83d\\ude00$", "😀", "😁"),
        ("^a\\Z", "a", "ab"),
        ("^a{,2}$", "aa", "aaa"),
        ("^\\s[\\s]\\S[\\S]$", "\u00a0\u2003ab", "\u00a0\u2003a\u3000"),
        ("^[\\b]\\_$", "\b_", "b_"),
        ("^(?P<n>a)(?<m>b)$", "ab", "b"),
        ("^\\p{L}$", "é", "1"),
        ("^[]a]$", "]", "b"),
        ("^\\d$", "1", "٣"),
    ],
)
def test_re2_reads_patterns_as_python_and_json_schema_do(pattern: str, yes: str, no: str) -> None:
    found = compiled(pattern)

    assert found is not None
    assert (found.linear, found.search(yes), found.search(no)) == (True, True, False)


def test_a_text_that_is_no_unicode_can_be_searched() -> None:
    assert validate({"pattern": "^a"}, "\ud800")
    assert is_linear("\ud800") is False


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("0a{9999}{9999}", (99_980_002, 0)),
        ("(ab{2,3}|c){5}x", (26, 1)),
        ("[a-z]{2}\\d+", (3, 0)),
        ("a{99999999999}", (HUGE, 0)),
        (")))(", (3, 1)),
        ("", (0, 0)),
    ],
)
def test_the_size_of_a_regex_has_its_repeats_written_out(pattern: str, expected: tuple[int, int]) -> None:
    assert size(pattern) == expected


def test_the_measures_of_a_grammar() -> None:
    source = 'start: a T{3} // b: c\n a[max_tokens=5]: "x:" | %json {"a": 1}\nT.2: U{4} /y{5}/\nU: "ab"~2..6\n'

    found = measures(source)

    assert (found.rules, found.chain, found.largest) == (4, 3, 4 * 12 + 5)
    assert list(embedded(source)) == [{"a": 1}]


@pytest.mark.parametrize("text", ["(", "[", "{", "{1", "\\", '"', '\\"', "/", "a:", "a\n:", "T: T\n", "\n", "%json {"])
def test_what_reads_a_constraint_takes_linear_time(text: str) -> None:
    """A quadratic step would take minutes here."""
    source = text * (100_000 // len(text))

    size(source)
    measures(source)


@pytest.mark.parametrize(
    "value",
    [
        nested_lists(3999, 3),
        nested_lists(3999, 9),
        nested_lists(200, 3),
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        {"type": "string", "minLength": 2**70},
        {"allOf": [nested_lists(3999, 3), {"type": "array"}]},
        {"anyOf": [nested_lists(3999, 3), nested_lists(3999, 4)]},
        {"type": "object", "properties": {"a": nested_lists(3999, 3)}, "required": ["a"]},
        {
            "$ref": "#/$defs/d0",
            "$defs": {"d60": {"type": "null"}}
            | {
                f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2, "minItems": 2}
                for i in range(60)
            },
        },
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_schema_whose_shortest_document_is_too_long_is_refused_unbuilt(preparer: Preparer, value: Any) -> None:
    with pytest.raises(RequestError, match="shortest document") as refused:
        preparer.prepare(schema(value))

    assert (refused.value.code, refused.value.param) == ("constraint_too_complex", "response_format")


def test_parts_that_need_not_be_written_may_be_long() -> None:
    optional = {"type": "object", "properties": {"a": nested_lists(3999, 3)}}
    choice = {"anyOf": [nested_lists(3999, 3), {"type": "integer"}]}

    assert closing_texts(optional)[0] == "{}"
    assert closing_texts(choice)[0] == "100"


@pytest.mark.parametrize("dialect", [5, ["a"], {}, None, True])
def test_a_dialect_that_is_no_text_does_not_fail(preparer: Preparer, dialect: Any) -> None:
    value = {"$schema": dialect, "type": "array", "uniqueItems": True}

    with pytest.raises(RequestError, match="schema") as refused:
        preparer.prepare(schema(value))

    assert refused.value.code == "invalid_schema"
    assert validate(value, [1, 1])


@pytest.mark.parametrize(
    ("wrong", "repaired"),
    [
        (["a", "a", "abcd", {"k": 1}], ["a", "ab", {"k": 1}]),
        (["a", "a", "a", "abcd"], ["a", "ab"]),
        (["a", "a", "abcd", "xyz"], ["a", "ab", "xy"]),
    ],
)
def test_a_repair_does_not_cut_what_another_repair_moved(wrong: list[Any], repaired: list[Any]) -> None:
    """The repeated items are removed first. Then another item is at the place of the error: an object, or none."""
    value = {"type": "array", "uniqueItems": True, "items": {"maxLength": 2}}

    assert repair(value, wrong)[0] == repaired


def test_llguidances_own_options_in_a_schema_are_left_out(preparer: Preparer) -> None:
    value = {"type": "object", "x-guidance": {"whitespace_pattern": "( {9999}){9999}", "lenient": True}}

    assert preparer.prepare(schema(value)).grammar == preparer.prepare(schema({"type": "object"})).grammar


TAGGED = [
    {"type": "object", "properties": {"kind": {"const": f"v{i}"}, "x": {"uniqueItems": True}}, "required": ["kind"]}
    for i in range(600)
]


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ({"oneOf": TAGGED}, "relaxed"),
        ({"oneOf": [{"enum": [f"value {i}-{j}" for j in range(100)]} for i in range(40)]}, "strict"),
        (
            {
                "properties": {f"k{i}": {"$ref": f"https://x.org/d{i}"} for i in range(400)},
                "$defs": {f"d{i}": {"$id": f"https://x.org/d{i}", "type": "string"} for i in range(400)},
            },
            "strict",
        ),
        ({"properties": {f"k{i}": {"type": "string", "not": {"enum": ["a", "b"]}} for i in range(300)}}, "strict"),
        (
            {"properties": {f"k{i}": {"enum": ["a", f"b{i}"], "contains": {}} for i in range(300)}, "$defs": {"a": {}}},
            "strict",
        ),
    ],
    ids=["tags", "values", "ids", "not", "enums"],
)
def test_a_large_schema_takes_time_linear_to_its_size(preparer: Preparer, value: Any, level: str) -> None:
    """Each had a quadratic step. For 100 kB it took 10 to 25 seconds."""
    assert preparer.prepare(schema(value)).level == level


def test_prepared_data_goes_over_a_pipe_as_one_line(preparer: Preparer) -> None:
    value = {"type": "array", "items": {"type": "string", "pattern": "^\\d{2}\n?é$"}, "uniqueItems": True}

    prepared = preparer.prepare(schema(value), Manner(compact=True))

    assert Prepared.of_json(prepared.to_json()) == prepared
    assert "\n" not in prepared.to_json()
    assert prepared.to_json().isascii()


def test_the_compiler_makes_no_second_grammar_of_one_constraint(preparer: Preparer, compiler: GrammarCompiler) -> None:
    prepared = preparer.prepare(schema({"type": "string", "maxLength": 5}), PLAIN)

    one, two = compiler.matchers(prepared, 2)
    (again,) = compiler.matchers(Prepared.of_json(prepared.to_json()), 1)

    assert one is not two
    assert one.compiled is two.compiled is again.compiled


def test_the_cache_of_grammars_is_bounded_by_their_weight(preparer: Preparer, compiler: GrammarCompiler) -> None:
    """Each of these has grown by 40 MiB in the trial, so two fit into the cache, and the oldest is compiled again."""
    heavy = [
        Prepared(preparer.prepare(schema({"const": name})).grammar, False, 20, weight=40 * 2**20)
        for name in ("one", "two", "three")
    ]
    first = compiler.matchers(heavy[0], 1)[0]
    for prepared in heavy[1:]:
        last = compiler.matchers(prepared, 1)[0]

    assert compiler.matchers(heavy[2], 1)[0].compiled is last.compiled
    assert compiler.matchers(heavy[0], 1)[0].compiled is not first.compiled


def test_a_grammar_whose_lexer_is_full_is_compiled_again(preparer: Preparer, compiler: GrammarCompiler) -> None:
    prepared = preparer.prepare(Constraint("regex", "[a-z]+!"))
    full = compiler.matchers(prepared, 1)[0]

    full.compiled.spent = True

    assert compiler.matchers(prepared, 1)[0].compiled is not full.compiled


def test_a_grammar_whose_tokens_are_only_checked_gets_new_fuel(
    preparer: Preparer, compiler: GrammarCompiler, vocabulary: Any
) -> None:
    """Checks of single tokens use up the fuel that the last mask left. Now and then a mask is computed to refill it."""
    (matcher,) = compiler.matchers(preparer.prepare(Constraint("regex", "[a-z]{200}")), 1)
    (letter,) = vocabulary.greedy_tokenize("q")

    unfilled = []
    for _ in range(40):
        assert matcher.allows(letter)
        matcher.accept([letter])
        unfilled.append(matcher.compiled.unfilled)

    assert (unfilled[0], max(unfilled), unfilled.count(0)) == (1, 15, 2)


def test_a_sequence_with_slow_steps_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.25, 0.32, 0.47])
    monkeypatch.setattr("time.thread_time", lambda: next(clock))

    assert slow_time(0.0, began=0.2) == 0.0  # 50 ms is not slow
    assert slow_time(0.0, began=0.2) == pytest.approx(0.12)  # once may be the fault of a busy machine
    with pytest.raises(RequestError, match="too slow \\(one step took 150 ms\\)") as refused:
        slow_time(0.12, began=0.32)
    assert refused.value.code == "grammar_limit"


def test_a_string_is_ended_without_a_mask_for_each_letter_if_masks_are_slow(
    monkeypatch: pytest.MonkeyPatch, vocabulary: Any
) -> None:
    """One choice of a closing token may compute many masks. It stops when their time is used up."""
    pieces = [vocabulary.decode_bytes([token]) for token in range(vocabulary.vocab_size)]
    ranks = ClosingRanks.of(pieces, frozenset([vocabulary.eos_token]))
    matcher = new_matcher(vocabulary, vocabulary_grammar("[a-z ]{50}!"), large=False)
    masks: list[Any] = []
    seconds = iter(range(1000))
    monkeypatch.setattr("time.thread_time", lambda: next(seconds))

    def mask(at: Any) -> Any:
        masks.append(at)
        bits = np.frombuffer(at.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: len(pieces)].view(bool)

    chosen = Closing(ranks, Prepared("", large=False, reserve=0, json_text=False)).choose(
        matcher, mask(matcher), mask, np.zeros(len(pieces))
    )

    assert re.fullmatch("[a-z ]", pieces[chosen].decode())
    assert len(masks) == 1


def vocabulary_grammar(regex: str) -> str:
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_regex(regex))
