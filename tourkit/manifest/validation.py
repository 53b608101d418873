"""Check data against the JSON Schemas of this package, and explain every problem in one plain line."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tourkit.errors import ManifestError

_SCHEMAS = Path(__file__).resolve().parent / "schemas"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the fix for a word that is not among the `known` ones: the nearest of them, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def schema_problems(name: str, raw: object) -> list[str]:
    """Return what is wrong with `raw` by schemas/<name>.schema.json, one line each: "key: problem: fix"."""
    import jsonschema
    from referencing import Registry, Resource

    schemas = {path.name: json.loads(path.read_bytes()) for path in _SCHEMAS.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (file, Resource.from_contents(schema)) for file, schema in schemas.items()
    )
    checker = jsonschema.Draft202012Validator(schemas[f"{name}.schema.json"], registry=registry)
    errors = sorted(checker.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
    return list(dict.fromkeys(line for error in errors for line in _explain(error)))


def raise_problems(path: Path, problems: Iterable[str]) -> None:
    """Raise one ManifestError for all `problems` of the file at `path`. Does nothing if there are none."""
    found = list(problems)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ManifestError(f"{path}: {found[0]}{more}", details=tuple(found) if more else ())


def _explain(error: Any) -> Iterator[str]:
    """Yield an error of jsonschema as plain lines. The description in the schema is the fix."""
    key = "".join(dotted_step(part) for part in error.absolute_path).removeprefix(".")
    place = f"{key}." if key else ""
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for extra in sorted(error.instance.keys() - known):
            yield f"{place}{dotted_step(extra)[1:]}: unknown key: {did_you_mean(extra, known)}"
        return
    fix = error.schema.get("description", error.message)
    if error.validator == "required":
        for missing in [name for name in error.validator_value if name not in error.instance]:
            wanted = error.schema["properties"][missing].get("description", "add it")
            yield f"{place}{missing}: missing: {wanted}"
        return
    shown = repr(error.instance)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    if error.validator == "enum":
        fix = did_you_mean(str(error.instance), error.validator_value)
    if error.validator == "uniqueItems":
        twice = next(item for item in error.instance if error.instance.count(item) > 1)
        yield f"{key}: {twice!r} is named twice: name it once"
        return
    yield f"{key or 'the file'}: {shown} is refused: {fix}"


def dotted_step(part: int | str) -> str:
    """Return one step of a dotted key. It is quoted if it is no bare TOML key, so that a message stays one line."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[\w.-]+", part) else f".{json.dumps(part)}"
