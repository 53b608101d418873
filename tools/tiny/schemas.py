"""Random JSON Schemas for the kinds of documents, and the answer of a document under each schema."""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.tiny.documents import Document, Split
from tools.tiny.fields import KINDS, Field
from tools.tiny.names import HELD, TRAIN
from tools.tiny.values import ALL_CURRENCIES

HELD_SHARE = 0.12
_GROUPS = ("details", "info", "data", "facts")


@dataclass(frozen=True, slots=True)
class Part:
    """One property: the field, its key, the form of its value, and the group around it ("" if there is none)."""

    field: Field
    key: str
    form: str  # plain, amount (of money), text (a number as a string)
    group: str
    about: bool


def schema_id(kind: str, keys: list[str]) -> str:
    """Return the id by which a schema is put into a split: the kind and the set of keys."""
    return f"{kind}:{','.join(sorted(keys))}"


def schema_split(identity: str) -> str:
    bucket = hashlib.sha256(identity.encode()).digest()[0]
    return HELD if bucket < HELD_SHARE * 256 else TRAIN


def plan(rng: Random, kind: str, split: Split, told: list[Field] | None = None) -> list[Part]:
    """Draw the properties of a schema of the split. With `told`: these fields and sometimes one more."""
    while True:
        if told is None:
            fields = rng.sample(KINDS[kind], rng.choice([2, 3, 3, 4, 4, 5, 6]))
        else:
            others = [field for field in KINDS[kind] if field not in told]
            more = rng.sample(others, min(len(others), rng.choice([0, 0, 1]) or not told))
            fields = rng.sample([*told, *more], len(told) + len(more))
        parts = _parts(rng, fields, split)
        if schema_split(schema_id(kind, [part.key for part in parts])) == split.schemas or split.keys == HELD:
            return parts


def _parts(rng: Random, fields: list[Field], split: Split) -> list[Part]:
    group = rng.choice(_GROUPS) if rng.random() < 0.25 and len(fields) > 3 else ""
    grouped = set(rng.sample(range(len(fields)), 2)) if group else set()
    taken: set[str] = {group}
    parts = []
    for index, field in enumerate(fields):
        keys = field.held_keys if split.keys == HELD else field.keys
        free = [key for key in keys if key not in taken] or [field.name + "_" + keys[0]]
        key, opaque = rng.choice(free), split.keys == TRAIN and rng.random() < 0.08
        key = f"{rng.choice('abcxyz')}{index}" if opaque else key
        taken.add(key)
        form = "plain"
        if field.type == "money":
            form = rng.choice(["plain", "amount", "text"])
        elif field.type in ("int", "decimal", "year"):
            form = rng.choice(["plain", "plain", "text"])
        about = opaque or split.keys == HELD or rng.random() < 0.25
        parts.append(Part(field, key, form, group if index in grouped else "", about))
    return parts


def brief(parts: list[Part]) -> str:
    """Describe the fields in a few words: keys, choices in brackets, lists with `[]`, groups with their keys."""
    words, groups = [], set()
    for part in parts:
        kind = part.field.type
        word = part.key + (f" ({part.field.about})" if part.about else "")
        if kind.startswith("enum:"):
            word += f" ({kind[5:].replace(',', '|')})"
        elif kind.startswith("list:"):
            word += "[]"
        elif kind == "money" and part.form == "plain":
            word += " {amount, currency}"
        elif part.form == "text":
            word += ' ""'
        if part.group and part.group not in groups:
            inside = ", ".join(p.key for p in parts if p.group == part.group)
            words.append(f"{part.group} {{{inside}}}")
            groups.add(part.group)
        words.append(word)
    return ", ".join(words)


def nullable(kind: str, field: Field) -> bool:
    """Return True if a document of the kind may leave the field out (a list is then empty, an enum never is)."""
    from tools.tiny.lines_en import LINES

    return field.name in LINES[kind] or field.type == "bool"


def schema(kind: str, parts: list[Part], *, rich: bool, titled: bool = False) -> dict[str, Any]:
    """Return the schema of these parts. `rich` adds limits and `required` and closes objects, as templates do."""
    top: dict[str, Any] = {}
    for part in parts:
        target = top
        if part.group:
            target = top.setdefault(part.group, {"type": "object", "properties": {}})["properties"]
        target[part.key] = _property(part, nullable(kind, part.field), rich)
    whole: dict[str, Any] = {"title": kind} if titled else {}
    whole |= {"type": "object", "properties": top}
    if rich:
        for node in [*top.values(), whole]:
            _close(node)
    return whole


def _close(node: dict[str, Any]) -> None:
    if "properties" in node:
        node["required"] = list(node["properties"])
        node["additionalProperties"] = False


def _property(part: Part, optional: bool, rich: bool) -> dict[str, Any]:
    kind = part.field.type
    node: dict[str, Any]
    if kind.startswith("enum:"):
        node = {"type": "string", "enum": kind[5:].split(",")}
    elif kind.startswith("list:"):
        node = {"type": "array", "items": {"type": "string", "maxLength": 60} if rich else {"type": "string"}}
        node |= {"maxItems": 4} if rich else {}
    elif kind == "bool":
        node = {"type": ["boolean", "null"]}
    elif kind == "money" and part.form == "plain":
        number = {"type": ["string", "null"], **({"maxLength": 12} if rich else {})}
        node = {"type": "object", "properties": {"amount": number, "currency": {"enum": [*ALL_CURRENCIES, None]}}}
        _close(node) if rich else None
    elif kind in ("money", "int", "decimal", "year") and part.form != "text":
        name = "integer" if kind in ("int", "year") else "number"
        node = {"type": [name, "null"] if optional else name}
    else:
        node = {"type": ["string", "null"] if optional else "string"}
        if kind == "date":
            node["format"] = "date"
        if rich and kind == "time":
            node["pattern"] = "^[0-2][0-9]:[0-5][0-9]$"
        elif rich and kind != "date":
            node["maxLength"] = 60
    return node | ({"description": part.field.about} if part.about else {})


def answer(document: Document, parts: list[Part]) -> dict[str, Any]:
    """Return the facts of the document in the shape and the order of the schema."""
    whole: dict[str, Any] = {}
    for part in parts:
        target = whole.setdefault(part.group, {}) if part.group else whole
        target[part.key] = _value(document.facts[part.field.name], part)
    return whole


def _value(fact: Any, part: Part) -> Any:
    if part.field.type == "money":
        amount = fact["amount"] if fact else None
        if part.form == "plain":
            return fact or {"amount": None, "currency": None}
        if part.form == "text" or amount is None:
            return amount
        return float(amount) if "." in amount else int(amount)
    return str(fact) if part.form == "text" and fact is not None else fact
