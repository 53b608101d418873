"""Control tokens in texts: user text is text, also where it spells a control token.

A message that spells a control token, or begins or ends with a part of one, gets a mark inside each such place before
the chat template is rendered. So in the rendered text only the template's own control tokens are whole. Messages
without such places are not changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from tourkit.errors import RequestError

_MARKS = (*range(0x1D300, 0x1D357), *range(0x20000, 0x2A6DF))  # symbols and rare characters, printable and without case
_MARKER = re.compile(r"<[|｜].+[|｜]>|<(start|end)_of_turn>|\[/?INST\]", re.DOTALL)


def is_marker(text: str) -> bool:
    """Whether an added token looks like a marker of turns. Some vocabularies do not call these control tokens."""
    return _MARKER.fullmatch(text) is not None


class ControlTokens:
    """The control tokens of one vocabulary. `ids`: the id of each by its text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = {text: id_ for text, id_ in ids.items() if text}
        self._pattern = _pattern(list(self.ids))
        self._firsts = sorted({text[0] for text in self.ids})
        self._heads = frozenset(text[:i] for text in self.ids for i in range(2, len(text)))
        self._tails = frozenset(text[i:] for text in self.ids for i in range(1, len(text) - 1))
        self._lasts = {text[-1] for text in self.ids}
        self.longest = max(map(len, self.ids), default=0)

    def are_in(self, text: str) -> bool:
        """Whether the text spells a control token, or begins or ends with two or more characters of one."""
        if any(first in text for first in self._firsts) and self._pattern.search(text):
            return True
        return bool(self._head(text) or self._tail(text))

    def count(self, text: str, enough: int) -> int:
        """Return how many control tokens the text spells; 0 if it cannot be more than `enough`."""
        if sum(map(text.count, self._firsts)) <= enough:
            return 0
        return sum(1 for _ in self._pattern.finditer(text))

    def marked(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        """Return the messages with a mark inside each control token that they spell, and the mark.

        The mark is "" if there is no such place; then the messages are as they were. Roles are not marked. Values may
        also be lists and objects of texts.
        """
        texts = [text for message in messages for key, value in message.items() if key != "role" for text in _in(value)]
        if not any(map(self.are_in, texts)):
            return messages, ""
        used = set().union(*texts)
        mark = next((char for char in map(chr, _MARKS) if char not in used), "")
        if not mark:
            raise RequestError("messages: too many different characters beside a control token", param="messages")
        return [
            {key: value if key == "role" else self._broken(value, mark) for key, value in message.items()}
            for message in messages
        ], mark

    def _broken(self, value: Any, mark: str) -> Any:
        """Return a value of a message with the mark in its texts, as `broken` does."""
        if isinstance(value, str):
            return self.broken(value, mark)
        if isinstance(value, list):
            return [self._broken(each, mark) for each in value]
        if isinstance(value, dict):
            return {self._broken(key, mark): self._broken(each, mark) for key, each in value.items()}
        return value

    def broken(self, text: str, mark: str) -> str:
        """Return the text with the mark after the first character of each place that could become a control token."""
        while self._pattern.search(text):  # a place can hide another that overlaps it
            text = self._pattern.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", text)
        while size := self._head(text):
            text = f"{text[: -size + 1]}{mark}{text[-size + 1 :]}"
        return f"{text[0]}{mark}{text[1:]}" if self._tail(text) else text

    def _head(self, text: str) -> int:
        """Return how many characters at the end are the beginning of a control token, the longest; 0 if below two."""
        end = text[-self.longest + 1 :] if self.longest > 1 else ""
        if any(first in end for first in self._firsts):
            for size in range(len(end), 1, -1):
                if end[-size:] in self._heads:
                    return size
        return 0

    def _tail(self, text: str) -> int:
        """Return how many characters at the beginning are the end of a control token; 0 if below two."""
        start = text[: self.longest - 1] if self.longest > 1 else ""
        if any(last in start for last in self._lasts):
            for size in range(len(start), 1, -1):
                if start[:size] in self._tails:
                    return size
        return 0

    def cut(self, text: str) -> list[str]:
        """Return the text in pieces, so that no piece spells one of these tokens."""
        if not any(first in text for first in self._firsts):
            return [text]
        at = [0, *(found.start() + 1 for found in self._pattern.finditer(text)), len(text)]
        return [text[start:end] for start, end in pairwise(at)]

    def parts(self, text: str, mark: str) -> list[str | int]:
        """Return a rendered text as texts and the ids of its control tokens, in order. Marks are removed."""
        found: list[str | int] = []
        at = 0
        for match in self._pattern.finditer(text):
            if match.start() > at:
                found.append(text[at : match.start()])
            found.append(self.ids[match[0]])
            at = match.end()
        if at < len(text):
            found.append(text[at:])
        return [part.replace(mark, "") if isinstance(part, str) else part for part in found] if mark else found


def _in(value: Any) -> Iterator[str]:
    """Yield the texts in a value: itself, or those in a list or an object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _in(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _in(each)


def _pattern(texts: list[str]) -> re.Pattern[str]:
    """Return a regular expression for any of the texts, the longest first."""
    try:
        return re.compile(_alternatives(texts) or "(?!)")
    except RecursionError:  # control tokens of hundreds of characters
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _alternatives(texts: list[str]) -> str:
    """Return the source of that expression, which decides by one character at a time.

    A plain list of alternatives would try all of them at each place: some vocabularies have thousands.
    """
    if not texts:
        return ""
    branches: dict[str, list[str]] = {}
    for text in texts:
        if text:
            branches.setdefault(text[0], []).append(text[1:])
    written = [re.escape(char) + _alternatives(rest) for char, rest in sorted(branches.items())]
    joined = written[0] if len(written) == 1 else f"(?:{'|'.join(written)})"
    return f"(?:{joined})?" if "" in texts and written else joined if written else ""
