"""A SlotRunner with a forward pass that needs no library: its counts of cells, and our engine if slots cannot share."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tourkit.backends.control_tokens import ControlTokens
from tourkit.backends.slot_runner import Part, SlotRunner
from tourkit.engine.engine import BatchEngine
from tourkit.errors import EngineError
from tourkit.generation import Delta, SamplingParams

N_VOCAB, N_KNOWN, END = 40, 33, 32


def after(history: list[int]) -> int:
    """Return the next token: a function of all tokens before it."""
    digest = hashlib.sha256(bytes(history)).digest()
    return END if digest[0] < 6 else digest[1] % END


class HistoryRunner(SlotRunner):
    """A SlotRunner whose cells are the tokens. The padding of its logits always has the highest value."""

    def __init__(self, *, slots: int = 3, shares: bool = True, partial: bool = True, n_batch: int = 16) -> None:
        vocabulary: Any = SimpleNamespace(
            n_vocab=N_VOCAB,
            n_known=N_KNOWN,
            eog=frozenset({END}),
            special_tokens={},
            control_tokens=ControlTokens({}),
            piece=lambda t: bytes([97 + t % 26]),
        )
        super().__init__(vocabulary, slots=slots, context=128, n_batch=n_batch, partial_kv=partial, shares_kv=shares)
        self.cells: list[list[int]] = [[] for _ in range(slots)]
        self.room = True
        self.computed = 0

    def forward(self, parts: list[Part]) -> np.ndarray | None:
        if not self.room:
            return None
        rows = []
        for part in parts:
            assert part.past == len(self.cells[part.slot]), "cells and books differ"
            self.cells[part.slot] += part.tokens
            self.computed += len(part.tokens)
            for at in part.wanted:
                row = np.zeros(N_VOCAB, dtype=np.float32)
                row[after(self.cells[part.slot][: part.past + at + 1])] = 1
                row[N_KNOWN:] = 9
                rows.append(row)
        return np.array(rows, dtype=np.float32).reshape(-1, N_VOCAB)

    def copy_cells(self, source: int, target: int, length: int) -> None:
        assert self.shares_kv, "shares cells that cannot be shared"
        self.cells[target] = self.cells[source][:length]

    def drop_cells(self, slot: int, length: int) -> None:
        assert length == 0 or self.partial_kv
        del self.cells[slot][length:]

    def close(self) -> None:
        """Nothing to free."""


def put(runner: HistoryRunner, slot: int, tokens: list[int], past: int = 0) -> int:
    """Add tokens to the batch, with logits for the last one. Return the row of these logits."""
    rows = [runner.add(t, past + i, slot, logits=i == len(tokens) - 1) for i, t in enumerate(tokens)]
    assert rows[-1] is not None
    return rows[-1]


def test_rows_belong_to_the_tokens_they_were_asked_for() -> None:
    runner = HistoryRunner()
    first, second = put(runner, 2, [1, 2, 3]), put(runner, 0, [4, 5])

    assert runner.decode()
    assert int(runner.logits(first).argmax()) == after([1, 2, 3])
    assert int(runner.logits(second).argmax()) == after([4, 5])
    with pytest.raises(EngineError, match="row 2"):
        runner.logits(2)


@pytest.mark.parametrize(
    ("token", "pos", "slot"), [(N_VOCAB, 0, 0), (-1, 0, 0), (1, 0, 3), (1, 0, -1), (1, 1, 0), (1, 128, 0)]
)
def test_what_does_not_follow_the_cells_is_refused(token: int, pos: int, slot: int) -> None:
    with pytest.raises(EngineError):
        HistoryRunner().add(token, pos, slot, logits=False)


def test_a_batch_is_never_filled_past_its_end_nor_with_one_slot_twice() -> None:
    full, mixed = HistoryRunner(n_batch=4), HistoryRunner()
    put(full, 0, [1, 2, 3, 4])
    put(mixed, 0, [1])
    put(mixed, 1, [1])

    with pytest.raises(EngineError, match="batch holds 4"):
        put(full, 1, [5])
    with pytest.raises(EngineError, match="twice"):
        mixed.add(2, 1, 0, logits=False)


def test_no_room_is_an_answer_and_leaves_the_books_as_they_were() -> None:
    runner = HistoryRunner()
    put(runner, 0, [1, 2])
    assert runner.decode()
    runner.room = False
    put(runner, 0, [3], past=2)

    assert not runner.decode()
    runner.room = True
    row = put(runner, 0, [4], past=2)
    assert runner.decode()
    assert int(runner.logits(row).argmax()) == after([1, 2, 4])


def test_cells_can_be_kept_in_part_and_shared() -> None:
    runner = HistoryRunner()
    put(runner, 0, [1, 2, 3])
    assert runner.decode()

    assert runner.truncate(0, 2)
    runner.share(0, 1, 1)
    rows = put(runner, 0, [7], past=2), put(runner, 1, [8], past=1)

    assert runner.decode()
    assert [int(runner.logits(row).argmax()) for row in rows] == [after([1, 2, 7]), after([1, 8])]


def test_a_model_that_keeps_all_or_none_says_so() -> None:
    runner = HistoryRunner(partial=False)
    put(runner, 0, [1, 2, 3])
    assert runner.decode()

    assert runner.truncate(0, 3)
    assert not runner.truncate(0, 2)
    assert runner.cells[0] == []
    assert runner.truncate(0, 0)


class Answers:
    """Collects the text that an engine sends, by sequence."""

    def __init__(self, engine: BatchEngine, prompt: list[int], n: int = 1) -> None:
        import queue

        self._deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        self.n = n
        engine.submit(prompt, SamplingParams(temperature=0.0), 40, self._deltas.put, (None,) * n)

    def wait(self) -> list[str]:
        texts, left = [""] * self.n, self.n
        while left:
            delta = self._deltas.get()
            assert not delta.error, delta.error
            texts[delta.index] += delta.text
            left -= delta.finish is not None
        return texts


def alone(prompt: list[int]) -> str:
    history, text = list(prompt), ""
    while len(history) < len(prompt) + 40 and (token := after(history)) != END:
        history.append(token)
        text += chr(97 + token % 26)
    return text


PROMPTS = [[i, *range(20), i] for i in range(5)] + [[1, *range(20), 5], [3, *range(10)]]


@pytest.mark.parametrize("shares", [True, False])
def test_the_engine_gives_the_same_answers_whether_slots_share_or_not(shares: bool) -> None:
    engine = BatchEngine(HistoryRunner(shares=shares))

    found = [answers.wait() for answers in [Answers(engine, prompt, n=3) for prompt in PROMPTS]]

    engine.close()
    assert found == [[alone(prompt)] * 3 for prompt in PROMPTS]


def test_a_slot_that_cannot_share_still_keeps_its_own_beginning() -> None:
    runner = HistoryRunner(slots=2, shares=False)
    engine = BatchEngine(runner)

    for _ in range(3):
        Answers(engine, [9] * 30).wait()

    stats = engine.stats()
    engine.close()
    assert stats.cached_tokens == 2 * 29
