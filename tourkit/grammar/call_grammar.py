"""Writes the grammar of answers that call tools: free text up to the marker of a call, then the call.

The grammar is llguidance's form of Lark, with the JSON Schema of each tool inside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Parts = tuple[str | int, ...]  # texts, and ids of control tokens
_ANY = "(?s:.*)"
_LEAD = r"/[ \t\r\n]{0,8}/"


@dataclass(frozen=True, slots=True)
class CallSpec:
    """Answers that call tools. The fields are those of a Form, with the ids of its control tokens.

    `names`: of the tools. `schemas`: of their arguments, as JSON text. `where`: the field of the request that has each
    schema. `most`: calls in an answer. `required`: an answer without a call is not allowed. `content`: the JSON text of
    the schema of an answer without calls; None if it is free text.
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

    def to_json(self) -> str:
        """Return the data as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def of_json(text: str) -> CallSpec:
        """Return the data that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        for key, value in data.items():
            data[key] = tuple(value) if isinstance(value, list) else value
        return CallSpec(**data)

    @property
    def marker_text(self) -> str:
        """The marker if it is plain text; "" if there is none, or if it has control tokens."""
        return self.marker[0] if len(self.marker) == 1 and isinstance(self.marker[0], str) else ""

    @property
    def at_start(self) -> bool:
        """Whether a call can stand only at the start of an answer."""
        return not self.marker or bool(self.free)

    def around(self, name: str) -> str:
        """Return the plain text around the arguments of a call, for counting tokens."""
        parts = (*self.marker, *self.opening, *self.begin, name, *self.middle, *self.end, *self.closing)
        return "".join(part for part in parts if isinstance(part, str))


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
    lines += [f"arguments_{i}: %json {json.dumps(body)}" for i, body in enumerate(bodies)]
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
