"""Prepares constraints: all work on a schema, a trial compile, and a walk of some steps in the grammar.

A JSON Schema first gets limits (`limits`). If llguidance refuses it, weaker forms of it are tried (`ladder`). This work
can take any amount of time and memory, or end the process. So it is made for a process that can be killed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tourkit.errors import RequestError, one_line
from tourkit.generation import Constraint
from tourkit.grammar import trial_walk
from tourkit.grammar.call_grammar import CallSpec, Parts, call_grammar
from tourkit.grammar.check import readable
from tourkit.grammar.compiler import new_matcher
from tourkit.grammar.ladder import miscounted, rungs
from tourkit.grammar.limits import bounded
from tourkit.grammar.matcher import LIMIT_HIT, error_line
from tourkit.grammar.metaschema import metaschema_error
from tourkit.grammar.own_memory import resident
from tourkit.grammar.patterns import is_linear
from tourkit.grammar.prepared import PLAIN, Manner, Prepared
from tourkit.grammar.refusals import TOO_COMPLEX, refuse
from tourkit.grammar.regex_example import example
from tourkit.grammar.rewrites import EXACT, GENERIC, SHAPES
from tourkit.grammar.shortest import closing_texts, patterns, samples
from tourkit.grammar.spacing import separators
from tourkit.grammar.static_limits import parsed, too_large, unfollowed
from tourkit.grammar.text_grammars import text_grammar

_SLACK = 16  # tokens
_GRAMMAR_RESERVE = 8  # tokens; how many a Lark grammar needs to end its text is not known
_MAX_BEGUN = 160  # tokens kept for optional parts; with more, a short answer has room only for what is required
_LEVELS = ("strict", "relaxed", "generic")
_UNSATISFIABLE = "nsatisfiable"
_UNRESOLVED = re.compile("not present in a registry|does not exist|nresolvable")


class Preparer:
    """Prepares constraints for one vocabulary. Caches nothing.

    `tokenizer`: llguidance's view of the vocabulary. `pieces`: the bytes of each token. `count` returns the number of
    tokens of a text. `leading_space`: answers of the model begin with a space.
    """

    def __init__(
        self,
        tokenizer: Any,
        pieces: Sequence[bytes],
        count: Callable[[str], int],
        *,
        leading_space: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._leading_space = leading_space
        self._inside = Preparer(tokenizer, pieces, count) if leading_space else self
        self._braces = [token for token, piece in enumerate(pieces) if piece in (b"{", b"[")]
        self._lead = [token for token, piece in enumerate(pieces) if piece == b" "][:1] * 2

    def prepare(self, constraint: Constraint, manner: Manner = PLAIN) -> Prepared:
        """Return the prepared constraint. Raises RequestError if it is malformed, or cannot be met or followed."""
        if constraint.kind == "tools":
            return self._of_calls(CallSpec.of_json(constraint.source), manner)
        if constraint.is_json:
            schema = parsed(constraint.source)
            prepared = self._of_schema(schema, manner)
            return _relaxed(prepared, miscounted(schema)) if '"minProperties"' in constraint.source else prepared
        grammar = text_grammar(constraint)
        shortest = example(constraint.source) if constraint.kind == "regex" else None
        tried, said = self._tried(grammar, shortest or "")
        if tried is None:
            said = f"the {constraint.kind} cannot be enforced: {said}"
            limited = LIMIT_HIT.search(said) and "NoExtension" not in said
            refuse(constraint.kind, said, TOO_COMPLEX if limited else "invalid_grammar")
        ways = (shortest or "",) if constraint.kind == "regex" else ()
        reserve = 0 if constraint.kind == "choice" else max(map(self._count, ways), default=_GRAMMAR_RESERVE)
        return replace(tried, reserve=reserve, json_text=False, samples=tuple(filter(None, ways)))

    def _of_calls(self, spec: CallSpec, manner: Manner) -> Prepared:
        """Return the grammar of calls. The schema of each tool is made followable for itself."""
        made = [self._inner(*each, manner) for each in zip(spec.schemas, spec.where, strict=True)]
        content = None if spec.content is None else self._inner(spec.content, "response_format", manner)
        every = made if content is None else [*made, content]
        bodies = [_body(each) for each in every]
        tried, said = self._tried_calls(spec, bodies, with_content=content is not None)
        level = max((each.level for each in every), key=_LEVELS.index)
        if tried is None and LIMIT_HIT.search(said):  # each schema can be followed, but not all of them together
            anything = [{"type": "object"} | _separators(manner)] * len(made)
            tried, said = self._tried_calls(spec, [*anything, *bodies[len(made) :]], with_content=content is not None)
            level = "generic"
        if tried is None:
            refuse("tools", f"the tools cannot be enforced: {said}", "unsupported_schema")
        costs = [each.reserve + self._count(spec.around(at)) for at, each in enumerate(made)]
        return replace(
            tried,
            reserve=max([*costs, 0 if content is None else content.reserve]),
            level=level,
            dropped=tuple(
                f"{_pointer(where)}{at}" for each, where in zip(made, spec.where, strict=True) for at in each.dropped
            ),
            samples=tuple(dict.fromkeys(sample for each in every for sample in each.samples)),
            optional=not spec.required and content is None,
            header_end=next((part for part in spec.free[-1:] if isinstance(part, int)), None),
            after="" if spec.required or spec.at_start else spec.marker_text or spec.marker[-1],
            ends=tuple(map(self._tokens, spec.ends)),
        )

    def _tokens(self, parts: Parts) -> tuple[int, ...]:
        """Return the tokens of texts and control tokens."""
        each = [[part] if isinstance(part, int) else self._tokenizer.greedy_tokenize(part) for part in parts]
        return tuple(int(token) for tokens in each for token in tokens)

    def _tried_calls(self, spec: CallSpec, bodies: list[Any], *, with_content: bool) -> tuple[Prepared | None, str]:
        from llguidance import LLMatcher

        tools, content = (bodies[:-1], bodies[-1]) if with_content else (bodies, None)
        lark = call_grammar(spec, tools, content, leading_space=self._leading_space)
        return self._tried(str(LLMatcher.grammar_from_lark(lark)), "")

    def _inner(self, source: str, where: str, manner: Manner) -> Prepared:
        """Return a prepared schema for JSON inside the text. `where`: its field in the request."""
        try:
            return self._inside.prepare(Constraint("json_schema", source), manner)
        except RequestError as exc:
            raise RequestError(f"{where}: {exc}", param=where, code=exc.code) from exc

    def _of_schema(self, schema: Any, manner: Manner) -> Prepared:
        if not isinstance(schema, dict):
            schema = {} if schema is True else {"allOf": [schema]}
        schema = {key: value for key, value in schema.items() if key != "x-guidance"}  # llguidance's own options
        try:
            return self._first_followed(schema, manner)
        except (TypeError, AttributeError, ValueError, KeyError, RecursionError, re.error) as exc:
            # Rewriting failed at a keyword whose value has the wrong type. The metaschema gives the clearest message.
            problem = metaschema_error(schema) or one_line(f"{type(exc).__name__} {exc}")
        refuse("response_format", f"the schema is not a valid JSON Schema: {problem}", "invalid_schema")

    def _first_followed(self, schema: dict[str, Any], manner: Manner) -> Prepared:
        """Try the schema as it is. If llguidance refuses it, return the first rung of its ladder that it follows."""
        prepared, said = self._attempt(schema, manner)
        if prepared is not None:
            return prepared
        _refuse_hopeless(said)
        if problem := metaschema_error(schema):
            refuse("response_format", f"the schema is not a valid JSON Schema: {problem}", "invalid_schema")
        for pattern in patterns(schema):
            if not readable(pattern) and not self._reads(pattern):
                refuse("response_format", f"the pattern {pattern!r} is not a regular expression", "invalid_schema")
        first_reason = said
        for rung in rungs(schema, readable=self._reads, tight=manner.tight):
            prepared, said = self._attempt(rung.schema, manner)
            if prepared is not None:
                level = {EXACT: "strict", GENERIC: "generic"}.get(rung.level, "relaxed")
                return replace(prepared, level=level, dropped=rung.dropped)
            if _UNRESOLVED.search(said):
                refuse("response_format", f"a reference in the schema names nothing: {said}", "invalid_schema")
            if not rung.narrowed and rung.level < SHAPES:  # at SHAPES only a cycle of references may be left
                _refuse_hopeless(said)
        refuse("response_format", f"the schema cannot be enforced: {first_reason}", "unsupported_schema")

    def _reads(self, pattern: str) -> bool:
        """Return whether this pattern in a schema can be followed, and checked in linear time."""
        if too_large(pattern) or not is_linear(pattern):
            return False
        grammar = self._grammar({"type": "string", "pattern": pattern}, PLAIN)
        matcher = new_matcher(self._tokenizer, grammar, large=False)
        return not matcher.is_error()

    def _attempt(self, schema: dict[str, Any], manner: Manner) -> tuple[Prepared | None, str]:
        """Try the schema with limits; if llguidance refuses these, without. Return what `_tried` does."""
        if said := unfollowed(schema):
            return None, said
        required, begun = closing_texts(schema)
        shortest = required
        if manner.compact:
            shortest = json.dumps(json.loads(required), ensure_ascii=False, separators=(",", ":"))
        prepared, said = self._tried(self._grammar(bounded(schema), manner), shortest)
        if prepared is None and (_UNSATISFIABLE in said or LIMIT_HIT.search(said)):
            prepared, said = self._tried(self._grammar(schema, manner), shortest)
        if prepared is None:
            return None, said
        reserve = int((self._count(required) + min(self._count(begun), _MAX_BEGUN)) * 1.15) + _SLACK
        return replace(prepared, reserve=reserve, samples=samples(schema)), said

    def _tried(self, grammar: str, shortest: str) -> tuple[Prepared | None, str]:
        """Compile a grammar and follow it for some steps. Return it, not yet complete; or None and the reason.

        `shortest`: a text that the grammar probably allows.
        """
        reason = ""
        for large in (False, True):
            before = resident()
            matcher = new_matcher(self._tokenizer, grammar, large=large)
            reason = error_line(matcher) if matcher.is_error() else self._fault(matcher, shortest)
            if not reason:
                return Prepared(grammar, large, reserve=0, weight=max(0, resident() - before)), ""
            if not LIMIT_HIT.search(reason):
                break
        return None, reason

    def _fault(self, prototype: Any, shortest: str) -> str:
        """Return why the first steps in a grammar fail; "" if they do not."""
        probe = prototype.deep_copy()
        if self._leading_space:
            probe.try_consume_tokens(self._lead)  # after all leading space, only the document can follow
        probe.compute_bitmask()
        if probe.is_error():
            return error_line(probe)
        known = list(self._tokenizer.greedy_tokenize(shortest)) if shortest else []
        said = trial_walk.fault(probe, known)
        # An object with thousands of optional keys hits a limit only once it is open.
        for token in self._braces:
            if not said and probe.validate_tokens([token]) == 1:
                probe.consume_token(token)
                probe.compute_bitmask()
                return error_line(probe) if probe.is_error() else ""
        return said

    def _grammar(self, schema: dict[str, Any], manner: Manner) -> str:
        """Return the grammar of a schema, as llguidance serialises it."""
        from llguidance import LLMatcher

        spacing = separators(compact=manner.compact)
        if not self._leading_space:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=spacing))
        # SentencePiece models start with a token that has a leading space. A plain JSON grammar refuses this space.
        body = json.dumps(schema | {"x-guidance": spacing})
        return str(LLMatcher.grammar_from_lark(f"start: lead body\nlead: /[ \\n]{{0,2}}/\nbody: %json {body}\n"))


def _body(prepared: Prepared) -> Any:
    """Return the JSON Schema in a grammar that was made from one."""
    return json.loads(prepared.grammar)["grammars"][0]["json_schema"]


def _pointer(field: str) -> str:
    """Return the name of a field of a request as a JSON pointer."""
    return "/" + field.replace("[", "/").replace("]", "").replace(".", "/")


def _separators(manner: Manner) -> dict[str, Any]:
    """Return the spacing of JSON as a part of a schema that llguidance reads."""
    return {"x-guidance": separators(compact=manner.compact)}


def _relaxed(prepared: Prepared, dropped: tuple[str, ...]) -> Prepared:
    """Return the same grammar, marked as not enforcing the parts in `dropped`."""
    if not dropped:
        return prepared
    level = "relaxed" if prepared.level == "strict" else prepared.level
    return replace(prepared, level=level, dropped=tuple(sorted({*prepared.dropped, *dropped})))


def _refuse_hopeless(reason: str) -> None:
    """Refuse the schema if llguidance's `reason` says that no document can meet it."""
    if _UNSATISFIABLE in reason or "NoExtension" in reason:
        refuse("response_format", f"no document can meet the schema: {reason}", "unsupported_schema")
