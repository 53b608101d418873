"""One pass over a JSON Schema. It replaces the keywords that llguidance lacks by others, or drops them if allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tourkit.grammar.alternatives import MAX_OPTIONS, foreign_keys, overlaps, values_of_one
from tourkit.grammar.check import valid_among
from tourkit.grammar.metaschema import dialect_of
from tourkit.grammar.negation import Negation, any_of, negate
from tourkit.grammar.schema_walk import IN_PLACE, NO_ASSERTIONS, References, converted, escape
from tourkit.grammar.static_limits import BOUNDS, is_far

# What each level may lose: nothing; that options exclude one another; keywords; patterns that cannot be followed;
# every other obstacle; everything except the type of the root.
EXACT, ONE_OF, KEYWORDS, PATTERNS, SHAPES, GENERIC = range(6)

FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uuid uri".split())
# Formats that jsonschema checks without other packages. Unknown formats are treated as annotations, here and there.
_CHECKED_FORMATS = frozenset(("regex", "idn-email"))
_UNSUPPORTED = frozenset(
    "not if uniqueItems contains minContains maxContains dependencies dependentRequired dependentSchemas".split()
    + "propertyNames unevaluatedProperties unevaluatedItems $dynamicRef $recursiveRef".split()
)
# Keywords whose meaning depends on other keywords of the same schema.
_WIDE = frozenset("properties patternProperties additionalProperties items prefixItems additionalItems $ref".split())
_ABOUT = dict.fromkeys(("properties", "required", "patternProperties", "minProperties"), "object")
_ABOUT |= dict.fromkeys(("items", "prefixItems", "contains", "minItems"), "array")
_ABOUT |= dict.fromkeys(("pattern", "minLength", "maxLength"), "string")
_MAX_NUMBERS = 1000
_FAR = 10**17  # the largest power of ten that llguidance takes as a limit of whole numbers on one side

Readable = Callable[[str], bool]


@dataclass(slots=True)
class Rewrite:
    """One pass: the level of loss it may cause, and the loss it caused. `readable`: whether a pattern can be followed.

    `narrow`: the pass may forbid what the schema allows. `narrowed`: it did. `dropped`: JSON pointers to lost parts.
    """

    root: dict[str, Any]
    level: int
    narrow: bool
    readable: Readable
    tight: bool = False
    dropped: list[str] = field(default_factory=list)
    narrowed: bool = False
    uri: str | None = None
    resolve: References = field(init=False)

    def __post_init__(self) -> None:
        self.resolve = References(self.root)

    def opposite(self, schema: Any) -> Negation | None:
        """Return the opposite of `schema`, or None if it is less exact than this pass requires."""
        found = negate(schema, self.resolve, tight=self.tight)
        return None if found is None or not (found.exact or self.narrows()) else found

    def drop(self, at: str, key: str) -> None:
        self.dropped.append(f"{at}/{escape(key)}")

    def narrows(self) -> bool:
        """Return whether a rewrite may allow less than the original. If so, set `narrowed`."""
        self.narrowed = self.narrowed or self.narrow
        return self.narrow

    def schema(self, schema: Any, at: str) -> Any:
        if not isinstance(schema, dict):
            return schema
        if self.level >= SHAPES and "$ref" in schema:
            return self._reference_alone(schema, at)
        values = self._values_of(schema)
        if values is not None:
            return {"enum": values} | {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        result: dict[str, Any] = {}
        more: list[Any] = []
        schema = self._closed(_respelled(_typed(schema) if self.tight else schema))
        for key, value in schema.items():
            rule = _RULES.get(key)
            parts = rule(self, schema, value, at) if rule else None
            if parts is not None:
                more += [part for part in parts if part is not True and part != {}]
            elif self._leaves_out(key, value, schema):
                self.drop(at, key)
                result |= _nearer(key, value)
            else:
                result[key] = converted(key, value, at, self.schema)
        self._patterns_made_general(result, at)
        return _joined(result, more)

    def _values_of(self, schema: dict[str, Any]) -> list[Any] | None:
        """Return all values of a schema that has few of them and a keyword that llguidance lacks; else None."""
        if not _UNSUPPORTED & set(schema):
            return None
        candidates = schema.get("enum", _whole_numbers(schema))
        if not isinstance(candidates, list) or '"#"' in json.dumps(schema):
            return None
        shared = {"$schema": self._dialect()}
        if '"$ref"' in json.dumps(schema):
            shared |= {key: self.root[key] for key in ("$defs", "definitions") if key in self.root}
        return valid_among(shared | {"allOf": [schema]}, candidates)

    def _dialect(self) -> str:
        """Return the URI of the root's dialect. Without it, each check would first look for the dialect of its part."""
        if self.uri is None:
            rules = dialect_of(self.root).META_SCHEMA
            self.uri = str(rules.get("$id", rules.get("id")))
        return self.uri

    def _closed(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Forbid unnamed keys in an object with `maxProperties`, so that its keys can be counted."""
        most, names = schema.get("maxProperties"), schema.get("properties", {})
        beside = ("additionalProperties", "patternProperties", *IN_PLACE)
        if most is None or not names or any(key in schema for key in beside):
            return schema
        if not set(schema.get("required", ())) <= set(names) or not self.narrows():
            return schema
        return schema | {"additionalProperties": False}

    def _reference_alone(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        """Keep `$ref`, annotations and definitions; drop the other sibling keywords."""
        kept = {key: value for key, value in schema.items() if key == "$ref" or key in NO_ASSERTIONS}
        for key in schema:
            if key not in kept:
                self.drop(at, key)
        return {key: converted(key, value, at, self.schema) for key, value in kept.items()}

    def _leaves_out(self, key: str, value: Any, schema: dict[str, Any]) -> bool:
        if key in BOUNDS and is_far(value):
            return self.level >= KEYWORDS
        if key in _UNSUPPORTED or (key == "format" and isinstance(value, str) and value not in FORMATS):
            return self.level >= KEYWORDS
        if key in ("minProperties", "maxProperties"):
            required = set(schema.get("required", ()))
            plain = set(schema.get("properties", {})) <= required
            return self.level >= SHAPES or (self.level >= KEYWORDS and not plain)
        if key == "pattern":
            return self.level >= SHAPES or (self.level >= PATTERNS and not self.readable(str(value)))
        return key == "format" and self.level >= SHAPES

    def _patterns_made_general(self, schema: dict[str, Any], at: str) -> None:
        """Replace key patterns that overlap or cannot be followed by one rule for all other keys."""
        patterns = schema.get("patternProperties")
        if self.level < PATTERNS or not isinstance(patterns, dict) or not patterns:
            return
        alone = len(patterns) == 1 and not schema.get("properties") and not self._within_all_of(at)
        if self.level < SHAPES and alone and self.readable(next(iter(patterns))):
            return
        del schema["patternProperties"]
        others = schema.get("additionalProperties", True)
        possible = [part for part in patterns.values() if part is not False]
        if others is not False and possible and self.narrows():
            if len(possible) < len(patterns):
                self.drop(at, "patternProperties")  # forbidden keys are no longer enforced
            every = {"allOf": [*possible, others]}
            schema["properties"] = {
                name: {"allOf": [part, every]} for name, part in schema.get("properties", {}).items()
            }
            schema["additionalProperties"] = every
            return
        self.drop(at, "patternProperties")
        schema["additionalProperties"] = any_of([*patterns.values(), others])

    @staticmethod
    def _within_all_of(at: str) -> bool:
        """Return whether the schema at `at` may be combined with others: then their key patterns may overlap."""
        return "/allOf/" in at or "/definitions/" in at or "/$defs/" in at or "/oneOf/" in at


def _joined(schema: dict[str, Any], more: list[Any]) -> Any:
    """Return a schema that requires `schema` and all of `more`."""
    if not more:
        return schema
    if any(part is False for part in more):
        return {"allOf": [False]}
    if not schema and len(more) == 1:
        return more[0]
    if len(more) == 1 and not set(schema) & set(more[0]) and not _WIDE & set(more[0]):
        return schema | more[0]
    return schema | {"allOf": [*schema.get("allOf", ()), *more]}


def _nearer(key: str, bound: Any) -> dict[str, Any]:
    """Return a weaker bound in place of one that is too far away, if numbers on its other side are to be left out."""
    if key not in BOUNDS or not is_far(bound) or ("inimum" in key) != (bound > 0):
        return {}
    return {key: _FAR if bound > 0 else -_FAR}


def _whole_numbers(schema: dict[str, Any]) -> list[int] | None:
    """Return the whole numbers within a schema's limits if they are few, else None."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if schema.get("type") != "integer" or type(low) is not int or type(high) is not int or is_far(low) or is_far(high):
        return None
    return list(range(low, high + 1)) if 0 <= high - low <= _MAX_NUMBERS else None


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    """Add a type to a schema that names none, if its keywords are about one type only."""
    if any(key in schema for key in ("type", "enum", "const", "$ref")):
        return schema
    kinds = {_ABOUT[key] for key in schema if key in _ABOUT}
    return schema | {"type": kinds.pop()} if len(kinds) == 1 else schema


def _respelled(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace `unevaluatedProperties` by `additionalProperties` if no sibling keyword evaluates keys."""
    key, meant = "unevaluatedProperties", "additionalProperties"
    if key not in schema or any(word in schema for word in IN_PLACE):
        return schema
    if meant in schema or schema[key] in (True, {}):
        return {name: value for name, value in schema.items() if name != key}
    return {meant if name == key else name: value for name, value in schema.items()}


# --- rules: each returns the schemas that replace its keyword, or None if it cannot be replaced -----------------


def _not(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    del schema
    opposite = rewrite.opposite(value)
    if opposite is None:
        return None
    return [rewrite.schema(opposite.schema, f"{at}/not")]


def _dependencies(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    """Either the key is absent, or its dependencies hold."""
    if not isinstance(value, dict):
        return None
    del schema
    made = []
    for name, needs in value.items():
        if isinstance(needs, list):
            holds: Any = {"required": [name, *needs]}
        elif isinstance(needs, dict):
            holds = _joined({"required": [name]}, [rewrite.schema(needs, f"{at}/dependencies/{escape(name)}")])
        else:
            holds = {} if needs else False
        made.append(any_of([{"properties": {name: False}}, holds]))
    return made


def _if(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    opposite = rewrite.opposite(value)
    if opposite is None:
        return None
    yes = {"allOf": [rewrite.schema(value, f"{at}/if"), rewrite.schema(schema.get("then", True), f"{at}/then")]}
    no = [rewrite.schema(opposite.schema, f"{at}/if"), rewrite.schema(schema.get("else", True), f"{at}/else")]
    return [any_of([yes, {"allOf": no}])]


def _of_if(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any]:
    """Return nothing: the rule of `if` handles its `then` and `else`."""
    del rewrite, schema, value, at
    return []


def _one_of(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    """Any of the options, each without the values that other options allow too."""
    del schema
    if not isinstance(value, list) or not value:
        return None
    options = _apart(rewrite, value, at)
    if options is None:
        if rewrite.level < ONE_OF:
            return None
        rewrite.drop(at, "oneOf")
        options = [rewrite.schema(option, f"{at}/oneOf/{i}") for i, option in enumerate(value)]
    return [{"anyOf": options}]


def _apart(rewrite: Rewrite, options: list[Any], at: str) -> list[Any] | None:
    values = values_of_one(options, rewrite.resolve)
    if values is not None:
        return [{"enum": values}]
    others = overlaps(options, rewrite.resolve)
    if others is None:
        return None
    made = []
    for i, option in enumerate(options):
        parts = [rewrite.schema(option, f"{at}/oneOf/{i}")]
        for j in others[i]:
            opposite = rewrite.opposite(options[j])
            foreign = foreign_keys(option, options[j], rewrite.resolve)
            foreign = foreign if foreign and rewrite.narrows() else []
            if opposite is None and not foreign:
                return None
            said = [] if opposite is None else [rewrite.schema(opposite.schema, f"{at}/oneOf/{j}")]
            parts.append(any_of([*said, *({"required": [key]} for key in foreign)]))
        made.append({"allOf": parts} if len(parts) > 1 else parts[0])
    return made


def _unique_items(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    del rewrite, at
    return [] if value is False or schema.get("maxItems", 2) <= 1 else None


def _contains(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    """Require the schema of `contains` of the first item."""
    old = "2020-12" not in str(rewrite.root.get("$schema", "2020-12"))
    if old or schema.get("minContains", 1) != 1 or "maxContains" in schema or "prefixItems" in schema:
        return None
    if isinstance(schema.get("items"), list) or not rewrite.narrows():
        return None
    first = {
        "allOf": [rewrite.schema(value, f"{at}/contains"), rewrite.schema(schema.get("items", True), f"{at}/items")]
    }
    return [{"prefixItems": [first], "minItems": 1}]


def _min_contains(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    del rewrite, at
    return [] if value == 1 or "contains" not in schema else None


def _property_names(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    if not isinstance(value, dict) or "patternProperties" in schema or schema.get("properties"):
        return None
    value = {key: part for key, part in value.items() if key != "type" or part != "string"}
    others = rewrite.schema(schema.get("additionalProperties", True), f"{at}/additionalProperties")
    if set(value) == {"enum"}:
        named = {name: others for name in value["enum"] if isinstance(name, str)}
        return [{"properties": named, "additionalProperties": False}]
    if set(value) == {"pattern"}:
        return [{"patternProperties": {value["pattern"]: others}, "additionalProperties": False}]
    if set(value) <= {"minLength", "maxLength"}:
        length = f"{{{value.get('minLength', 0)},{value.get('maxLength', '')}}}"
        return [{"patternProperties": {f"^[\\s\\S]{length}$": others}, "additionalProperties": False}]
    return None


def _format(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    del rewrite, schema, at
    unknown = isinstance(value, str) and value not in FORMATS and value not in _CHECKED_FORMATS
    return [] if unknown else None


def _min_properties(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    """At least one key: require one of the named keys."""
    del at
    names = list(schema.get("properties", {}))
    if len(schema.get("required", ())) >= value:
        return []
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if value != 1 or not names or len(names) > MAX_OPTIONS or not (closed or rewrite.narrows()):
        return None
    return [any_of([{"required": [name]} for name in names])]


def _max_properties(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    del rewrite, at
    names = schema.get("properties", {})
    if schema.get("additionalProperties") is not False or schema.get("patternProperties"):
        return None
    if value == 1 and 1 < len(names) <= MAX_OPTIONS:
        return [any_of([{"properties": {other: False for other in names if other != name}} for name in names])]
    return [] if len(names) <= value else None


def _dialect(rewrite: Rewrite, schema: dict[str, Any], value: Any, at: str) -> list[Any] | None:
    """Ignore an unknown dialect: the schema is read as the newest one."""
    del rewrite, schema, at
    return None if "json-schema.org/" in str(value) else []


Rule = Callable[[Rewrite, dict[str, Any], Any, str], "list[Any] | None"]
_RULES: dict[str, Rule] = {
    "not": _not,
    "dependencies": _dependencies,
    "dependentRequired": _dependencies,
    "dependentSchemas": _dependencies,
    "if": _if,
    "oneOf": _one_of,
    "uniqueItems": _unique_items,
    "contains": _contains,
    "propertyNames": _property_names,
    "minContains": _min_contains,
    "then": _of_if,
    "else": _of_if,
    "format": _format,
    "minProperties": _min_properties,
    "maxProperties": _max_properties,
    "$schema": _dialect,
}
