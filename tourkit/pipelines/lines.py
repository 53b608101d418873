"""Read the documents of an input file, one per line, with number and id. Parsing a line never raises."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tourkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file. `problem` says why its document cannot be used; None if it can."""

    number: int  # from 1, as in editors
    raw: bytes
    id: str | int  # the line's number if the document has no id
    problem: str | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return the document with its id. Only for a line without a problem."""
        return {**json.loads(self.raw), "id": self.id}


def read_lines(path: Path) -> list[Line]:
    """Return every line of a JSON Lines file that is not blank. A bad line is returned with its problem.

    Raises UsageError if the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}): give a JSON Lines file") from error
    return list(_lines(path, data.removeprefix(b"\xef\xbb\xbf")))


def check_ids(path: Path, lines: list[Line]) -> None:
    """Refuse two documents with the same id. Raises UsageError."""
    first: dict[str, int] = {}
    for line in lines:
        key = json.dumps(line.id)
        if key in first:
            raise UsageError(
                f"{path} line {line.number}: line {first[key]} has the id {line.id!r} too: make ids unique"
            )
        first[key] = line.number


def _lines(path: Path, data: bytes) -> Iterator[Line]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        text = raw.strip()
        if text:
            given, problem = _parsed(text)
            where = None if problem is None else f"{path} line {number}: {problem}"
            yield Line(number, text, number if given is None else given, where)


def _parsed(raw: bytes) -> tuple[str | int | None, str | None]:
    """Return the id of the document on a line (None: no id), and what is wrong with the line (None: nothing)."""
    try:
        document = json.loads(raw.decode("utf-8"))
    except RecursionError:
        return None, "its JSON is nested too deeply"
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start + 1}: save the file as UTF-8"
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at column {error.colno})"
    if not isinstance(document, dict):
        return None, "not a JSON object: write one document per line, in braces"
    given = document.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
        return None, f"the id {given!r} is not a text or a whole number"
    return given, None
