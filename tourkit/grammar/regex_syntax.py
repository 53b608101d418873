"""Reads a regular expression piece by piece: how large it is with its repeats written out, and RE2's spelling of it.

Every function takes time linear to the length of the pattern. None of them checks that the pattern is well formed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

HUGE = 10**9  # stands for any size from here on

_PIECE = re.compile(
    r"""
      (?P<escape>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\u\{[0-9a-fA-F]{1,8}\}
        |\\[xpP]\{[^}]{0,100}\}|\\.)
    | (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])
    | (?P<unclosed>\[.*)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<or>\|)
    | (?P<repeat>\{\d*(?:,\d*)?\}|[*+?])
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# Unicode's white space. RE2's own \s has only that of ASCII; llguidance's has all.
_SPACE = "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
_NOT_SPACE = (
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}!-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
)
_IN_SET = {"\\s": _SPACE, "\\S": _NOT_SPACE, "\\b": "\\x08"}
_OUTSIDE = {"\\s": f"[{_SPACE}]", "\\S": f"[{_NOT_SPACE}]", "\\Z": "\\z"}


def size(pattern: str) -> tuple[int, int]:
    """Return how many characters the pattern has when its repeats are written out, and how deep its groups nest."""
    groups = [[0, 0]]  # of each open group: the size before its last part, and the size of its last part
    deepest = 0
    for kind, text in _pieces(pattern):
        group = groups[-1]
        if kind == "open":
            groups.append([0, 0])
            deepest = max(deepest, len(groups) - 1)
        elif kind == "close" and len(groups) > 1:
            inner = max(1, sum(groups.pop()))
            groups[-1] = [sum(groups[-1]), inner]
        elif kind == "repeat":
            group[1] = min(HUGE, max(1, group[1]) * most_of(text))
        else:
            groups[-1] = [min(HUGE, sum(group)), 0 if kind == "or" else 1]
    return min(HUGE, sum(map(sum, groups))), deepest


def re2_spelling(pattern: str) -> str:
    """Return the pattern as RE2 spells it: escapes of characters, white space, the end of the text, `{,n}`."""
    return "".join(_spelled(kind, text) for kind, text in _pieces(pattern))


def _pieces(pattern: str) -> Iterator[tuple[str, str]]:
    for piece in _PIECE.finditer(pattern):
        yield piece.lastgroup or "other", piece[0]


def most_of(repeat: str) -> int:
    """Return the largest number in a repeat; 1 if it has none."""
    numbers = re.findall(r"\d+", repeat)
    return max((int(number) if len(number) < 10 else HUGE for number in numbers), default=1) or 1


def _spelled(kind: str, text: str) -> str:
    if kind == "escape":
        return _OUTSIDE.get(text) or _escape(text)
    if kind == "set":
        return re.sub(r"\\u\{[0-9a-fA-F]{1,8}\}|\\u[0-9a-fA-F]{4}|\\.", _member, text, flags=re.DOTALL)
    return text.replace("{,", "{0,") if kind == "repeat" else text


def _member(escape: re.Match[str]) -> str:
    return _IN_SET.get(escape[0]) or _escape(escape[0])


def _escape(text: str) -> str:
    """Return an escape of one character as RE2 spells it; any other escape unchanged."""
    codes = re.findall(r"\\u\{?([0-9a-fA-F]+)\}?", text)
    if len(codes) == 2:  # a character above U+FFFF, written as two surrogates
        high, low = (int(code, 16) for code in codes)
        return f"\\x{{{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):x}}}"
    if codes:
        return f"\\x{{{codes[0]}}}"
    letter = text[1:]
    return letter if letter == "_" or not letter.isascii() else text
