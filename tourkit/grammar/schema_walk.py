"""Where the schemas inside a JSON Schema are, and what its local references name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
SINGLES = frozenset(
    "items additionalItems additionalProperties not if then else contains propertyNames unevaluatedProperties"
    " unevaluatedItems".split()
)
_VALUES = frozenset(("enum", "const", "default", "examples", "example", "required", "type", "dependencies"))

Convert = Callable[[Any, str], Any]


def escape(name: str) -> str:
    """A name as one step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def inside(key: str, value: Any, at: str, convert: Convert) -> Any:
    """The value of a keyword with `convert` done to the schemas in it. Keywords nobody knows may hold schemas too."""
    at = f"{at}/{escape(key)}"
    if key in _VALUES:
        return value
    if key in MAPS and isinstance(value, dict):
        return {name: convert(part, f"{at}/{escape(name)}") for name, part in value.items()}
    if isinstance(value, list) and (key in LISTS or key == "items"):
        return [convert(part, f"{at}/{i}") for i, part in enumerate(value)]
    if isinstance(value, dict):
        known = key in SINGLES or any(word in value for word in ("type", "$ref", "properties", "enum", "allOf"))
        if known:
            return convert(value, at)
        return {name: inside(name, part, at, convert) for name, part in value.items()}
    return value


def resolve(reference: str, root: Any) -> Any:
    """The part of `root` a local reference names: `#`, `#/a/b`, `#anchor` or an `$id` of the document. Else None."""
    _, _, fragment = reference.partition("#")
    if reference.startswith("#") and (not fragment or fragment.startswith("/")):
        return _follow(fragment, root)
    return _identified(reference, root)


def _follow(pointer: str, root: Any) -> Any:
    found = root
    for part in pointer.split("/")[1:]:
        part = _unquoted(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return None
    return found


def _unquoted(part: str) -> str:
    from urllib.parse import unquote

    return unquote(part)


def _identified(reference: str, root: Any) -> Any:
    """The schema with this `$id`, `id` or anchor, by its full text or by its last part."""
    document, _, fragment = reference.partition("#")
    wanted = {reference, document, document.rsplit("/", 1)[-1]} if document else {reference}
    anchor = fragment if fragment and not fragment.startswith("/") else None
    stack = [root]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack += part
        elif isinstance(part, dict):
            stack += part.values()
            name = part.get("$id", part.get("id"))
            if anchor is not None and not document and part.get("$anchor", part.get("$dynamicAnchor")) == anchor:
                return part
            if isinstance(name, str) and name and ({name, name.rstrip("#"), name.rsplit("/", 1)[-1]} & wanted):
                return _follow(fragment, part) if fragment.startswith("/") else part
    return None
