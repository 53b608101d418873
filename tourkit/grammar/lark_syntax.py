"""Reads a Lark or GBNF grammar piece by piece: its rules, how deep they nest, and how large its terminals are.

Every function takes time linear to the length of the grammar. None of them checks that the grammar is well formed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tourkit.grammar.regex_syntax import HUGE, most_of, size

_PIECE = re.compile(
    r"""
      (?P<comment>//[^\n]*)
    | (?P<string>"(?:\\.|[^"\\\n])*"?)
    | (?P<regex>/(?:\\.|[^/\\\n])*/?)
    | (?P<embedded>%(?:json|regex|llguidance)\b)
    | ^[ \t]*[?!]?(?P<defined>[A-Za-z_][\w-]*)(?:\.-?\d{1,9})?(?:\[[^\]\n]{0,500}\])?(?:::[\w#()]{1,100})?
        [ \t]*(?:::=|:)
    | (?P<named>[A-Za-z_][\w-]*)
    | (?P<repeat>\{\d*(?:,\d*)?\}|~[ ]*\d+(?:[ ]*\.\.[ ]*\d+)?)
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<other>[^\S\n]+|\d+|.)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


@dataclass(slots=True)
class _Definition:
    """A rule or a terminal. `size`: characters of its own texts with repeats written out. `uses`: [name, how often]."""

    size: int = 0
    uses: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measures:
    """`rules`: how many rules and terminals. `chain`: the most that refer to one another in a row.

    `nesting`: of groups. `largest`: characters of the largest text or terminal with repeats written out.
    """

    rules: int
    chain: int
    nesting: int
    largest: int


def measures(source: str) -> Measures:
    """Return the measures of a grammar."""
    found, nesting = _definitions(source)
    sizes = _terminal_sizes(found)
    largest = max((sizes.get(name, each.size) for name, each in found.items()), default=0)
    return Measures(len(found), _longest_chain(found), nesting, largest)


def embedded(source: str) -> Iterator[Any]:
    """Yield the JSON values behind each `%json`, `%regex` and `%llguidance` of a grammar; None if it is no JSON."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"%(?:json|regex|llguidance)\b\s*", source):
        try:
            yield decoder.raw_decode(source, found.end())[0]
        except (ValueError, RecursionError):
            yield None


def _definitions(source: str) -> tuple[dict[str, _Definition], int]:
    """Return the rules and terminals by name, and how deep groups nest."""
    found: dict[str, _Definition] = {}
    current = _Definition()
    groups: list[tuple[int, int]] = []  # where each open group begins: the size and the number of uses before it
    last = (0, 0)  # where the last part begins
    nesting = 0
    for piece in _PIECE.finditer(source):
        kind, text = piece.lastgroup, piece[0]
        if kind == "defined":
            current = found.setdefault(piece["defined"], _Definition())
            groups, last = [], (current.size, len(current.uses))
        elif kind == "repeat":
            _repeat(current, last, most_of(text))
        elif kind == "open":
            groups.append((current.size, len(current.uses)))
            nesting = max(nesting, len(groups))
        elif kind == "close":
            last = groups.pop() if groups else last
        elif kind in ("string", "regex", "named"):
            last = (current.size, len(current.uses))
            if kind == "named":
                current.uses.append([text, 1])
            else:
                current.size = min(
                    HUGE, current.size + (size(text.strip("/"))[0] if kind == "regex" else len(text) - 2)
                )
    return found, nesting


def _repeat(current: _Definition, last: tuple[int, int], times: int) -> None:
    """Multiply the last part of a definition."""
    if times < 2:
        return
    start, first = last
    current.size = min(HUGE, start + (current.size - start) * times)
    for use in current.uses[first:]:
        use[1] = min(HUGE, use[1] * times)


def _longest_chain(found: dict[str, _Definition]) -> int:
    """Return how deep a compiler goes that follows each rule from the first place that names it."""
    seen: set[str] = set()
    deepest = 0
    for root in found:
        stack = [iter((root,))]
        while stack:
            name = next(stack[-1], None)
            if name is None:
                stack.pop()
            elif name in found and name not in seen:
                seen.add(name)
                deepest = max(deepest, len(stack))
                stack.append(iter([str(use[0]) for use in found[name].uses]))
    return deepest


def _terminal_sizes(found: dict[str, _Definition]) -> dict[str, int]:
    """Return the size of each terminal with the terminals that it names written out."""
    uses = {name: _terminals_of(each, found) for name, each in found.items() if name[:1].isupper()}
    sizes: dict[str, int] = {}
    opened: set[str] = set()
    for root in uses:
        stack = [root]
        while stack:
            name = stack[-1]
            if name not in opened:
                opened.add(name)
                stack += [inner for inner in uses[name] if inner not in opened]
                continue
            stack.pop()
            if name not in sizes:  # a terminal that names itself counts for nothing there
                inside = sum(sizes.get(inner, 0) * times for inner, times in uses[name].items())
                sizes[name] = min(HUGE, found[name].size + inside)
    return sizes


def _terminals_of(definition: _Definition, found: dict[str, _Definition]) -> dict[str, int]:
    """Return how often a definition uses each terminal."""
    used: dict[str, int] = {}
    for name, times in definition.uses:
        if name in found and name[:1].isupper():
            used[name] = min(HUGE, used.get(name, 0) + times)
    return used
