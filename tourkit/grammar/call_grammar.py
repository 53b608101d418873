"""Writes the grammar of answers that call tools: free text up to the marker of a call, then the call.

The grammar is llguidance's form of Lark, with the JSON Schema of each tool inside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tourkit.calling.parameters import Parameter, parameters_of
from tourkit.grammar.limits import MAX_LENGTH

Parts = tuple[str | int, ...]  # texts, and ids of control tokens
_ANY = "(?s:.*)"
_LEAD = r"/[ \t\r\n]{0,8}/"


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """Arguments that are written one by one. The fields are those of a Notation, with the ids of control tokens."""

    begin: Parts
    middle: Parts
    end: Parts
    between: Parts
    quote: Parts | None
    python: bool

    @staticmethod
    def of(data: dict[str, Any]) -> ValueSpec:
        """Return the data from a JSON object."""
        fields: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in data.items()}
        return ValueSpec(**fields)


@dataclass(frozen=True, slots=True)
class CallSpec:
    """Answers that call tools. The fields are those of a Form, with the ids of its control tokens.

    `names`: of the tools. `schemas`: of their arguments, as JSON text. `where`: the field of the request that has each
    schema. `most`: calls in an answer. `required`: an answer without a call is not allowed. `content`: the JSON text of
    the schema of an answer without calls; None if it is free text. `values`: how arguments are written one by one; None
    if they are a JSON object.
    """

    free: Parts
    marker: Parts
    opening: Parts
    begin: Parts
    middle: Parts
    end: Parts
    between: Parts
    closing: Parts
    names: tuple[str, ...]
    schemas: tuple[str, ...]
    where: tuple[str, ...]
    most: int
    required: bool
    content: str | None = None
    values: ValueSpec | None = None

    def to_json(self) -> str:
        """Return the data as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def of_json(text: str) -> CallSpec:
        """Return the data that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        for key, value in data.items():
            data[key] = tuple(value) if isinstance(value, list) else value
        values = data.pop("values")
        return CallSpec(**data, values=None if values is None else ValueSpec.of(values))

    @property
    def marker_text(self) -> str:
        """The marker if it is plain text; "" if there is none, or if it has control tokens."""
        return self.marker[0] if len(self.marker) == 1 and isinstance(self.marker[0], str) else ""

    @property
    def at_start(self) -> bool:
        """Whether a call can stand only at the start of an answer."""
        return not self.marker or bool(self.free)

    def around(self, at: int) -> str:
        """Return the plain text around the arguments of a call of tool number `at`, for counting tokens."""
        return _text((*self.marker, *self.opening, *self.begin, self.names[at], *self.middle, *self._around_values(at)))

    def _around_values(self, at: int) -> Parts:
        """Return what is around the values of all parameters of a tool, and the end of the call."""
        values, parts = self.values, (*self.end, *self.closing)
        if values is None:
            return parts
        around = (*values.begin, *values.middle, *(values.quote or ()) * 2, *values.end, *values.between)
        return (*around * len(self.parameters(at)), *parts)

    def parameters(self, at: int) -> tuple[Parameter, ...]:
        """Return the parameters of tool number `at`. Only for tools whose arguments can be written one by one."""
        found = parameters_of(json.loads(self.schemas[at]))
        assert found is not None
        return found

    @property
    def ends(self) -> tuple[Parts, ...]:
        """What ends a value, or the call; what ends more comes first. Empty if JSON's own brackets end everything."""
        call, closing = (*self.end, *self.closing), self.closing
        if self.values is None:
            return (call, closing) if closing else ()
        end = self.values.end
        quoted = (*self.values.quote, *end) if self.values.quote is not None else end
        every = ((*quoted, *call), (*end, *call), quoted, end, call, closing)
        return tuple(dict.fromkeys(parts for parts in every if any(parts)))


def call_grammar(spec: CallSpec, bodies: Sequence[Any], content: Any, *, leading_space: bool) -> str:
    """Return the Lark text. `bodies`: the JSON Schema of the arguments of each tool, as llguidance gets it.

    `content`: the same for an answer without calls; None if it is free text. `leading_space`: answers of the model
    begin with a space.
    """
    numbers = range(len(bodies))
    lines = _starts(spec, content, leading_space=leading_space)
    # SentencePiece models write a space after a control token.
    space = "/ {0,1}/ " if leading_space and spec.marker and isinstance(spec.marker[-1], int) else ""
    more = f" more{{0,{spec.most - 1}}}" if spec.most > 1 else ""
    lines += [f"calls: {space}{_written(spec.opening)} one{more} {_written(spec.closing)}"]
    lines += [f"more: {_written(spec.between)} one"] if more else []
    lines += [f"one: ({' | '.join(f'call_{i}' for i in numbers)}) {_written(spec.end)}"]
    lines += [f"call_{i}: {_written((*spec.begin, spec.names[i], *spec.middle))} arguments_{i}" for i in numbers]
    if spec.values is None:
        lines += [f"arguments_{i}: %json {json.dumps(body)}" for i, body in enumerate(bodies)]
    else:
        lines += [
            line for i, body in enumerate(bodies) for line in _arguments(spec.values, spec.parameters(i), i, body)
        ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _starts(spec: CallSpec, content: Any, *, leading_space: bool) -> list[str]:
    """Return the rules from the start of the answer to the first call."""
    marker, free = _written(spec.marker), _written(spec.free)
    lead = "lead " if leading_space or not spec.marker else ""
    rules = [f"lead: {_LEAD}"] if lead else []
    if spec.required:
        return [f"start: {lead}{marker} calls", *rules]
    if content is not None:
        rules += [f"content: %json {json.dumps(content)}"]
        return [f"start: {lead}{free} content | {lead}{marker} calls", *rules]
    if not spec.marker:
        heads = "|".join(_regex(_text((*spec.opening, *spec.begin, name, *spec.middle))) for name in spec.names)
        return ["start: TEXT | lead calls", f"TEXT: /{_ANY}/ & ~/[ \\t\\r\\n]*({heads}){_ANY}/", *rules]
    if spec.at_start:
        return [f"start: {lead}{free} TEXT | {lead}{marker} calls", f"TEXT: /{_ANY}/", *rules]
    if spec.marker_text:
        mark = _regex(spec.marker_text)
        return ["start: TEXT | head calls", f"head[lazy]: /{_ANY}{mark}/", f"TEXT: /{_ANY}/ & ~/{_ANY}{mark}{_ANY}/"]
    return [f"start: TEXT | TEXT {marker} calls", f"TEXT: /{_ANY}/"]


def _arguments(values: ValueSpec, parameters: tuple[Parameter, ...], at: int, body: Any) -> list[str]:
    """Return the rules of arguments that are written one by one, in the schema's order. `at`: the tool's number."""
    lines = [line for i, each in enumerate(parameters) for line in _value(values, each, f"{at}_{i}", body)]
    between, number = _written(values.between), len(parameters)
    for i, each in enumerate(parameters):
        next_, name = f"{at}_{i + 1}", f"{at}_{i}"
        without = "" if each.required else " | {}_" + next_
        lines.append(f"first_{name}: parameter_{name} more_{next_}{without.format('first')}")
        lines.append(f"more_{name}: {between} parameter_{name} more_{next_}{without.format('more')}")
    lines += [f'first_{at}_{number}: ""', f'more_{at}_{number}: ""']
    return [f"arguments_{at}: first_{at}_0", *lines]


def _value(values: ValueSpec, parameter: Parameter, name: str, body: Any) -> list[str]:
    """Return the rules of one argument. `name`: of the rule."""
    head, end = _written((*values.begin, parameter.name, *values.middle)), _written(values.end)
    if values.quote is None or not parameter.is_text:
        kind = '"True" | "False"' if values.python and parameter.is_boolean else f"%json {_part(body, parameter.name)}"
        return [f"parameter_{name}: {head} value_{name} {end}", f"value_{name}: {kind}"]
    quote, close = _written(values.quote), (*values.quote, *values.end)
    if parameter.options:
        options = " | ".join(map(json.dumps, dict.fromkeys(parameter.options)))
        return [f"parameter_{name}: {head} {quote} value_{name} {_written(close)}", f"value_{name}: {options}"]
    length = f"{{{parameter.shortest},{MAX_LENGTH if parameter.longest is None else parameter.longest}}}"
    if all(isinstance(part, str) for part in close):  # the first such text ends the value
        value = f"value_{name}[lazy]: /(?s:.{length}){_regex(_text(close))}/"
        return [f"parameter_{name}: {head} {quote} value_{name}", value]
    return [f"parameter_{name}: {head} {quote} value_{name} {_written(close)}", f"value_{name}: /(?s:.{length})/"]


def _part(body: Any, name: str) -> str:
    """Return the JSON Schema of one argument, as JSON text, from that of all arguments."""
    part = body.get("properties", {}).get(name, {})
    kept = {key: body[key] for key in ("$defs", "definitions", "x-guidance") if key in body}
    return json.dumps((part if isinstance(part, dict) else {}) | kept)


def _text(parts: Parts) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def _regex(text: str) -> str:
    return re.escape(text).replace("/", r"\/").replace("\n", r"n")


def _written(parts: Parts) -> str:
    """Return parts as Lark: strings, and control tokens by their ids. Texts that follow each other become one."""
    joined: list[str | int] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return " ".join(f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in joined)
