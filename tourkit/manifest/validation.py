"""Check data against the JSON Schemas of this package, and explain every problem in one plain line."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from tourkit.errors import ManifestError
from tourkit.manifest.acceptance import Check, check_of

_SCHEMAS = Path(__file__).resolve().parent / "schemas"
_DEEPEST = 64  # levels; a manifest has 5. Python prints and compares nested values by recursion
_MOST_VALUES = 50_000  # that jsonschema gets: it takes a tenth of a millisecond for each
_MOST_ROWS = 100  # refused entries of one list that are explained
_SMALL = 50  # values of a list or table that is quoted in a message
_MOST_PROBLEMS = 100  # of one file that are listed
_LONGEST_WORD = 100  # characters of a word that a similar one is looked for
_MOST_BITS = 200  # of a whole number that is shown


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the fix for a word that is not among the `known` ones: the nearest of them, or all."""
    names = sorted(known)
    more = ", …" if len(names) > _MOST_PROBLEMS else ""
    names = names[:_MOST_PROBLEMS]
    near = difflib.get_close_matches(word, names, n=1) if len(word) <= _LONGEST_WORD else []
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}{more}"


def schema_problems(name: str, raw: object) -> list[str]:
    """Return what is wrong with `raw` by schemas/<name>.schema.json, one line each: "key: problem: fix".

    At most the first hundred refused entries of a list are explained.
    """
    file = f"{name}.schema.json"
    if _accepts(file)(raw):
        return []
    if _is_deep(raw):
        return [f"the file: its values are nested more than {_DEEPEST} levels deep: take the innermost ones out"]
    if isinstance(raw, dict):
        raw, places = _narrowed(raw, file)
    else:
        places = {}
    if (values := sum(1 for _ in _each(raw))) > _MOST_VALUES:
        return [f"the file: a value in it is refused, and {values} values are too many to say which: make it smaller"]
    if any(isinstance(each, int) and each.bit_length() > _MOST_BITS for each in _each(raw)):
        return ["the file: a whole number in it has more than 60 digits: shorten it"]
    import jsonschema
    from referencing import Registry, Resource

    schemas = _schemas()
    registry: Registry[Any] = Registry().with_resources(
        (other, Resource.from_contents(schema)) for other, schema in schemas.items()
    )
    checker = jsonschema.Draft202012Validator(schemas[file], registry=registry)
    errors = sorted(checker.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
    return list(dict.fromkeys(line for error in errors for line in _explain(error, places)))


@cache
def _schemas() -> dict[str, dict[str, Any]]:
    """Return every schema of this package by its file name."""
    return {path.name: json.loads(path.read_bytes()) for path in _SCHEMAS.glob("*.schema.json")}


@cache
def _accepts(file: str, key: str = "") -> Check:
    """Return the quick check of a schema, or of an entry of its list `key`."""
    schemas = _schemas()
    if not key:
        return check_of(schemas[file], file, schemas)
    return check_of(schemas[file]["properties"][key]["items"], file, schemas)


def _narrowed(raw: dict[str, Any], file: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Return `raw` with the first refused entries of each of its lists only, and their numbers by the list's key.

    jsonschema takes a quarter of a minute for an index of 100,000 files.
    """
    narrow, places = dict(raw), {}
    for key, rule in _schemas()[file]["properties"].items():
        rows = raw.get(key)
        if isinstance(rows, list) and len(rows) > _MOST_ROWS and "items" in rule and not rule.get("uniqueItems"):
            accepts = _accepts(file, key)
            refused = [number for number, row in enumerate(rows) if not accepts(row)]
            places[key] = refused[:_MOST_ROWS] or [0]
            narrow[key] = [rows[number] for number in places[key]]
    return narrow, places


def _each(value: Any) -> Iterator[Any]:
    """Yield a value and all values in it."""
    todo = [value]
    while todo:
        part = todo.pop()
        yield part
        if isinstance(part, dict | list):
            todo += part.values() if isinstance(part, dict) else part


def _is_deep(value: Any) -> bool:
    """Return whether lists and tables are nested more than `_DEEPEST` levels deep. No recursion: they may be deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        inner = (each for part in level for each in (part.values() if isinstance(part, dict) else part))
        level = [each for each in inner if isinstance(each, dict | list)]
    return bool(level)


def raise_problems(path: Path, problems: Iterable[str]) -> None:
    """Raise one ManifestError for at most a hundred `problems` of a file. Does nothing if there are none."""
    found = list(islice(problems, _MOST_PROBLEMS))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ManifestError(f"{path}: {found[0]}{more}", details=tuple(found) if more else ())


def _explain(error: Any, places: dict[str, list[int]]) -> Iterator[str]:
    """Yield an error of jsonschema as plain lines. The description in the schema is the fix.

    `places`: the numbers in the file of the entries that jsonschema got, by the key of their list.
    """
    path = list(error.absolute_path)
    if len(path) > 1 and path[0] in places:
        path[1] = places[path[0]][path[1]]
    key = "".join(dotted_step(part) for part in path).removeprefix(".")
    place = f"{key}." if key else ""
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for extra in sorted(error.instance.keys() - known)[:_MOST_PROBLEMS]:
            yield f"{place}{dotted_step(extra)[1:]}: unknown key: {did_you_mean(extra, known)}"
        return
    fix = error.schema.get("description", error.message)
    if error.validator == "required":
        for missing in [name for name in error.validator_value if name not in error.instance]:
            wanted = error.schema["properties"][missing].get("description", "add it")
            yield f"{place}{missing}: missing: {wanted}"
        return
    shown = _shown(error.instance)
    if error.validator == "enum":
        fix = did_you_mean(str(error.instance), error.validator_value)
    if error.validator == "uniqueItems":
        counts = Counter(map(_shown, error.instance))
        twice = next(item for item in error.instance if counts[_shown(item)] > 1)
        yield f"{key}: {twice!r} is named twice: name it once"
        return
    yield f"{key or 'the file'}: {shown} is refused: {fix}"


def _shown(value: Any) -> str:
    """Return a value for a message: at most 60 characters."""
    if isinstance(value, dict | list) and sum(1 for _ in islice(_each(value), _SMALL + 1)) > _SMALL:
        return f"{'a table' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def dotted_step(part: int | str) -> str:
    """Return one step of a dotted key. It is quoted if it is no bare TOML key, so that a message stays one line."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[\w.-]+", part) else f".{json.dumps(part)}"
