"""A quick yes for data that a JSON Schema accepts: an index of 100,000 files takes jsonschema a quarter of a minute.

A check is made from the schema itself, so a rule is written once. A check says yes only if jsonschema would; where it
says no, jsonschema has the last word and explains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
_TYPES: dict[str, Check] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,  # not bool; jsonschema also takes 1.0
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_SILENT = ("$schema", "$id", "$defs", "title", "description", "then", "else")  # they refuse nothing; see "if"


def check_of(schema: Mapping[str, Any], file: str, schemas: Mapping[str, dict[str, Any]]) -> Check:
    """Return the check of a schema, or of a part of it. `file`: its name in `schemas`, which has all by their names."""
    return _Maker(schemas).check(schema, file)


class _Maker:
    """Makes checks. A keyword of JSON Schema that it does not know makes a check that never says yes."""

    def __init__(self, schemas: Mapping[str, dict[str, Any]]) -> None:
        self._schemas = schemas

    def check(self, schema: Mapping[str, Any], file: str) -> Check:
        """Return the check of a part of the schema in `file`."""
        checks = [self._keyword(key, rule, schema, file) for key, rule in schema.items() if key not in _SILENT]
        return _both(checks)

    def _keyword(self, key: str, rule: Any, schema: Mapping[str, Any], file: str) -> Check:
        match key:
            case "$ref":
                return self._target(rule, file)
            case "type":
                return _either([_TYPES.get(kind, _never) for kind in ([rule] if isinstance(rule, str) else rule)])
            case "properties":
                return self._properties(rule, schema.get("additionalProperties", True), file)
            case "additionalProperties":
                return _always if "properties" in schema else self._properties({}, rule, file)
            case "items":
                item = self.check(rule, file)
                return lambda value: not isinstance(value, list) or all(map(item, value))
            case "anyOf":
                return _either([self.check(each, file) for each in rule])
            case "if":
                holds = self.check(rule, file)
                then, other = (self.check(schema.get(word, {}), file) for word in ("then", "else"))
                return lambda value: then(value) if holds(value) else other(value)
        return _plain(key, rule)

    def _target(self, ref: str, file: str) -> Check:
        other, _, pointer = ref.partition("#")
        part: Any = self._schemas[other or file]
        for step in pointer.strip("/").split("/"):
            part = part[step]
        return self.check(part, other or file)

    def _properties(self, rules: Mapping[str, Any], others: Any, file: str) -> Check:
        """Return the check of an object's values. `others`: the rule for other keys, or whether there may be any."""
        known = {key: self.check(rule, file) for key, rule in rules.items()}
        rest = self.check(others, file) if isinstance(others, dict) else _always if others else _never

        def check(value: Any) -> bool:
            if isinstance(value, dict):
                for key, each in value.items():
                    if not known.get(key, rest)(each):
                        return False
            return True

        return check


def _both(checks: list[Check]) -> Check:
    """Return the check that says yes if all of them do."""
    if not checks:
        return _always
    first, *others = checks
    if not others:
        return first
    second = _both(others)
    return lambda value: first(value) and second(value)


def _either(checks: list[Check]) -> Check:
    """Return the check that says yes if one of them does."""
    if not checks:
        return _never
    first, *others = checks
    if not others:
        return first
    second = _either(others)
    return lambda value: first(value) or second(value)


def _plain(key: str, rule: Any) -> Check:
    """Return the check of a keyword that needs no other part of the schema."""
    match key:
        case "pattern":
            search = re.compile(rule).search
            return lambda value: not isinstance(value, str) or search(value) is not None
        case "minLength":
            return lambda value: not isinstance(value, str) or len(value) >= rule
        case "maxLength":
            return lambda value: not isinstance(value, str) or len(value) <= rule
        case "minimum":
            return lambda value: not isinstance(value, int | float) or value >= rule
        case "maximum":
            return lambda value: not isinstance(value, int | float) or value <= rule
        case "exclusiveMinimum":
            return lambda value: not isinstance(value, int | float) or value > rule
        case "required":
            names = frozenset(rule)
            return lambda value: not isinstance(value, dict) or names <= value.keys()
        case "minItems":
            return lambda value: not isinstance(value, list) or len(value) >= rule
        case "minProperties":
            return lambda value: not isinstance(value, dict) or len(value) >= rule
        case "const":
            return lambda value: type(value) is type(rule) and bool(value == rule)
        case "enum":
            return lambda value: isinstance(value, str) and value in rule
        case "uniqueItems":
            return _differ if rule else _always
    return _never


def _differ(value: Any) -> bool:
    """Return whether the texts of a list differ. Other values are left to jsonschema."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value) and len(set(value)) == len(value)


def _always(value: Any) -> bool:
    return True


def _never(value: Any) -> bool:
    return False
