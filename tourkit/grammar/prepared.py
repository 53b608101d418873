"""A constraint that is ready to be compiled, as plain data that can go over a pipe.

The process that prepares constraints makes it (`prepare`). The process that generates compiles it (`compiler`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Manner:
    """How a schema is prepared.

    `tight`: allow fewer documents if that makes more of the schema enforceable; for a second attempt. `compact`: put no
    space after commas and colons.
    """

    tight: bool = False
    compact: bool = False


PLAIN = Manner()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared constraint.

    `grammar`: the text to compile, as llguidance serialises it. `large`: it needs the larger limits. `reserve`: tokens
    enough to close a begun document. `level`: "strict", "relaxed" or "generic". `dropped`: JSON pointers to the parts
    of the schema that are not enforced. `samples`: texts that may end a string. `json_text`: the text is JSON.
    `weight`: bytes by which the trial compile made its process grow; 0 if this system does not tell. `optional`: the
    text may do without the constrained part, and free text is not closed out. `after`: its JSON begins after this text,
    or after the control token with this id; "" for the start. `header_end`: the control token that ends the header of
    free text; None if there is no header. `ends`: tokens that may end a value in the text, or the text; the best first.
    """

    grammar: str
    large: bool
    reserve: int
    level: str = "strict"
    dropped: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    json_text: bool = True
    weight: int = 0
    optional: bool = False
    after: str | int = ""
    header_end: int | None = None
    ends: tuple[tuple[int, ...], ...] = ()

    def to_json(self) -> str:
        """Return the data as one line of JSON text in ASCII."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_json(text: str) -> Prepared:
        """Return the data that `to_json` wrote."""
        data = json.loads(text)
        ends = tuple(map(tuple, data["ends"]))
        return Prepared(**data | {key: tuple(data[key]) for key in ("dropped", "samples")} | {"ends": ends})
