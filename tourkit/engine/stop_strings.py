"""Turn token bytes into text that may be sent: whole UTF-8 characters, and no possible start of a stop string."""

from __future__ import annotations

import codecs


class TextStream:
    """Takes token bytes and returns text as soon as it is final.

    Text that could be the start of a stop string is held back until later bytes decide. A stop string itself is never
    returned. Invalid UTF-8 becomes U+FFFD, as in the OpenAI API.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.found = ""  # the stop string that ended the text; empty if none did

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return bool(self.found)

    def feed(self, piece: bytes) -> str:
        """Add bytes and return the text that is final now; empty after a stop string."""
        return self.feed_text(self._decoder.decode(piece))

    def feed_text(self, text: str) -> str:
        """Add text and return the text that is final now; empty after a stop string."""
        if self.stopped:
            return ""
        self._held += text
        return self._release()

    def ignore_stops(self) -> None:
        """Look for stop strings no longer, because the rest of the text is a call of a tool."""
        self._stop = ()

    def close(self) -> str:
        """End the stream and return the rest of the text."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        text = self._release()
        text, self._held = text + self._held, ""
        return text

    def _release(self) -> str:
        held = self._held
        if not self._stop:
            self._held = ""
            return held
        hits = [(at, stop) for stop in self._stop if (at := held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits)
            self._held = ""
            return held[:at]
        keep = max(_overlap(held, stop) for stop in self._stop)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`, shorter than `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
