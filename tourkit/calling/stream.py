"""Find the calls in the text of an answer, while it is made.

The text follows a grammar (`grammar/call_grammar`), so a call is written exactly as its form says. No marker gets into
the content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tourkit.calling.forms import SPACE, Form
from tourkit.calling.tools import CallPiece


@dataclass(slots=True)
class Found:
    """New text of the content, and new pieces of calls."""

    content: str = ""
    pieces: tuple[CallPiece, ...] = ()


class _Where(Enum):
    START = auto()  # before the first text that is not space
    CONTENT = auto()
    HEAD = auto()  # between the marker and the arguments, or after the arguments of a call
    ARGUMENTS = auto()


class CallStream:
    """Take the text of one answer, and return its content and its calls as soon as they are final.

    `names`: of the tools. `new_id` makes the id of a call. Text that may begin a marker, and space that may stand
    before one, is held back until later text decides.
    """

    def __init__(self, form: Form, names: Sequence[str], new_id: Callable[[], str]) -> None:
        self._form = form
        self._names = names
        self._new_id = new_id
        self._where = _Where.START
        self._held = ""
        self._count = 0
        self._json = _Scan()

    @property
    def called(self) -> bool:
        """Whether the answer has begun a call."""
        return self._count > 0

    def feed(self, text: str) -> Found:
        """Add text and return what is final now."""
        self._held += text
        found = Found()
        while self._step(found):
            pass
        return found

    def close(self, *, cut: bool) -> Found:
        """End the answer and return the rest. `cut`: it is not complete, so a begun marker is left out."""
        found = self.feed("")
        if self._where in (_Where.START, _Where.CONTENT) and not self.called:
            rest = self._held
            if cut and any(_begun(rest, text) for text in self._openings()):
                rest = rest[: len(rest) - max(_begun(rest, text) for text in self._openings())]
            found.content += rest
        self._held = ""
        return found

    def _openings(self) -> tuple[str, ...]:
        """Return the texts that end the content. With an empty marker, these are whole heads."""
        form = self._form
        return (form.marker,) if form.marker else tuple(form.head(name, first=True) for name in self._names)

    def _step(self, found: Found) -> bool:
        """Take the next part out of the held text. Return False if later text must decide."""
        if self._where is _Where.START:
            return self._start()
        if self._where is _Where.CONTENT:
            return self._content(found)
        if self._where is _Where.HEAD:
            return self._head(found)
        return self._arguments(found)

    def _start(self) -> bool:
        """Decide how the answer begins: with a call, with hidden text before the content, or with content."""
        form, text = self._form, self._held.lstrip(SPACE)
        first = [text_ for text_ in (form.free, *self._openings()) if text_]
        if any(text != other and other.startswith(text) for other in first):
            return False
        if form.free and text.startswith(form.free):
            return self._go(_Where.CONTENT, text[len(form.free) :])
        if form.marker and text.startswith(form.marker):
            return self._go(_Where.HEAD, text[len(form.marker) :])
        if not form.marker and any(text.startswith(opening) for opening in self._openings()):
            return self._go(_Where.HEAD, text)
        return self._go(_Where.CONTENT, self._held)

    def _go(self, where: _Where, rest: str) -> bool:
        self._where, self._held = where, rest
        return True

    def _content(self, found: Found) -> bool:
        form, text = self._form, self._held
        if not form.marker or form.free:  # calls stand at the start only
            found.content, self._held = found.content + text, ""
            return False
        before, mark, after = text.partition(form.marker)
        if mark:
            found.content += before.rstrip(SPACE)
            return self._go(_Where.HEAD, after)
        keep = _begun(text, form.marker)
        sure = text[: len(text) - keep].rstrip(SPACE)  # space before a marker does not belong to the content
        found.content, self._held = found.content + sure, text[len(sure) :]
        return False

    def _head(self, found: Found) -> bool:
        text = self._held.lstrip(SPACE)
        for name in sorted(self._names, key=len, reverse=True):
            head = self._form.head(name, first=not self.called).lstrip(SPACE)
            if text.startswith(head):
                found.pieces += (CallPiece(self._count, "", self._new_id(), name),)
                self._count += 1
                self._json = _Scan()
                return self._go(_Where.ARGUMENTS, text[len(head) :])
        return False

    def _arguments(self, found: Found) -> bool:
        taken = self._json.take(self._held)
        if taken:
            found.pieces += (CallPiece(self._count - 1, self._held[:taken]),)
        self._held = self._held[taken:]
        return self._go(_Where.HEAD, self._held) if self._json.whole else False


class _Scan:
    """Follow one JSON object to its end. `whole`: its last bracket has come."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.whole = False

    def take(self, text: str) -> int:
        """Follow a text and return how many of its characters belong to the object."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.whole = True
                    return at + 1
        return len(text)


def _begun(text: str, marker: str) -> int:
    """Return how many characters at the end of a text are the beginning of a marker."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
