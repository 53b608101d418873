"""Patterns of JSON Schemas, compiled by RE2, whose search takes time linear to the text.

RE2 reads no look-around, no back-references and no repeats above 1,000. Python's `re` searches for those: it may take
any amount of time. So only a process that can be killed may search for a pattern that is not `linear`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tourkit.grammar.regex_syntax import re2_spelling

_CACHED = 128  # patterns; RE2 uses up to 8 MiB for each


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern. `search` returns whether a text has a match. `linear`: in time linear to the text."""

    search: Callable[[str], bool]
    linear: bool


@lru_cache(maxsize=_CACHED)
def compiled(pattern: str) -> Pattern | None:
    """Compile a regular expression; return None if neither RE2 nor Python can read it."""
    found = _by_re2(pattern)
    if found is not None:
        return Pattern(lambda text: found.search(text.encode("utf-8", "replace")) is not None, linear=True)
    try:
        slow = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
    return Pattern(lambda text: slow.search(text) is not None, linear=False)


@lru_cache(maxsize=4096)
def is_linear(pattern: str) -> bool:
    """Return whether RE2 can read this pattern."""
    return _by_re2(pattern) is not None


def _by_re2(pattern: str) -> Any:
    """Return RE2's form of a pattern, None if it cannot read it."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    try:
        return re2.compile(re2_spelling(pattern), options)
    except (re2.error, UnicodeEncodeError):  # a lone surrogate has no UTF-8
        return None
