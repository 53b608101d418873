"""Other forms of a JSON Schema that llguidance refuses: first equivalent ones, then weaker ones without some parts.

Each rung lists the parts it leaves out. The rules for each keyword are in `rewrites`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tourkit.grammar.rewrites import EXACT, GENERIC, KEYWORDS, ONE_OF, PATTERNS, SHAPES, Readable, Rewrite
from tourkit.grammar.schema_walk import References, converted, walk


@dataclass(frozen=True, slots=True)
class Rung:
    """A schema to try. `dropped`: JSON pointers to the parts of the original it leaves out; empty at level EXACT.

    `narrowed`: a rewrite forbids something that the original allows, so a failure proves nothing about the original.
    """

    level: int
    schema: Any
    dropped: tuple[str, ...] = ()
    narrowed: bool = False


def rungs(schema: dict[str, Any], *, readable: Readable, tight: bool = False) -> Iterator[Rung]:
    """Yield weaker and weaker forms of `schema`, down to "any value of the root's type".

    `readable` returns whether llguidance can follow a regular expression. `tight`: begin with forms that allow only
    some of the valid documents and no invalid ones; for a second attempt.
    """
    root = _bundled(schema)
    narrowed = False
    if tight:
        tried = None
        for level in (EXACT, PATTERNS):
            rewrite = Rewrite(root, level, True, readable, tight=True)
            tightened = rewrite.schema(root, "")
            if not rewrite.dropped and tightened != tried:
                yield Rung(EXACT, tightened, narrowed=True)
            tried = tightened
    for narrow in (True, False):
        seen = ""
        for level in (EXACT, ONE_OF, KEYWORDS, PATTERNS, SHAPES):
            rewrite = Rewrite(root, level, narrow, readable)
            weaker = rewrite.schema(root, "")
            text = json.dumps(weaker)
            if text != seen:
                dropped = tuple(sorted(set(rewrite.dropped)))
                yield Rung(level if dropped else EXACT, weaker, dropped, rewrite.narrowed)
            seen, narrowed = text, narrowed or rewrite.narrowed
        if not narrowed:
            break
    yield Rung(GENERIC, _generic(schema), ("",))


def miscounted(schema: Any) -> tuple[str, ...]:
    """Return pointers to each `minProperties` that one key written twice may meet: llguidance counts it twice."""
    found: list[str] = []
    for at, part in walk(schema):
        least, required = part.get("minProperties"), part.get("required")
        named = len(required) if isinstance(required, list) else 0
        others = part.get("additionalProperties", True) is not False or part.get("patternProperties")
        if others and isinstance(least, int) and least > named + 1:
            found.append(f"{at}/minProperties")
    return tuple(sorted(found))


def _generic(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type", "object" if "properties" in schema else None)
    return {} if kind is None else {"type": kind}


def _bundled(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy in which every local reference names an entry of `$defs` or `definitions`, or the root.

    A reference to another place would break when this place is rewritten.
    """
    found: dict[str, str] = {}
    resolve = References(schema)
    parts: dict[str, Any] = {}

    def moved(part: Any, _at: str) -> Any:
        if not isinstance(part, dict):
            return part
        copy = {key: converted(key, value, "", moved) for key, value in part.items()}
        reference = part.get("$ref")
        if isinstance(reference, str) and not re.fullmatch(r"#(/(\$defs|definitions)/[^/]+|/)?", reference):
            target = resolve(reference)
            if target is not None and reference not in found:
                found[reference] = f"ref-{len(found)}"
                parts[found[reference]] = moved(target, "")
            if reference in found:
                copy["$ref"] = f"#/$defs/{found[reference]}"
        return copy

    copy: dict[str, Any] = moved(schema, "")
    if parts:
        copy["$defs"] = copy.get("$defs", {}) | parts
    return copy
