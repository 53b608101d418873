"""Find the calls in the text of an answer, while it is made.

The text follows a grammar (`grammar/call_grammar`), so a call is written exactly as its form says. No marker gets into
the content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tourkit.calling.forms import SPACE, Form
from tourkit.calling.parameters import ArgumentStream, Scan, begun
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

    `names`: of the tools. `new_id` makes the id of a call. `texts`: for each tool, the names of the parameters that
    `Notation` writes as they are. Text that may begin a marker, and space that may stand before one, is held back until
    later text decides.
    """

    def __init__(
        self,
        form: Form,
        names: Sequence[str],
        new_id: Callable[[], str],
        texts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._form = form
        self._names = names
        self._texts = texts or {}
        self._new_id = new_id
        self._where = _Where.START
        self._held = ""
        self._count = 0
        self._json: _Object | ArgumentStream = _Object()

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
            if cut and any(begun(rest, text) for text in self._openings()):
                rest = rest[: len(rest) - max(begun(rest, text) for text in self._openings())]
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
        keep = begun(text, form.marker)
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
                self._json = self._begun(name)
                return self._go(_Where.ARGUMENTS, text[len(head) :])
        return False

    def _begun(self, name: str) -> _Object | ArgumentStream:
        """Return what reads the arguments of a call."""
        form = self._form
        if form.notation is None:
            return _Object()
        return ArgumentStream(form.notation, self._texts.get(name, ()), form.end)

    def _arguments(self, found: Found) -> bool:
        taken, text = self._json.take(self._held)
        if text:
            found.pieces += (CallPiece(self._count - 1, text),)
        self._held = self._held[taken:]
        return self._go(_Where.HEAD, self._held) if self._json.whole else False


class _Object:
    """Arguments that are a JSON object: the text is final as it comes. `whole`: the object has ended."""

    def __init__(self) -> None:
        self._scan = Scan()

    @property
    def whole(self) -> bool:
        return self._scan.whole

    def take(self, text: str) -> tuple[int, str]:
        """Return how many characters are done, and these characters."""
        taken = self._scan.take(text)
        return taken, text[:taken]
