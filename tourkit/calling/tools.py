"""Plain data about tools: what a request offers, and what an answer calls."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tourkit.calling.parameters import Parameter, parameters_of


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters`: the JSON text of the schema of its arguments."""

    name: str
    description: str
    parameters: str

    def to_json(self) -> dict[str, Any]:
        """Return the tool in OpenAI's format, as chat templates read it."""
        about = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return {"type": "function", "function": about}


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that a request shows to the model.

    `where`: for each tool, the field of the request that has its schema. `only`: the names of the tools that may be
    called; empty if all may. `required`: the answer must call one. `parallel`: it may call several. `content`: the JSON
    text of the schema of an answer without calls; "" if it is free text.
    """

    tools: tuple[Tool, ...]
    where: tuple[str, ...]
    only: tuple[str, ...] = ()
    required: bool = False
    parallel: bool = True
    content: str = ""

    def may(self, name: str) -> bool:
        """Whether a tool may be called."""
        return not self.only or name in self.only

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tools that may be called."""
        return tuple(tool.name for tool in self.tools if self.may(tool.name))

    @property
    def parameters(self) -> dict[str, tuple[Parameter, ...] | None]:
        """The parameters of the tools that may be called; None for a tool whose arguments cannot be written singly."""
        return {tool.name: parameters_of(json.loads(tool.parameters)) for tool in self.tools if self.may(tool.name)}


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A new piece of call number `index` of an answer. Only the first piece of a call has `id` and `name`."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class Call:
    """One call of an answer, put together from its pieces. `arguments`: JSON text; not complete if it was cut off."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Calls:
    """The calls of one answer, in order."""

    found: list[Call] = field(default_factory=list)

    def take(self, pieces: tuple[CallPiece, ...]) -> None:
        """Add new pieces."""
        for piece in pieces:
            if piece.name:
                self.found.append(Call(piece.id, piece.name))
            self.found[piece.index].arguments += piece.arguments
