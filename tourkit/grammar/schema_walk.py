"""Finds the schemas inside a JSON Schema, resolves local references, and makes JSON pointers.

Only this module knows which keywords hold schemas. Other modules read the parts of a schema with `walk` and rebuild
them with `converted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

# The value is a map of names to schemas.
_MAPS = frozenset("properties patternProperties $defs definitions dependentSchemas dependencies".split())
# The value is a list of schemas. `items` is a list only in older dialects.
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_LISTS = frozenset((*LISTS, "items"))
# The value is one schema.
_SINGLES = frozenset(
    "items additionalItems additionalProperties not if then else contains propertyNames".split()
    + "unevaluatedProperties unevaluatedItems".split()
)
# The value holds no schema, even if it looks like one.
_VALUES = frozenset("enum const default examples example required type dependentRequired".split())
# If the value of an unknown keyword has one of these, it is a schema.
_TELLING = ("type", "$ref", "properties", "enum", "allOf")
# These apply other schemas to the same JSON value. They may name keys that the schema itself does not name.
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "$ref", "$dynamicRef", "$recursiveRef")
# These only annotate. NO_ASSERTIONS adds the keywords that identify a schema or hold definitions.
ANNOTATIONS = frozenset(
    "title description default examples example $comment deprecated readOnly writeOnly".split()
    + "contentEncoding contentMediaType contentSchema".split()
)
NO_ASSERTIONS = ANNOTATIONS | frozenset(("$schema", "$id", "id", "$defs", "definitions"))

Subschema = tuple[str, dict[str, Any]]  # the JSON pointer to a schema, and that schema; booleans are left out
Convert = Callable[[Any, str], Any]


def walk(schema: Any) -> Iterator[Subschema]:
    """Yield a schema and all schemas inside it, each before its parts, the last part first. Follows no references.

    Objects in an unknown keyword count as schemas, because a reference may name them.
    """
    left = [("", schema)] if isinstance(schema, dict) else []
    while left:
        found = left.pop()
        yield found
        left += _children(*found)


def _children(at: str, schema: dict[str, Any]) -> list[Subschema]:
    """Return the schemas directly inside the schema with the pointer `at`, in its order."""
    found: list[Subschema] = []
    for keyword, value in schema.items():
        if not isinstance(value, dict | list) or keyword in _VALUES:
            continue
        place = f"{at}/{escape(keyword)}"
        if isinstance(value, list):
            found += [(f"{place}/{i}", part) for i, part in enumerate(value) if isinstance(part, dict)]
        elif keyword in _MAPS:
            found += [(f"{place}/{escape(name)}", part) for name, part in value.items() if isinstance(part, dict)]
        else:
            found.append((place, value))
    return found


def converted(keyword: str, value: Any, at: str, convert: Convert) -> Any:
    """Return the value of a keyword with `convert(schema, pointer)` in place of each schema directly inside it.

    `at` is the pointer to the schema that has the keyword. In an unknown keyword, only objects that look like schemas
    are converted; other data stays as it is.
    """
    if not isinstance(value, dict | list) or keyword in _VALUES:
        return value
    place = f"{at}/{escape(keyword)}"
    if isinstance(value, list):
        return [convert(part, f"{place}/{i}") for i, part in enumerate(value)] if keyword in _LISTS else value
    if keyword in _MAPS:
        return {name: convert(part, f"{place}/{escape(name)}") for name, part in value.items()}
    if keyword in _SINGLES or any(word in value for word in _TELLING):
        return convert(value, place)
    return {name: converted(name, part, place, convert) for name, part in value.items()}


def escape(name: str) -> str:
    """Return a name as one step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def pointer(path: Iterable[Any]) -> str:
    """Return the JSON pointer made of keys and positions."""
    return "".join(f"/{escape(str(step))}" for step in path)


def resolve(reference: str, root: Any) -> Any:
    """Return the part of `root` that a local reference names, else None.

    A local reference is `#`, `#/a/b`, `#anchor` or an `$id` of the document.
    """
    _, _, fragment = reference.partition("#")
    if reference.startswith("#") and (not fragment or fragment.startswith("/")):
        return _follow(fragment, root)
    return _identified(reference, root)


def _follow(pointer: str, root: Any) -> Any:
    found = root
    for part in pointer.split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return None
    return found


def _identified(reference: str, root: Any) -> Any:
    """Return the schema with this `$id`, `id` or anchor, else None. The last part of an id is enough to name it."""
    document, _, fragment = reference.partition("#")
    wanted = {reference, document, document.rsplit("/", 1)[-1]} if document else {reference}
    anchor = fragment if fragment and not fragment.startswith("/") else None
    for _, part in walk(root):
        name = part.get("$id", part.get("id"))
        if anchor is not None and not document and part.get("$anchor", part.get("$dynamicAnchor")) == anchor:
            return part
        if isinstance(name, str) and name and ({name, name.rstrip("#"), name.rsplit("/", 1)[-1]} & wanted):
            return _follow(fragment, part) if fragment.startswith("/") else part
    return None
