"""Refuses a constraint by the name of the field that holds it."""

from __future__ import annotations

from typing import NoReturn

from tourkit.errors import RequestError

TOO_COMPLEX = "constraint_too_complex"
_TEXT_KINDS = ("regex", "grammar", "choice")  # kinds of constraints; a request has a field of the same name for each


def refusal(kind: str, message: str, code: str) -> RequestError:
    """Return a RequestError whose `param` is the field that holds this kind of constraint."""
    return RequestError(message, param=kind if kind in _TEXT_KINDS else "response_format", code=code)


def refuse(kind: str, message: str, code: str) -> NoReturn:
    """Raise the `refusal`."""
    raise refusal(kind, message, code)
