"""A short instance of a JSON Schema: how many tokens the end of a document may need. An estimate, not a validator."""

from __future__ import annotations

from typing import Any

_MAX_DEPTH = 12


def minimal_instance(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A small value of the schema's shape: required keys only, fewest items, longest enum value.

    The longest enum value, because the model may have begun any of them when the tokens run out.
    """
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        return minimal_instance(_resolve(str(schema["$ref"]), root), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return max(schema["enum"], key=lambda value: len(str(value)))
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            options = [minimal_instance(option, root, depth + 1) for option in schema[keyword]]
            return max(options, key=lambda value: len(str(value)))
    if schema.get("allOf"):
        parts = [minimal_instance(part, root, depth + 1) for part in schema["allOf"]]
        merged: dict[str, Any] = {}
        for part in parts:
            merged |= part if isinstance(part, dict) else {}
        return merged or parts[0]
    return _of_type(schema, root, depth)


def _of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind == "object":
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        return {key: minimal_instance(properties.get(key, {}), root, depth + 1) for key in required}
    if kind == "array":
        return [minimal_instance(schema.get("items", {}), root, depth + 1)] * min(int(schema.get("minItems", 0)), 64)
    if kind == "string":
        return "x" * min(
            max(int(schema.get("minLength", 0)), 10 if "format" in schema or "pattern" in schema else 0), 512
        )
    return {"integer": 100, "number": 100.5, "boolean": False}.get(str(kind))


def _resolve(reference: str, root: Any) -> Any:
    """The part of `root` that a local `#/a/b` reference names; None when there is none."""
    found = root
    for part in reference.lstrip("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found
