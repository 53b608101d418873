"""Repairs a JSON value that breaks its schema, with one rule for each keyword. Invents no content.

A rule rounds, cuts, converts or spells a value as the schema requires. Errors that no rule can fix stay.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tourkit.grammar.check import validation_errors
from tourkit.grammar.patterns import compiled
from tourkit.grammar.schema_walk import canonical, pointer

_MAX_ROUNDS = 8


def repair(schema: Any, data: Any) -> tuple[Any, list[str]]:
    """Return a repaired copy of `data`, and one line for each repair. The caller validates the result."""
    holder = {"": json.loads(json.dumps(data))}
    done: list[str] = []
    units: dict[str, Fraction] = {}
    for _ in range(_MAX_ROUNDS):
        errors, _problem = validation_errors(schema, holder[""])
        for error in errors:
            _join_multiples(error, units)
        made = [line for error in errors for line in _repaired(error, holder)]
        done += made
        if not made:
            break
    return holder[""], list(dict.fromkeys(done))


def _join_multiples(error: Any, units: dict[str, Fraction]) -> None:
    """Change the step of a `multipleOf` error to the least common multiple of all steps seen for this number.

    So a number that breaks several `multipleOf`, at once or one after another, is rounded to a multiple of all.
    """
    if error.validator != "multipleOf" or error.validator_value <= 0:
        return
    at, step = pointer(error.absolute_path), Fraction(str(error.validator_value))
    known = units.get(at, step)
    whole = math.lcm(known.numerator * step.denominator, step.numerator * known.denominator)
    units[at] = error.validator_value = Fraction(whole, known.denominator * step.denominator)


_UNREPAIRED = object()


def _repaired(error: Any, holder: dict[str, Any]) -> list[str]:
    """Repair one error in place. Return a line about it, or none. `holder` has the document under its only key."""
    if error.validator in ("anyOf", "oneOf"):
        return _repaired_by_option(error, holder)
    rule = _RULES.get(error.validator)
    if rule is None:
        return []
    steps = ["", *error.absolute_path]
    place: Any = holder
    try:
        for step in steps[:-1]:
            place = place[step]
        wrong = place[steps[-1]]
    except (KeyError, IndexError, TypeError):
        return []  # an earlier repair removed it
    if _changed(error.instance, wrong):
        return []
    value = rule(wrong, error.validator_value, error.schema)
    if value is _UNREPAIRED or _same(value, wrong):
        return []
    place[steps[-1]] = value
    return [f"{pointer(error.absolute_path)}: {_DONE[error.validator]}"]


def _repaired_by_option(error: Any, holder: dict[str, Any]) -> list[str]:
    """Repair all errors of one option, if possible of one with few errors. Change nothing if none can be repaired."""
    options: dict[Any, list[Any]] = {}
    for part in error.context:
        options.setdefault(part.schema_path[0], []).append(part)
    for parts in sorted(options.values(), key=len):
        trial = json.loads(json.dumps(holder))
        lines = [_repaired(part, trial) for part in parts]
        if lines and all(lines):
            holder.update(trial)
            return [line for group in lines for line in group]
    return []


def _changed(seen: Any, now: Any) -> bool:
    """Return whether an earlier repair put another value at the place of an error. The next round checks it again."""
    return type(seen) is not type(now) or (not isinstance(seen, dict | list) and not _same(seen, now))


def _same(one: Any, two: Any) -> bool:
    return type(one) is type(two) and bool(one == two)


def _coerced(value: Any, wanted: Any, _schema: Any) -> Any:
    for kind in wanted if isinstance(wanted, list) else [wanted]:
        made = _as_type(value, kind)
        if made is not _UNREPAIRED:
            return made
    return _UNREPAIRED


def _as_type(value: Any, kind: str) -> Any:
    if kind in ("integer", "number") and isinstance(value, str):
        return _number(value.strip(), kind)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "string" and isinstance(value, int | float):
        return json.dumps(value)
    if kind == "boolean" and isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), _UNREPAIRED)
    if kind == "null" and value == "null":
        return None
    return _UNREPAIRED


def _number(text: str, kind: str) -> Any:
    if re.fullmatch(r"-?[0-9]{1,300}", text):
        return int(text)
    if kind == "number" and re.fullmatch(r"-?[0-9]{1,300}\.[0-9]{1,300}", text):
        return float(text)
    return _UNREPAIRED


def _unique(value: list[Any], _wanted: Any, _schema: Any) -> list[Any]:
    kept: dict[str, Any] = {}
    for item in value:
        kept.setdefault(json.dumps(canonical(item), sort_keys=True), item)
    return list(kept.values())


def _without_unknown(value: dict[str, Any], wanted: Any, schema: dict[str, Any]) -> Any:
    if wanted is not False:
        return _UNREPAIRED
    named = schema.get("properties", {})
    patterns = [compiled(pattern) for pattern in schema.get("patternProperties", {})]
    return {
        key: part
        for key, part in value.items()
        if key in named or any(pattern and pattern.search(key) for pattern in patterns)
    }


def _limit(value: Any, limit: Any, schema: dict[str, Any]) -> Any:
    strict = schema.get("exclusiveMinimum" if value < limit else "exclusiveMaximum") is True
    if strict or (isinstance(value, int) and not _is_whole(limit)):
        return _UNREPAIRED
    return int(limit) if isinstance(value, int) else limit


def _next_whole(shift: int) -> Callable[[Any, Any, Any], Any]:
    def moved(value: Any, limit: Any, _schema: Any) -> Any:
        return math.floor(limit) + shift if isinstance(value, int) and _is_whole(limit) else _UNREPAIRED

    return moved


def _multiple(value: Any, step: Any, schema: Any) -> Any:
    """Return the nearest multiple of `step` within the schema's minimum and maximum."""
    if step <= 0 or not (isinstance(value, int) or math.isfinite(value)):
        return _UNREPAIRED
    unit = Fraction(str(step))
    made = round(Fraction(str(value)) / unit) * unit  # exact: a whole number may be too large for a float
    low, high = schema.get("minimum", made), schema.get("maximum", made)
    if made < low < math.inf:
        made = math.ceil(Fraction(str(low)) / unit) * unit
    elif made > high > -math.inf:
        made = math.floor(Fraction(str(high)) / unit) * unit
    if made.denominator == 1 and isinstance(value, int):
        return int(made)
    return float(made) if abs(made) < sys.float_info.max else _UNREPAIRED


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) or float(number).is_integer()


def _cut(value: Any, limit: int, _schema: Any) -> Any:
    return value[: int(limit)]


def _with_fixed(value: dict[str, Any], wanted: Any, schema: dict[str, Any]) -> Any:
    """Add each missing required key that can have only one value."""
    if not isinstance(wanted, list):
        return _UNREPAIRED
    made = dict(value)
    for key in wanted:
        part = schema.get("properties", {}).get(key)
        values = [part["const"]] if isinstance(part, dict) and "const" in part else (part or {}).get("enum", [])
        if key not in made and len(values) == 1:
            made[key] = values[0]
    return made


def _nearest(value: Any, wanted: list[Any], _schema: Any) -> Any:
    """Return the allowed value that differs only in case or outer spaces."""
    if not isinstance(value, str):
        return _UNREPAIRED
    near = [item for item in wanted if isinstance(item, str) and item.strip().casefold() == value.strip().casefold()]
    return near[0] if len(near) == 1 else _UNREPAIRED


_RULES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "type": _coerced,
    "uniqueItems": _unique,
    "additionalProperties": _without_unknown,
    "minimum": _limit,
    "maximum": _limit,
    "exclusiveMinimum": _next_whole(1),
    "exclusiveMaximum": _next_whole(-1),
    "multipleOf": _multiple,
    "maxLength": _cut,
    "maxItems": _cut,
    "required": _with_fixed,
    "enum": _nearest,
}
_DONE = {
    "type": "converted to the required type",
    "uniqueItems": "repeated items left out",
    "additionalProperties": "unknown keys left out",
    "minimum": "raised to the minimum",
    "maximum": "lowered to the maximum",
    "exclusiveMinimum": "raised above the exclusive minimum",
    "exclusiveMaximum": "lowered below the exclusive maximum",
    "multipleOf": "rounded to a multiple",
    "maxLength": "cut to the maximum length",
    "maxItems": "cut to the maximum number of items",
    "required": "the only possible value added",
    "enum": "spelled as in the enum",
}
