"""What tells the options of a `oneOf` apart, so that it can be written as an `anyOf`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

from tourkit.grammar.negation import Resolve, disjoint, fixed_values, followed, type_of, types_of
from tourkit.grammar.schema_walk import NO_ASSERTIONS, canonical

MAX_OPTIONS = 24  # alternatives made from one keyword; each makes the grammar larger
_MAX_COMPARED = 200  # options that are compared each with each


def overlaps(options: list[Any], resolve: Resolve) -> list[list[int]] | None:
    """Return for each option of a `oneOf` the others that may allow the same value; None if they are too many."""
    found: list[list[int]] = [[] for _ in options]
    overlapping = 0
    pairs = _untagged(options, resolve)
    if pairs is None and len(options) > _MAX_COMPARED:
        return None
    for i, j in itertools.combinations(range(len(options)), 2) if pairs is None else pairs:
        if not disjoint(options[i], options[j], resolve):
            found[i].append(j)
            found[j].append(i)
            overlapping += 2
            if overlapping > MAX_OPTIONS:
                return None
    return found


def _untagged(options: list[Any], resolve: Resolve) -> list[tuple[int, int]] | None:
    """Return the pairs of options that a required key with fixed values does not tell apart.

    Return None if no key has fixed values in all options, or if one value is that of too many.
    """
    if any(types_of(option, resolve) != {"object"} for option in options):
        return None
    tags = [_tags(followed(option, resolve), resolve) for option in options]
    shared = [key for key in tags[0] if all(key in each for each in tags)]
    if not shared:
        return None
    by_value: dict[str, list[int]] = {}
    for number, each in enumerate(tags):
        for value in each[shared[0]]:
            by_value.setdefault(value, []).append(number)
    if max(map(len, by_value.values()), default=0) > _MAX_COMPARED:
        return None
    return sorted({pair for numbers in by_value.values() for pair in itertools.combinations(numbers, 2)})


def _tags(option: Any, resolve: Resolve) -> dict[str, frozenset[str]]:
    """Return the values of each required key of an object that has fixed values."""
    if not isinstance(option, dict) or not isinstance(option.get("properties"), dict):
        return {}
    parts = {key: followed(option["properties"].get(key), resolve) for key in option.get("required", ())}
    values = {key: fixed_values(part) for key, part in parts.items() if isinstance(part, dict)}
    return {key: value for key, value in values.items() if value is not None}


def foreign_keys(option: Any, other: Any, resolve: Resolve) -> list[str]:
    """Return the keys of `option` that `other`, a closed object, forbids: each of them tells the two apart."""
    one, two = (followed(schema, resolve) for schema in (option, other))
    if not isinstance(one, dict) or not isinstance(two, dict) or two.get("patternProperties"):
        return []
    if two.get("additionalProperties") is not False:
        return []
    return [key for key in one.get("properties", {}) if key not in two.get("properties", {})][:MAX_OPTIONS]


def values_of_one(options: list[Any], resolve: Resolve) -> list[Any] | None:
    """Return the values that exactly one option allows, if every option is only a list of values; else None."""
    listed = [_values(option, resolve) for option in options]
    if any(found is None for found in listed):
        return None
    every = [(_key(value), value) for found in listed for value in found or ()]
    times = Counter(key for key, _ in every)
    return [value for key, value in every if times[key] == 1]


def _values(option: Any, resolve: Resolve) -> list[Any] | None:
    """Return the values of an option that is only a list of values, without duplicates; else None."""
    option = followed(option, resolve)
    if not isinstance(option, dict) or set(option) - NO_ASSERTIONS - {"type"} != {"enum"}:
        return None
    kinds = types_of(option, resolve)
    distinct: dict[str, Any] = {}
    for value in option["enum"]:
        if type_of(value) in kinds:
            distinct.setdefault(_key(value), value)
    return list(distinct.values())


def _key(value: Any) -> str:
    """Return a text that is the same for equal JSON values. 1 and 1.0 are equal, true and 1 are not."""
    return json.dumps(canonical(value), sort_keys=True)
