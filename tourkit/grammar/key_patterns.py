"""Spells the patterns for keys of a schema as lists of keys, for the check of one document.

jsonschema searches key patterns by `re` in several keywords (`patternProperties`, `additionalProperties`,
`unevaluatedProperties`). A list of the document's own keys means the same for that document, and takes linear time.
"""

from __future__ import annotations

import re
from typing import Any

from tourkit.grammar.patterns import compiled
from tourkit.grammar.schema_walk import converted


def with_literal_keys(schema: Any, data: Any) -> tuple[Any, dict[str, str]]:
    """Return a copy of the schema in which each key pattern is a list of the keys in `data` that it matches.

    Also return the original of each new pattern. A pattern that nothing can read stays. The schema itself is returned
    if it has no key patterns.
    """
    keys: list[str] | None = None
    originals: dict[str, str] = {}

    def literal(pattern: str) -> str:
        nonlocal keys
        keys = _keys(data) if keys is None else keys
        found = compiled(pattern)
        if found is None:
            return pattern
        matching = "|".join(re.escape(key) for key in keys if found.search(key))
        # The number in a comment keeps the order of the patterns, and two apart that match the same keys.
        text = f"(?#{len(originals):06})^(?:{matching or '(?!)'})\\Z"
        originals[text] = pattern
        return text

    def convert(part: Any, _at: str) -> Any:
        if not isinstance(part, dict):
            return part
        copy = {key: converted(key, value, "", convert) for key, value in part.items()}
        named = copy.get("patternProperties")
        if isinstance(named, dict):
            spelled = {pattern: literal(pattern) for pattern in sorted(named)}
            copy["patternProperties"] = {spelled[pattern]: inner for pattern, inner in named.items()}
        return copy

    return (convert(schema, ""), originals) if _has_key_patterns(schema) else (schema, originals)


def _has_key_patterns(schema: Any) -> bool:
    """Return whether "patternProperties" is a key anywhere in the schema."""
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "patternProperties" in value:
                return True
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _keys(data: Any) -> list[str]:
    """Return the keys of all objects in a JSON value, without duplicates."""
    found: dict[str, None] = {}
    left = [data]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            found |= dict.fromkeys(value)
            left += value.values()
        elif isinstance(value, list):
            left += value
    return list(found)
