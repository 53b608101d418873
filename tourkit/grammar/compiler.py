"""Compiles constraints to llguidance grammars and caches the recent ones.

A JSON Schema first gets limits (`limits`). If llguidance refuses it, weaker forms of it are tried (`ladder`).
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from tourkit.errors import RequestError, one_line
from tourkit.generation import Constraint
from tourkit.grammar.check import metaschema_error, readable
from tourkit.grammar.closing import ClosingRanks
from tourkit.grammar.ladder import miscounted, rungs
from tourkit.grammar.limits import bounded
from tourkit.grammar.matcher import LIMIT_HIT, Compiled, Matcher, error_line
from tourkit.grammar.regex_example import example
from tourkit.grammar.rewrites import KEYWORDS, SHAPES
from tourkit.grammar.shortest import closing_texts, patterns, samples
from tourkit.grammar.spacing import separators

if TYPE_CHECKING:
    from collections.abc import Callable


_CACHE_SIZE = 256
_SLACK = 16  # tokens
_GRAMMAR_RESERVE = 8  # tokens; how many a Lark grammar needs to end its text is not known
_MAX_BEGUN = 160  # tokens kept for optional parts; with more, a short answer has room only for what is required
_MAX_SOURCE = 1_000_000  # characters
_UNSATISFIABLE = "nsatisfiable"
_UNRESOLVED = re.compile("not present in a registry|does not exist|nresolvable")
# All copies of a grammar share the lexer's initial fuel, and a step in long repetitions needs much of it. With the
# default values a busy grammar runs out of fuel.
_FUEL = {"initial_lexer_fuel": 10_000_000, "step_lexer_fuel": 5_000_000}
_SIZES = (_FUEL, _FUEL | {"max_items_in_row": 20_000, "step_max_items": 500_000})
_TEXT_KINDS = ("regex", "grammar", "choice")  # kinds of constraints; a request has a field of the same name for each
_MAX_NESTING = 100  # llguidance and Python's own JSON parser fail a little above this


@dataclass(frozen=True, slots=True)
class Manner:
    """How a schema is compiled.

    `tight`: allow fewer documents if that makes more of the schema enforceable; for a second attempt. `compact`: put no
    space after commas and colons.
    """

    tight: bool = False
    compact: bool = False


class GrammarCompiler:
    """Compiles constraints for one vocabulary and caches the recent ones. Thread-safe.

    `piece` returns the bytes of a token, `count` the number of tokens of a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        n_vocab: int,
        eog: frozenset[int],
        piece: Callable[[int], bytes],
        count: Callable[[str], int],
        *,
        leading_space: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._count = count
        self._leading_space = leading_space
        self._ranks = ClosingRanks.of([piece(token) for token in range(n_vocab)], eog)
        self._braces = [token for token in range(n_vocab) if piece(token) in (b"{", b"[")]
        self._lead = [token for token in range(n_vocab) if piece(token) == b" "][:1] * 2
        self._cache: OrderedDict[tuple[Constraint, Manner], Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, constraint: Constraint, manner: Manner = Manner()) -> Matcher:
        """Return a new matcher. Raises RequestError if the constraint is malformed, or cannot be met or followed."""
        return self.matchers(constraint, manner, 1)[0]

    def matchers(self, constraint: Constraint, manner: Manner, count: int) -> list[Matcher]:
        """Return `count` independent matchers of one grammar, each at its start. Raises as `matcher` does."""
        key = (constraint, manner)
        with self._lock:
            compiled = self._cache.get(key)
            if compiled is not None:
                self._cache.move_to_end(key)
        # All copies share the prototype's lexer. If the lexer has run out of room, the grammar is compiled again.
        if compiled is None or self._probed(compiled.prototype)[0] is None:
            compiled = self._compile(constraint, manner)
            with self._lock:
                self._cache[key] = compiled
                while len(self._cache) > _CACHE_SIZE:
                    self._cache.popitem(last=False)
        return [Matcher(compiled, self._ranks, self._n_vocab) for _ in range(count)]

    def _compile(self, constraint: Constraint, manner: Manner) -> Compiled:
        if constraint.is_json:
            schema = _parsed(constraint.source)
            compiled = self._compile_schema(schema, manner)
            return _relaxed(compiled, miscounted(schema)) if '"minProperties"' in constraint.source else compiled
        grammar = _text_grammar(constraint)
        prototype, said = self._prototype(grammar)
        if prototype is None:
            _refuse(constraint.kind, f"the {constraint.kind} cannot be enforced: {said}", "invalid_grammar")
        ways = (example(constraint.source) or "",) if constraint.kind == "regex" else ()
        reserve = 0 if constraint.kind == "choice" else max(map(self._count, ways), default=_GRAMMAR_RESERVE)
        return Compiled(prototype, said, reserve, json_text=False, samples=tuple(filter(None, ways)))

    def _compile_schema(self, schema: Any, manner: Manner) -> Compiled:
        if not isinstance(schema, dict):
            schema = {} if schema is True else {"allOf": [schema]}
        try:
            return self._first_followed(schema, manner)
        except (TypeError, AttributeError, ValueError, KeyError, RecursionError, re.error) as exc:
            # Rewriting failed at a keyword whose value has the wrong type. The metaschema gives the clearest message.
            problem = metaschema_error(schema) or one_line(f"{type(exc).__name__} {exc}")
        _refuse("response_format", f"the schema is not a valid JSON Schema: {problem}", "invalid_schema")

    def _first_followed(self, schema: dict[str, Any], manner: Manner) -> Compiled:
        """Compile the schema as it is. If llguidance refuses it, return the first rung of its ladder that compiles."""
        prototype, said = self._attempt(schema, manner)
        if prototype is not None:
            return Compiled(prototype, said, self._reserve(schema), samples=samples(schema))
        _refuse_hopeless(said)
        if problem := metaschema_error(schema):
            _refuse("response_format", f"the schema is not a valid JSON Schema: {problem}", "invalid_schema")
        for pattern in patterns(schema):
            if not readable(pattern) and not self._reads(pattern):
                _refuse("response_format", f"the pattern {pattern!r} is not a regular expression", "invalid_schema")
        first_reason = said
        for rung in rungs(schema, readable=self._reads, tight=manner.tight):
            prototype, said = self._attempt(rung.schema, manner)
            if prototype is not None:
                reserve, ways = self._reserve(rung.schema), samples(rung.schema)
                return Compiled(prototype, said, reserve, rung.level, rung.dropped, samples=ways)
            if _UNRESOLVED.search(said):
                _refuse("response_format", f"a reference in the schema names nothing: {said}", "invalid_schema")
            if not rung.narrowed and rung.level < SHAPES:  # at SHAPES only a cycle of references may be left
                _refuse_hopeless(said)
        _refuse("response_format", f"the schema cannot be enforced: {first_reason}", "unsupported_schema")

    def _reads(self, pattern: str) -> bool:
        """Return whether llguidance can follow this pattern in a schema."""
        from llguidance import LLMatcher

        grammar = self._grammar({"type": "string", "pattern": pattern}, Manner())
        return not LLMatcher(self._tokenizer, grammar, log_level=0).is_error()

    def _attempt(self, schema: dict[str, Any], manner: Manner) -> tuple[Any, str]:
        """Compile the schema with limits; if llguidance refuses these, without. Return what `_prototype` does."""
        prototype, said = self._prototype(self._grammar(bounded(schema), manner))
        if prototype is None and (_UNSATISFIABLE in said or LIMIT_HIT.search(said)):
            prototype, said = self._prototype(self._grammar(schema, manner))
        return prototype, said

    def _prototype(self, grammar: str) -> tuple[Any, str]:
        """Return a matcher whose first masks can be computed, and its grammar; else None and the reason in one line."""
        from llguidance import LLMatcher, LLParserLimits

        reason = ""
        for sizes in _SIZES:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**sizes))
            prototype, reason = self._probed(matcher)
            if prototype is not None:
                return prototype, grammar
            if not LIMIT_HIT.search(reason):
                break
        return None, reason

    def _probed(self, prototype: Any) -> tuple[Any, str]:
        """Return the prototype and "" if its first masks can be computed; else None and the reason in one line."""
        if prototype.is_error():
            return None, error_line(prototype)
        probe = prototype.deep_copy()
        if self._leading_space:
            probe.try_consume_tokens(self._lead)  # after all leading space, only the document can follow
        probe.compute_bitmask()
        if probe.is_error():
            return None, error_line(probe)
        # An object with thousands of optional keys hits a limit only once it is open.
        for token in self._braces:
            if probe.validate_tokens([token]) == 1:
                probe.consume_token(token)
                probe.compute_bitmask()
                return (None, error_line(probe)) if probe.is_error() else (prototype, "")
        return prototype, ""

    def _reserve(self, schema: Any) -> int:
        """Return how many tokens are enough to close a document of this schema."""
        required, begun = (self._count(text) for text in closing_texts(schema))
        return int((required + min(begun, _MAX_BEGUN)) * 1.15) + _SLACK

    def _grammar(self, schema: dict[str, Any], manner: Manner) -> str:
        """Return the grammar of a schema, as llguidance serialises it."""
        from llguidance import LLMatcher

        spacing = separators(compact=manner.compact)
        if not self._leading_space:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=spacing))
        # SentencePiece models start with a token that has a leading space. A plain JSON grammar refuses this space.
        body = json.dumps(schema | {"x-guidance": spacing})
        return str(LLMatcher.grammar_from_lark(f"start: lead body\nlead: /[ \\n]{{0,2}}/\nbody: %json {body}\n"))


def _relaxed(compiled: Compiled, dropped: tuple[str, ...]) -> Compiled:
    """Return the same grammar, marked as not enforcing the parts in `dropped`."""
    if not dropped:
        return compiled
    return replace(compiled, level=max(compiled.level, KEYWORDS), dropped=tuple(sorted({*compiled.dropped, *dropped})))


def _parsed(source: str) -> Any:
    """Parse the schema. Refuse it if it is too large or nested too deeply."""
    if len(source) > _MAX_SOURCE:
        _refuse("response_format", f"the schema has {len(source)} characters: at most {_MAX_SOURCE}", "invalid_schema")
    try:
        schema = json.loads(source)
    except RecursionError:
        schema = None
    except ValueError as exc:
        _refuse("response_format", f"the schema is not JSON: {exc}", "invalid_schema")
    brackets = source.count("{") + source.count("[")  # a quick check that clears most schemas
    if schema is None or (brackets > _MAX_NESTING and _depth(schema) > _MAX_NESTING):
        _refuse("response_format", f"the schema is nested more than {_MAX_NESTING} levels deep", "invalid_schema")
    return schema


def _text_grammar(constraint: Constraint) -> str:
    """Return the grammar of a regex, a choice, or a Lark or GBNF text."""
    from llguidance import LLMatcher

    source = constraint.source
    if not source.strip() or len(source) > _MAX_SOURCE:
        _refuse(constraint.kind, f"the {constraint.kind} is empty or over {_MAX_SOURCE} characters", "invalid_grammar")
    match constraint.kind:
        case "regex":
            return str(LLMatcher.grammar_from_regex(source))
        case "choice":
            options = " | ".join(json.dumps(option) for option in _options(source))
            return str(LLMatcher.grammar_from_lark(f"start: {options}\n"))
        case "grammar":
            return str(LLMatcher.grammar_from_lark(_lark(source)))
    _refuse(constraint.kind, f"{constraint.kind!r} is not a kind of constraint", "invalid_grammar")


def _options(source: str) -> list[str]:
    """Return the strings of a choice, without duplicates."""
    try:
        options = json.loads(source)
    except ValueError:
        options = None
    if not isinstance(options, list) or not options or not all(isinstance(o, str) and o for o in options):
        _refuse("choice", "choice must be a list of at least one string, none of them empty", "invalid_grammar")
    return list(dict.fromkeys(options))


def _lark(source: str) -> str:
    """Return a Lark grammar unchanged; convert a GBNF grammar to Lark."""
    if not re.search(r"^\s*root\s*::=", source, re.MULTILINE):
        return source
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        return str(gbnf_to_lark(source))
    except (GbnfToLarkError, ValueError, IndexError, KeyError, RecursionError) as exc:
        _refuse("grammar", f"the grammar cannot be read: {one_line(str(exc))}", "invalid_grammar")


def _refuse(kind: str, message: str, code: str) -> NoReturn:
    """Raise a RequestError whose `param` is the field that holds this kind of constraint."""
    raise RequestError(message, param=kind if kind in _TEXT_KINDS else "response_format", code=code)


def _refuse_hopeless(reason: str) -> None:
    """Refuse the schema if llguidance's `reason` says that no document can meet it."""
    if _UNSATISFIABLE in reason or "NoExtension" in reason:
        _refuse("response_format", f"no document can meet the schema: {reason}", "unsupported_schema")


def _depth(value: Any, limit: int = _MAX_NESTING + 1) -> int:
    """Return the nesting depth of a JSON value; stop counting at `limit`."""
    if limit == 0 or not isinstance(value, dict | list):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(child, limit - 1) for child in children), default=0)
