"""A Runner that works without a model: the next token is a function of the tokens before it.

Tokens are bytes; 256 ends the text. It records its KV cells exactly: the token at each position of each slot, and cells
that slots share. It refuses what llama.cpp would refuse. A test can make it fail or give it few cells.

As a hybrid model (`checkpoints`) each slot has a fixed state besides: the tokens that it stands for. The next token is
a function of the state, and the model refuses to decode unless cells and state agree.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tourkit.engine.engine import BatchEngine
from tourkit.generation import Delta, Finish, SamplingParams

EOG = 256


def hashed(history: tuple[int, ...]) -> int:
    """Return a lower-case letter that depends on the whole history; sometimes the end token."""
    digest = hashlib.sha256(bytes(token % 256 for token in history)).digest()
    return EOG if digest[0] < 8 else 97 + digest[1] % 26


class FakeSampler:
    open = 0  # count of open samplers, to check that each is closed

    def __init__(self, runner: FakeRunner) -> None:
        self._runner = runner
        self._closed = False
        FakeSampler.open += 1

    def sample(self, row: int) -> int:
        assert not self._closed, "sampled after close"
        return int(self._runner.logits(row).argmax())

    def propose(self, row: int, allows: Callable[[int], bool]) -> int | None:
        assert not self._closed, "proposed after close"
        token = int(self._runner.logits(row).argmax())
        return token if allows(token) else None

    def accept(self, token: int) -> None:
        assert not self._closed, "accepted after close"

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            FakeSampler.open -= 1


class FakeRunner:
    def __init__(
        self,
        *,
        slots: int = 4,
        n_ctx: int = 4096,
        n_batch: int = 64,
        next_token: Callable[[tuple[int, ...]], int] = hashed,
        prompts_apart: bool = False,
        fail_at_step: int | None = None,
        gate: threading.Event | None = None,
        partial_kv: bool = True,
        checkpoints: bool = False,
        state_bytes: int = 0,
    ) -> None:
        self.n_slots, self.n_ctx, self.n_batch, self.n_vocab = slots, n_ctx, n_batch, 257
        self.eog = frozenset({EOG})
        self.partial_kv = self.shares_kv = partial_kv and not checkpoints
        self.one_pool = partial_kv
        self.checkpoints = checkpoints
        self._padding = bytes(state_bytes)
        self._states: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self.prompts_apart = prompts_apart
        self.longest_run = 100 if partial_kv else 0
        self._next_token = next_token
        self._fail_at_step = fail_at_step
        self._gate = gate
        self._cells: dict[int, list[object]] = {slot: [] for slot in range(slots)}  # shared: the same object
        self._tokens: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self._batch: list[tuple[int, int, int, bool]] = []
        self._rows: dict[int, np.ndarray] = {}
        self.steps = 0
        self.batches: list[list[tuple[int, int, int, bool]]] = []
        self.closed = False

    def add(self, token: int, pos: int, slot: int, *, logits: bool) -> int | None:
        assert len(self._batch) < self.n_batch, "batch overflow"
        assert 0 <= slot < self.n_slots
        expected = len(self._tokens[slot]) + sum(1 for _, _, other, _ in self._batch if other == slot)
        assert pos == expected, f"slot {slot}: position {pos}, the next free one is {expected}"
        self._batch.append((token, pos, slot, logits))
        return len(self._batch) - 1 if logits else None

    def decode(self) -> bool:
        if self._gate is not None:
            self._gate.wait()
        batch, self._batch = self._batch, []
        self.steps += 1
        if self.steps == self._fail_at_step:
            raise RuntimeError("the model broke")
        if not self._has_room(len(batch)):
            return False
        self.batches.append(batch)
        self._rows = {}
        for row, (token, _, slot, wants_logits) in enumerate(batch):
            assert not self.checkpoints or self._states[slot] == self._tokens[slot], "cells without their state"
            self._tokens[slot].append(token)
            self._states[slot].append(token)
            self._cells[slot].append(object())
            if wants_logits:
                logits = np.zeros(self.n_vocab, dtype=np.float32)
                history = self._states[slot] if self.checkpoints else self._tokens[slot]
                logits[self._next_token(tuple(history))] = 1
                self._rows[row] = logits
        return True

    def _has_room(self, count: int) -> bool:
        """Whether `count` more cells fit. Cells that slots share count once."""
        if sum(map(len, self._cells.values())) + count <= self.n_ctx:  # quick, and mostly enough
            return True
        return len({id(cell) for cells in self._cells.values() for cell in cells}) + count <= self.n_ctx

    def logits(self, row: int) -> np.ndarray:
        return self._rows[row]

    def sampler(self, params: SamplingParams, seed: int, *, constrained: bool = False) -> FakeSampler:
        return FakeSampler(self)

    def share(self, source: int, target: int, length: int) -> bool:
        assert self.partial_kv or self.checkpoints, "shares cells of a model that keeps all or none"
        assert not self._tokens[target], "share into a slot that is not empty"
        assert length <= len(self._tokens[source]), "shares cells that are not there"
        self._tokens[target] = self._tokens[source][:length]
        self._cells[target] = self._cells[source][:length]
        self._states[target] = list(self._states[source])
        return True

    def truncate(self, slot: int, length: int) -> bool:
        can_cut = self.partial_kv or length >= len(self._states[slot] if self.checkpoints else self._tokens[slot])
        if not can_cut:
            length = 0
        for part in (self._tokens[slot], self._cells[slot], self._states[slot]):
            del part[length:]
        return can_cut or not length

    def read_cells(self, slot: int, start: int, end: int) -> bytearray:
        assert 0 <= start < end <= len(self._tokens[slot]), "reads cells that are not there"
        assert end - start <= self.longest_run
        return bytearray(array("i", [start, *self._tokens[slot][start:end]]).tobytes())

    def write_cells(self, slot: int, data: bytearray, start: int, end: int) -> bool:
        begin, *tokens = array("i", bytes(data)).tolist()
        assert len(self._tokens[slot]) == start, "writes cells that do not follow the slot's"
        assert begin <= start < end <= begin + len(tokens), "writes cells that are not in the data"
        if not self._has_room(len(tokens)):
            return False
        self._tokens[slot] += tokens[start - begin : end - begin]
        self._cells[slot] += [object() for _ in range(end - start)]
        self._states[slot] = []
        return True

    def read_state(self, slot: int) -> bytearray:
        assert self._states[slot], "reads a state that is not there"
        return bytearray(array("i", [len(self._states[slot]), *self._states[slot]]).tobytes() + self._padding)

    def write_state(self, slot: int, data: bytearray) -> bool:
        length, *tokens = array("i", bytes(data[: len(data) - len(self._padding)])).tolist()
        assert tokens == self._tokens[slot][:length], "writes the state of other tokens"
        self._states[slot] = tokens
        return True

    def tokens(self, slot: int) -> list[int]:
        """Return what a slot holds, for the tests."""
        return list(self._tokens[slot])

    def piece(self, token: int) -> bytes:
        return b"" if token == EOG else bytes([token])

    def close(self) -> None:
        self.closed = True


@dataclass
class Collected:
    """Collects the deltas of one submission until each of its `n` sequences has ended."""

    n: int
    deltas: queue.SimpleQueue[Delta] = field(default_factory=queue.SimpleQueue)

    def wait(self) -> list[tuple[str, Finish]]:
        texts, endings = [""] * self.n, [[] for _ in range(self.n)]
        while not all(endings):
            delta = self.deltas.get(timeout=60)
            texts[delta.index] += delta.text
            if delta.finish:
                endings[delta.index].append(delta.finish)
        assert all(len(ending) == 1 for ending in endings)
        return [(text, ending[0]) for text, ending in zip(texts, endings, strict=True)]


def submit(
    engine: BatchEngine, prompt: str, *, n: int = 1, max_tokens: int = 40, stop: tuple[str, ...] = ()
) -> Collected:
    collected = Collected(n)
    params = SamplingParams(temperature=0, stop=stop)
    engine.submit(list(prompt.encode()), params, max_tokens, collected.deltas.put, [None] * n)
    return collected


def alone(prompt: str, max_tokens: int = 40, model: Callable[[tuple[int, ...]], int] = hashed) -> tuple[str, Finish]:
    """Return the text of the fake model, computed without an engine."""
    tokens = list(prompt.encode())
    text = ""
    while len(text) < max_tokens:
        token = model(tuple(tokens))
        if token == EOG:
            return text, Finish.STOP
        tokens.append(token)
        text += chr(token)
    return text, Finish.LENGTH
