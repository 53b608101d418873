"""The budget of one render of a chat template: steps, characters and CPU time, and the bounds of single operations.

A template comes with downloaded weights. Each operation that can make something large is checked before it runs, so a
template can neither hang nor take memory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sized
from string import Formatter
from typing import Any, cast

from jinja2.utils import Namespace

LARGEST = 1 << 22  # characters of one text, beyond a multiple of the characters of the messages
_STEPS = 200_000  # iterations, calls and operators of a render, and more for the messages
_STEPS_A_MESSAGE = 1_000
_STEPS_A_CHARACTER = 0.25
_COPIES = 16  # a text may be this many times as long as all messages together
_CHARACTERS = 1 << 25  # characters of all texts that a render makes, beyond four of the longest
_GROWN = 1 << 30
_CPU = 10.0  # seconds of CPU time, and more for each million characters of the messages
_CPU_A_MILLION = 2.0
_LOOK = 64  # steps between two looks at the clock
_BITS = 4096  # of a whole number
_NUMBER = 10_000  # the largest count, width or precision that a function gets
_DIGITS = 4  # of a width in a format
_ITEMS = 1_000_000  # items of a list
_WORK = 1_000_000_000  # nanoseconds of a single operation, about
POINTER = 8  # bytes of an item that is there already
_ITEM = 50  # bytes of a short text or a number in a list
_DEPTH = 200
_FEW = 8
_ITEMS_A_STEP = 8
_PLAIN = frozenset({int, float, bool, type(None)})
PLAIN_KINDS = _PLAIN | {str}
_PLAIN_SIZE = 8  # characters of a number, about
_CONTAINERS: tuple[type, ...] = (list, tuple, dict, set, frozenset, *map(type, ({}.keys(), {}.values(), {}.items())))
_PLACES = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?")


class OverBudget(Exception):
    """The template does more work than a chat needs."""


class Budget:
    """What is left for one render. `messages` and `characters`: how many the render gets."""

    def __init__(self, messages: int = 0, characters: int = 0) -> None:
        self._steps = _STEPS + _STEPS_A_MESSAGE * messages + int(_STEPS_A_CHARACTER * characters)
        self._look_at = self._steps
        self.largest = LARGEST + _COPIES * characters
        grown = min(_GROWN, messages * characters)  # a template may add message after message to one text
        self._characters = _CHARACTERS + 4 * self.largest + grown
        self._cpu = _CPU + _CPU_A_MILLION * characters / 1e6
        self._ends = 0.0  # of the thread's CPU time; 0 until the first look
        self._weights: dict[int, tuple[object, int, int]] = {}

    def step(self, steps: int = 1) -> None:
        """Count an iteration, a call or an operator. Raises OverBudget."""
        self._steps -= steps
        if self._steps <= self._look_at:
            self._look()

    def _look(self) -> None:
        if self._steps <= 0:
            raise OverBudget("too many steps")
        self._look_at = self._steps - _LOOK
        now = time.thread_time()
        if not self._ends:
            self._ends = now + self._cpu
        elif now > self._ends:
            raise OverBudget("too much time")

    def make(self, size: int) -> None:
        """Count a text of `size` characters, or a list of as many items, before it is made. Raises OverBudget."""
        self._steps -= 1
        if self._steps <= self._look_at:
            self._look()
        self._characters -= size
        if size > self.largest or self._characters < 0:
            raise OverBudget("too much text")

    def make_list(self, items: int) -> None:
        """Count a list of new objects before it is made. Raises OverBudget."""
        self.items(items)
        self.make(items * _ITEM)

    def weigh(self, value: Any) -> int:
        """Return about how many characters a value has as text, with all that it contains. Raises OverBudget."""
        if type(value) is str:
            return len(value)
        return self._weigh(value)[0]

    def _weigh(self, value: Any) -> tuple[int, int]:
        """Return the weight and how deep lists lie in each other: some of Python's functions end the process then."""
        if isinstance(value, str | bytes):
            return len(value), 0
        if type(value) in _PLAIN or not isinstance(value, _CONTAINERS):
            return _PLAIN_SIZE, 0
        known = self._weights.get(id(value))
        if known is None:
            items = [*value, *value.values()] if isinstance(value, dict) else list(cast("Iterable[Any]", value))
            self.step(1 + len(items) // _ITEMS_A_STEP)
            if len(items) <= _FEW and all(type(item) is str or type(item) in _PLAIN for item in items):
                return _PLAIN_SIZE + sum(self.weigh(item) + 2 for item in items), 1  # not worth keeping
            self._weights[id(value)] = (value, _PLAIN_SIZE, 1)  # a list that contains itself is written as [...]
            found = [self._weigh_item(item) for item in items]
            weight = _PLAIN_SIZE + sum(weight + 2 for weight, _ in found)
            depth = 1 + max((depth for _, depth in found), default=0)
            known = self._weights[id(value)] = (value, weight, depth)  # it keeps the value: its id stays its own
        if known[1] > self.largest:
            raise OverBudget("too much text")
        if known[2] > _DEPTH:
            raise OverBudget("lists too deep in each other")
        return known[1:]

    def _weigh_item(self, item: Any) -> tuple[int, int]:
        if isinstance(item, Namespace):  # it can change after it was weighed
            raise OverBudget("a namespace inside a list")
        return self._weigh(item)

    def multiply(self, left: Any, right: Any) -> None:
        """Check `left * right`."""
        count, value = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(value, int) and isinstance(count, int):
            if value.bit_length() + count.bit_length() > _BITS:
                raise OverBudget("a number with too many digits")
        elif isinstance(value, Sized) and isinstance(count, int) and count > 0:
            self.make(len(value) * count)
            if not isinstance(value, str | bytes):
                self.items(len(value) * count)
                self.make(self.weigh(value) * count)

    def items(self, count: int) -> None:
        """Check the length of a list."""
        if count > _ITEMS:
            raise OverBudget("too long a list")

    def power(self, left: Any, right: Any) -> None:
        """Check `left ** right`."""
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _BITS:
            raise OverBudget("a number with too many digits")

    def add(self, left: Any, right: Any) -> None:
        """Check `left + right`."""
        if isinstance(left, Sized) and isinstance(right, Sized):
            size = len(left) + len(right)
            self.make(size)
            if not isinstance(left, str):
                self.items(size)
                self.make(size * POINTER)

    def places(self, left: Any, values: Any) -> None:
        """Check `left % values` of a text."""
        if not isinstance(left, str | bytes):
            return
        if isinstance(left, bytes):
            raise OverBudget("a format of bytes")
        if isinstance(values, Namespace):
            raise OverBudget("a namespace as text")
        widest = 0
        for width in (width for found in _PLACES.finditer(left) for width in found.groups() if width is not None):
            if width == "*" or len(width) > _DIGITS:
                raise OverBudget("too wide a place in a text")
            widest = max(widest, int(width))
        self.make(len(left) + left.count("%") * (self.weigh(values) + widest))

    def format(self, pattern: str, values: Any) -> None:
        """Check `pattern.format(*values)`."""
        fields = list(Formatter().parse(pattern))
        widths = [width for _, _, spec, _ in fields for width in re.findall(r"\d+", spec or "")]
        if any("{" in (spec or "") for _, _, spec, _ in fields) or any(len(width) > _DIGITS for width in widths):
            raise OverBudget("too wide a place in a text")
        self.make(len(pattern) + len(fields) * (self.weigh(values) + max(map(int, widths), default=0)))

    def number(self, value: Any) -> None:
        """Check a count, width or precision that a function gets."""
        if isinstance(value, int) and abs(value) > _NUMBER:
            raise OverBudget("too large a number for a function")

    def work(self, units: int) -> None:
        """Check an operation that takes about `units` nanoseconds. Raises OverBudget."""
        self.step()
        if units > _WORK:
            raise OverBudget("too much work in one function")
