"""Requests of other APIs are made into requests of chat. This is about the names of their fields.

Errors and headers must name the fields that the client sent, and not those of the chat request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from tourkit.errors import RequestError

# A field of the chat request, such as `tools[0].function` → the field of the client's body that it was made of.
Names = Mapping[str, str]


def client_field(field: str, names: Names) -> str:
    """Return the client's name of a field. The longest name that the field begins with counts."""
    at = max((name for name in names if _begins(field, name)), key=len, default=None)
    return field if at is None else names[at] + field[len(at) :]


@contextlib.contextmanager
def client_errors(names: Names) -> Iterator[None]:
    """Let a RequestError of the block name the client's field, also in its message."""
    try:
        yield
    except RequestError as exc:
        raise _client_error(exc, names) from exc


def _client_error(error: RequestError, names: Names) -> RequestError:
    if error.param is None:
        return error
    message, param = str(error), client_field(error.param, names)
    if not error.param.isalpha():  # a plain word may be in the sentence in its own meaning
        message = message.replace(error.param, param)
    elif _begins(message, error.param):
        message = param + message[len(error.param) :]
    else:
        message = client_field(message, names)
    return RequestError(message, param=param, code=error.code, status=error.status)


def _begins(field: str, name: str) -> bool:
    return field == name or (field.startswith(name) and field[len(name)] in ".[: ")
