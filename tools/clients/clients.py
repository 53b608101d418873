"""The clients: their pinned packages (clients.toml), their tour, and their example in docs/clients.md."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
ROOT = _HERE.parents[1]
PAGE = ROOT / "docs" / "clients.md"
EXAMPLE_URL = "http://127.0.0.1:8000"  # the address in the examples
_SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ENDINGS = {"python": ".py", "js": ".mjs", "sh": ".sh"}


@dataclass(frozen=True, slots=True)
class Client:
    """One row of clients.toml. `packages`: pinned, for pip or npm; empty if the client is part of the system."""

    name: str
    packages: tuple[str, ...]
    node: bool

    @property
    def tour(self) -> Path:
        return _HERE / "tours" / f"{self.name.replace('-', '_')}_tour{'.mjs' if self.node else '.py'}"


@dataclass(frozen=True, slots=True)
class Example:
    """The code that docs/clients.md shows for a client. `ending`: that of its file, such as `.py`."""

    ending: str
    text: str


def read_clients() -> list[Client]:
    """Return the clients in the order of clients.toml."""
    table = tomllib.loads((_HERE / "clients.toml").read_text(encoding="utf-8"))
    return [Client(name, tuple(row.get("npm", row.get("python", ()))), "npm" in row) for name, row in table.items()]


def read_examples() -> dict[str, Example]:
    """Return the first block of code of each section of docs/clients.md, by the heading of the section."""
    examples = {}
    for heading, body in _SECTION.findall(PAGE.read_text(encoding="utf-8")):
        if found := _BLOCK.search(body):
            examples[heading] = Example(_ENDINGS[found[1]], found[2])
    return examples
