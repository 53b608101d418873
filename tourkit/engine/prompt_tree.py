"""Prompts as a tree of runs of tokens. Prompts that begin alike share the runs of their beginning. Pure: no model.

A run has the tokens [start, end) of a prompt. Its parent has the tokens before `start`, and perhaps other tokens after
`start`: then another prompt goes on there. So no run is ever split, and the KV cells of a run are one piece of bytes.

A run whose cells are nowhere is only a memory of a prompt. It costs four bytes a token, and it tells how long ago the
same tokens were asked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from tourkit.engine.placement import common_prefix


class Disk(Enum):
    """Whether the disk has the cells of a run. QUEUED: they are to be written."""

    NO = auto()
    QUEUED = auto()
    YES = auto()


@dataclass(slots=True, eq=False)
class Run:
    """A run of tokens and where its KV cells are.

    `name`: a digest of all tokens from 0 to `end`, and of where the runs begin. `cells`: the bytes of the KV cells, if
    RAM has them. `n_bytes`: their size, 0 if the cells were never read. `last` and `interval`: see retention.py.

    A checkpoint (checkpoints.py) is a run outside the tree: `tokens` are all tokens before it, `start` is their number,
    and `cells` are the bytes of the fixed state.
    """

    parent: Run | None
    start: int
    tokens: array[int]
    name: bytes
    cells: bytearray | None = None
    disk: Disk = Disk.NO
    n_bytes: int = 0
    last: int = 0
    interval: int | None = None
    children: dict[tuple[int, int], Run] = field(default_factory=dict)  # by `start` and first token

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def is_state(self) -> bool:
        """Whether this is a checkpoint. A run in the tree that has no parent starts at 0."""
        return self.parent is None and self.start > 0

    @property
    def is_kept(self) -> bool:
        """Whether RAM or disk has the cells."""
        return self.cells is not None or self.disk is Disk.YES


@dataclass(frozen=True, slots=True)
class Step:
    """A run on the way through the tree, and the position up to which it agrees with the tokens looked for."""

    run: Run
    end: int


def run_name(parent: bytes, start: int, tokens: array[int]) -> bytes:
    """Return the name of a run: 16 bytes. `parent`: the name of its parent, b"" for none."""
    return hashlib.blake2b(parent + start.to_bytes(8, "little") + tokens.tobytes(), digest_size=16).digest()


class PromptTree:
    """All runs. `longest`: most tokens in a run."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._root = Run(None, 0, array("i"), b"")
        self._runs: dict[bytes, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, name: bytes) -> Run | None:
        return self._runs.get(name)

    def find(self, tokens: list[int]) -> list[Step]:
        """Return the runs that hold a beginning of `tokens`, from position 0 on. Each agrees in at least one token."""
        steps: list[Step] = []
        run, at = self._root, 0
        while at < len(tokens):
            child = run.children.get((at, tokens[at]))
            if child is None:
                break
            # The part of the tokens is a copy: a prompt has few runs, and comparing slices is fast.
            at += common_prefix(child.tokens.tolist(), tokens[at : at + len(child.tokens)], len(child.tokens))
            steps.append(Step(child, at))
            run = child
        return steps

    def insert(self, tokens: list[int], now: int) -> list[Run]:
        """Return the runs of `tokens`, the missing ones made at time `now`. Together they hold exactly these tokens."""
        steps = self.find(tokens)
        if steps and steps[-1].end < steps[-1].run.end and not steps[-1].run.is_kept:
            steps[-1] = self._shorten(steps[-1])
        runs = [step.run for step in steps]
        at = steps[-1].end if steps else 0
        while at < len(tokens):
            run = self.add(runs[-1] if runs else None, at, array("i", tokens[at : at + self._longest]))
            run.last = now
            runs.append(run)
            at = run.end
        return runs

    def add(self, parent: Run | None, start: int, tokens: array[int]) -> Run:
        """Add a run that no other run of this parent begins like."""
        run = Run(parent, start, tokens, run_name(parent.name if parent else b"", start, tokens))
        (parent or self._root).children[start, tokens[0]] = run
        self._runs[run.name] = run
        return run

    def remove(self, run: Run) -> None:
        """Forget a run and every run below it."""
        below = [run]
        while below:
            each = below.pop()
            below += each.children.values()
            self._runs.pop(each.name, None)
        (run.parent or self._root).children.pop((run.start, run.tokens[0]), None)

    def _shorten(self, step: Step) -> Step:
        """Replace a run without cells by one that ends where the tokens begin to differ. No run below it has cells."""
        old = step.run
        self.remove(old)
        new = self.add(old.parent, old.start, old.tokens[: step.end - old.start])
        new.last, new.interval = old.last, old.interval
        return Step(new, step.end)
