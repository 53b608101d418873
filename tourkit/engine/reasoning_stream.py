"""Split the text of an answer into thinking and content, while it is made.

Models mark their thinking by texts such as `<think>` and `</think>`. No such marker gets into either part.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from enum import Enum, auto

_MESSAGE, _CHANNEL, _START, _FINAL = "<|message|>", "<|channel|>", "<|start|>", "final"
_BODY_ENDS = ("<|end|>", "<|return|>", "<|call|>", _START, _CHANNEL)
_HEADERS = (_CHANNEL, _START, _MESSAGE, "assistant", "to=")  # how the header of a message can begin
_BETWEEN = "\n\n"  # between two pieces of thinking


class Where(Enum):
    """Where in an answer its next text is."""

    LEAD = auto()  # before the thinking or the content
    THINKING = auto()
    CONTENT = auto()


@dataclass(frozen=True, slots=True)
class Markers:
    """The texts by which a family of models marks its thinking.

    `opens`: each of them begins the thinking. `close`: ends it. `begin`: what a prompt ends with if the thinking has
    begun. `end`: what ends the thinking early and leads to the content. `skip`: what a prompt ends with to go without
    thinking. `bridge`: what the model writes between `close` and the content. `around`: hidden texts around the
    content. `channels`: messages have headers with the name of a channel, as in gpt-oss. `anywhere`: thinking can begin
    again inside the content; else a marker inside the content is text.
    """

    name: str
    opens: tuple[str, ...]
    close: str
    begin: str
    end: str
    skip: str
    bridge: str = "\n\n"
    around: tuple[str, ...] = ()
    channels: bool = False
    anywhere: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that marks something."""
        return (*self.opens, self.close, self.begin, self.end, self.skip, *self.around)


@dataclass(slots=True)
class Split:
    """New text: of the thinking and of the content."""

    reasoning: str = ""
    content: str = ""


class ReasoningStream:
    """Take the bytes of tokens and return thinking and content as soon as they are final.

    Text that can be the start of a marker is held back until later bytes decide. Space around the thinking is dropped.
    `where`: where the answer begins.
    """

    def __init__(self, markers: Markers, where: Where, *, anywhere: bool = False) -> None:
        self._markers = markers
        self._anywhere = anywhere or markers.anywhere
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._fresh = where is Where.THINKING  # no text of this piece of thinking so far
        self._thought = False  # some thinking was returned
        self._wrote = False  # some content was returned
        self._is_start = True  # nothing was decided so far: space before the content belongs to it
        self.where = where
        self.decided = where is not Where.LEAD

    @property
    def held(self) -> str:
        """The text that is held back."""
        return self._held

    @property
    def in_character(self) -> bool:
        """Whether the bytes so far end inside a character."""
        return bool(self._decoder.getstate()[0])

    def feed(self, piece: bytes) -> Split:
        """Add bytes and return the text that is final now."""
        self._held += self._decoder.decode(piece)
        return self._release()

    def close(self, *, cut: bool) -> Split:
        """End the stream and return the rest. `cut`: the answer is not complete, so a begun marker is left out."""
        self._held += self._decoder.decode(b"", final=True)
        split, rest = self._release(), self._held
        self._held = ""
        if cut and rest.strip():
            return split
        if self.where is Where.THINKING:
            split.reasoning += self._more_thinking(rest.rstrip())
        elif self.where is Where.CONTENT or self._is_start:
            split.content += rest
        else:
            split.content += rest.strip()
        return split

    def _release(self) -> Split:
        split = Split()
        while self._step(split):
            pass
        return split

    def _step(self, split: Split) -> bool:
        """Take the next part out of the held text. Return False if later bytes must decide."""
        if self.where is Where.LEAD:
            return self._header() if self._markers.channels else self._lead()
        if self.where is Where.THINKING:
            return self._think(split)
        return self._write(split)

    def _go(self, where: Where, rest: str) -> bool:
        """Go on at another place of the answer with the rest of the held text."""
        self.where, self._held = where, rest
        self._fresh = where is Where.THINKING
        self._is_start = self._is_start and where is Where.CONTENT
        self.decided = self.decided or where is not Where.LEAD
        return True

    def _lead(self) -> bool:
        """Decide what comes first: a marker, or content."""
        text, marks = self._held.lstrip(), self._markers
        hidden = (marks.close, *marks.around)
        found = _longest_at_start(text, (*marks.opens, *hidden))
        if found is None:
            return False
        if found in marks.opens:
            return self._go(Where.THINKING, text[len(found) :])
        if found:
            return self._go(Where.LEAD, text[len(found) :])
        return self._go(Where.CONTENT, self._held if self._is_start else text)

    def _header(self) -> bool:
        """Read the header of a message of a model with channels. Only the channel "final" is content."""
        text = self._held
        begun = text.lstrip()
        if not any(_begins_alike(begun, header) for header in _HEADERS):
            return self._go(Where.CONTENT, text)
        head, mark, rest = text.partition(_MESSAGE)
        if not mark:
            return False
        name = head.rpartition(_CHANNEL)[2].split() if _CHANNEL in head else [_FINAL]
        return self._go(Where.CONTENT if name[:1] == [_FINAL] else Where.THINKING, rest)

    def _think(self, split: Split) -> bool:
        if self._fresh:
            self._held = self._held.lstrip()
        ends = _BODY_ENDS if self._markers.channels else (self._markers.close,)
        at, found = _first(self._held, ends)
        split.reasoning += self._more_thinking(self._held[:at].rstrip())
        if found:  # space after thinking between two parts of the content belongs to the content
            is_inside = self._wrote and not self._markers.channels
            return self._go(Where.CONTENT if is_inside else Where.LEAD, self._after(at, found))
        self._held = self._held[len(self._held[:at].rstrip()) :]
        return False

    def _write(self, split: Split) -> bool:
        marks = self._markers
        if marks.channels:
            ends: tuple[str, ...] = _BODY_ENDS
        else:
            ends = (*marks.opens, marks.close, *marks.around) if self._anywhere else marks.around
        at, found = _first(self._held, ends)
        split.content += self._held[:at]
        self._wrote = self._wrote or bool(split.content)
        if found in marks.opens:
            return self._go(Where.THINKING, self._held[at + len(found) :])
        if found and marks.channels:
            return self._go(Where.LEAD, self._after(at, found))
        self._held = self._held[at + len(found) :]
        return bool(found)

    def _after(self, at: int, found: str) -> str:
        """Return the held text after a marker. The marker stays if it begins a header."""
        return self._held[at if found in (_START, _CHANNEL) else at + len(found) :]

    def _more_thinking(self, text: str) -> str:
        if not text:
            return ""
        apart = _BETWEEN if self._fresh and self._thought else ""
        self._fresh, self._thought = False, True
        return apart + text


def _begins_alike(text: str, other: str) -> bool:
    """Whether one of two texts begins with the other."""
    return text.startswith(other) or other.startswith(text)


def _longest_at_start(text: str, markers: tuple[str, ...]) -> str | None:
    """Return the longest marker that the text begins with, "" if there is none; None if more text must decide."""
    if any(len(text) < len(marker) and marker.startswith(text) for marker in markers):
        return None
    return max((marker for marker in markers if text.startswith(marker)), key=len, default="")


def _first(text: str, markers: tuple[str, ...]) -> tuple[int, str]:
    """Return where the first marker is, and the marker.

    If there is none, return where the start of one may be, or the length of the text, and "".
    """
    if not markers:
        return len(text), ""
    at = text.find("<") if all(marker[0] == "<" for marker in markers) else 0
    while 0 <= at < len(text):
        rest = text[at:]
        found = _longest_at_start(rest, markers)
        if found is None:
            return at, ""
        if found:
            return at, found
        at = min((next_at for marker in markers if (next_at := text.find(marker[0], at + 1)) > 0), default=len(text))
    return len(text), ""
