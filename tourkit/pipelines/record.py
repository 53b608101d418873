"""The record of one document: what its template returned, or why it failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tourkit.client import Client
from tourkit.errors import said_by
from tourkit.pipelines.journal import encoded
from tourkit.pipelines.lines import Line

if TYPE_CHECKING:
    from tourkit.pipelines.templates import Run

Record = dict[str, Any]


def record_of(run: Run, line: Line, client: Client) -> Record:
    """Return the template's record of a line, or a failed record. Never raises."""
    if line.problem is not None:
        return failure(line, line.problem, "input")
    try:
        given: Any = run(line.document(), client)  # a template of a user may return anything
        if not isinstance(given, dict):
            return failure(line, f"run returned {type(given).__name__}, not an object", "TypeError")
        record = {"id": line.id, "ok": True, **given} | {"id": line.id}
        encoded(record)
    except BaseException as error:  # noqa: BLE001 - thread boundary: one line must not end the others or make them hang
        return failure(line, said_by(error), type(error).__name__)
    return record


def failure(line: Line, error: str, kind: str) -> Record:
    """Return the record of a line that failed. `kind`: the type of the error."""
    return {"id": line.id, "ok": False, "error": error, "type": kind}
