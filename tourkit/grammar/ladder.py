"""Other ways to say a JSON Schema the grammar engine refuses: first exact ones, then with parts of it left out.

Each rung says what it leaves out. How a keyword is said in another way is told in `rewrites`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tourkit.grammar.rewrites import EXACT, GENERIC, KEYWORDS, ONE_OF, PATTERNS, SHAPES, Readable, Rewrite
from tourkit.grammar.schema_walk import converted, resolve, walk


@dataclass(frozen=True, slots=True)
class Rung:
    """A schema to try. `dropped`: JSON pointers into the original of what it leaves out, nothing at level EXACT.

    `narrowed` says that a rewrite forbids something the original allows, so that failing here proves nothing.
    """

    level: int
    schema: Any
    dropped: tuple[str, ...] = ()
    narrowed: bool = False


def rungs(schema: dict[str, Any], *, readable: Readable, tight: bool = False) -> Iterator[Rung]:
    """Ever weaker ways to say `schema`, down to "any value of the root's type".

    `readable` tells of a regular expression whether the grammar engine can follow it.
    `tight` begins with ways that allow few of the valid documents, but no other: for a second attempt.
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
    """Pointers to each `minProperties` that one key written twice may meet: llguidance counts it twice."""
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
    """A copy in which every local reference names an entry of `$defs` or `definitions`, or the root.

    References into other places would break when the place is rewritten.
    """
    found: dict[str, str] = {}
    parts: dict[str, Any] = {}

    def moved(part: Any, _at: str) -> Any:
        if not isinstance(part, dict):
            return part
        copy = {key: converted(key, value, "", moved) for key, value in part.items()}
        reference = part.get("$ref")
        if isinstance(reference, str) and not re.fullmatch(r"#(/(\$defs|definitions)/[^/]+|/)?", reference):
            target = resolve(reference, schema)
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
