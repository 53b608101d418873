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
_Place = tuple[int, dict[str, Any]]  # the number of a schema in the order of `walk`, and that schema


def walk(schema: Any) -> Iterator[Subschema]:
    """Yield a schema and all schemas inside it, each before its parts, the last part first. Follows no references.

    Objects in an unknown keyword count as schemas, because a reference may name them.
    """
    left = [("", schema)] if isinstance(schema, dict) else []
    while left:
        found = left.pop()
        yield found
        left += _children(*found)


def own_patterns(schema: dict[str, Any]) -> list[str]:
    """Return the regular expressions that a schema itself has for strings and keys."""
    keys = schema.get("patternProperties")
    found = [schema.get("pattern"), *(keys if isinstance(keys, dict) else ())]
    return [pattern for pattern in found if isinstance(pattern, str)]


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
    """Return the part of `root` that a local reference names, else None. See `References`."""
    return References(root)(reference)


class References:
    """Resolves the local references of one schema, each once.

    A local reference is `#`, `#/a/b`, `#anchor` or an `$id` of the document. The last part of an id is enough to name
    a schema.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._found: dict[str, Any] = {}
        self._named: dict[str, _Place] | None = None  # by `$id` and `id`, made when it is needed
        self._anchors: dict[str, _Place] = {}

    def __call__(self, reference: str) -> Any:
        """Return the part that a local reference names, else None."""
        if reference not in self._found:
            self._found[reference] = self._resolved(reference)
        return self._found[reference]

    def _resolved(self, reference: str) -> Any:
        document, _, fragment = reference.partition("#")
        pointer = fragment.startswith("/")
        if reference.startswith("#") and (not fragment or pointer):
            return _follow(fragment, self._root)
        named = self._names()
        wanted = {reference, document, document.rsplit("/", 1)[-1]} if document else {reference}
        places = [named[name] for name in wanted if name in named]
        if fragment and not document and fragment in self._anchors:
            places.append(self._anchors[fragment])
        if not places:
            return None
        first = min(places, key=lambda place: place[0])[1]
        return _follow(fragment, first) if pointer else first

    def _names(self) -> dict[str, _Place]:
        """Return the schemas that have an id, by each of its spellings. Note those that have an anchor."""
        if self._named is not None:
            return self._named
        self._named = {}
        for number, (_, part) in enumerate(walk(self._root)):
            name, anchor = part.get("$id", part.get("id")), part.get("$anchor", part.get("$dynamicAnchor"))
            if isinstance(anchor, str):
                self._anchors.setdefault(anchor, (number, part))
            if isinstance(name, str) and name:
                for spelling in (name, name.rstrip("#"), name.rsplit("/", 1)[-1]):
                    self._named.setdefault(spelling, (number, part))
        return self._named


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


def canonical(value: Any) -> Any:
    """Return the value with whole floats as integers: for a schema 1 and 1.0 are the same value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return {key: canonical(part) for key, part in value.items()} if isinstance(value, dict) else value
