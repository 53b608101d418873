"""The names of fields in errors, for APIs whose bodies are translated to the body of a chat request.

The parsers of a chat request name its fields. The client sent other ones, and must read the names of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tourkit.errors import RequestError

_MESSAGE = re.compile(r"messages\[(\d+)\]")
# Pairs of a chat request's field and the field that was sent. A field stands for its parts too. The first match counts.
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FieldNames:
    """`fields`: of the whole body. `messages`: for each message of the chat request, of its own fields.

    The name "" of a message's field stands for all its other fields.
    """

    fields: Pairs
    messages: tuple[Pairs, ...] = ()

    def sent(self, field: str) -> str:
        """Return the field that the client sent, for a field of the chat request."""
        found = _MESSAGE.match(field)
        if found is not None and int(found[1]) < len(self.messages):
            return _renamed(field[found.end() :].removeprefix("."), self.messages[int(found[1])]) or field
        return _renamed(field, self.fields) or field

    def error(self, exc: RequestError) -> RequestError:
        """Return an error that names the field that the client sent, in `param` and in the message."""
        if exc.param is None:
            return exc
        sent, message = self.sent(exc.param), str(exc)
        # A plain word may be in the sentence in its own meaning, as in "the template refuses these messages".
        if message.startswith(exc.param):
            message = sent + message[len(exc.param) :]
        if not exc.param.isalpha():
            message = message.replace(exc.param, sent)
        return RequestError(message, param=sent, code=exc.code, status=exc.status)


def _renamed(field: str, pairs: Pairs) -> str:
    """Return the field that was sent; "" if no pair fits."""
    for ours, sent in pairs:
        rest = field[len(ours) :]
        if field.startswith(ours) and (not ours or not rest or rest[0] in ".["):
            return sent + (rest if ours else "")
    return ""
