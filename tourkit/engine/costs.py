"""What is worth keeping, by measured time: computing a prompt again against copying its KV cells. Pure: no clock.

The times differ by factors of a thousand between machines and models, and so no count of tokens would be right. On two
cores, SmolLM2 computes 256 tokens in 1,300 ms and their cells are copied in 5 ms. On a GPU both take about as long.
"""

from __future__ import annotations

from collections.abc import Callable

_MEMORY = 3  # a rate is the average of about as many measurements of the same size
_GUESS = 1e-9  # seconds a byte, before the first measurement
_PRIOR = 4096  # tokens: until about as many were offered, half of what is kept counts as asked for again


class Rate:
    """Seconds for each byte, as measured lately."""

    def __init__(self, guess: float = _GUESS) -> None:
        self._seconds, self._bytes = guess, 1.0
        self._is_guess = True

    def learn(self, n_bytes: int, seconds: float) -> None:
        if n_bytes <= 0:
            return
        keep = 0.0 if self._is_guess else 1 - 1 / _MEMORY
        self._is_guess = False
        self._seconds = self._seconds * keep + seconds
        self._bytes = self._bytes * keep + n_bytes

    def seconds(self, n_bytes: int) -> float:
        """Return how long so many bytes take."""
        return n_bytes * self._seconds / self._bytes


class Chance:
    """How often tokens that are kept are asked for again."""

    def __init__(self) -> None:
        self._offered = self._asked = 0.0

    def offer(self, n_tokens: int) -> None:
        """Note tokens that could be kept."""
        self._offered += n_tokens
        if self._offered > 64 * _PRIOR:
            self._offered, self._asked = self._offered / 2, self._asked / 2

    def ask(self, n_tokens: int) -> None:
        """Note tokens of a prompt that were offered earlier, whether they were kept or not."""
        self._asked += n_tokens

    @property
    def value(self) -> float:
        """How likely a token that is kept is asked for again, from 0 to 1: as often as it was until now."""
        return min(1.0, (self._asked + _PRIOR) / (self._offered + 2 * _PRIOR))


class Costs:
    """The measured times of one engine. `prefill_rate`: returns tokens a second, 0 if nothing was measured."""

    def __init__(self, prefill_rate: Callable[[], float]) -> None:
        self._prefill_rate = prefill_rate
        self.out = Rate()  # cells from the model's memory to RAM
        self.back = Rate()  # and back
        self.disk = Rate()  # from the disk; until something was read: to the disk
        self.cell_bytes = 0.0  # of one token; 0 until cells were read
        self.state_bytes = 0  # of a checkpoint; 0 until one was made
        self.cells, self.states = Chance(), Chance()  # of KV cells, and of checkpoints by the tokens before them
        self._measured = 0

    def measure(self, n_tokens: int, n_bytes: int) -> None:
        """Note the size of the cells of a run. The longest run counts, because each run has a header of its own."""
        if n_tokens >= self._measured:
            self._measured, self.cell_bytes = n_tokens, n_bytes / n_tokens

    def measure_state(self, n_bytes: int) -> None:
        """Note the size of a checkpoint. All of a model have the same."""
        self.state_bytes = n_bytes

    def prefill(self, n_tokens: int) -> float:
        """Return the seconds of computing so many tokens; infinity if nothing was measured."""
        rate = self._prefill_rate()
        return n_tokens / rate if rate > 0 else float("inf")

    def worth_parking(self, n_lost: int, n_tokens: int, *, waiting: bool) -> bool:
        """Whether to move the cells of `n_tokens` out of the pool, if dropping them loses `n_lost` tokens.

        `waiting`: a prompt waits meanwhile. Else moving costs nobody time now.
        """
        size = round(n_tokens * self.cell_bytes)
        now = self.out.seconds(size) if waiting else 0.0
        return n_lost > 0 and self.cells.value * (self.prefill(n_lost) - self.back.seconds(size)) > now

    def worth_checkpoint(self, n_tokens: int) -> bool:
        """Whether to copy the fixed state now, if a prompt that goes on from it saves `n_tokens`."""
        saved = self.prefill(n_tokens) - self.back.seconds(self.state_bytes)
        return self.states.value * saved > self.out.seconds(self.state_bytes)

    def worth_writing(self, n_tokens: int, n_bytes: int) -> bool:
        """Whether cells come back from the disk sooner than they are computed."""
        return self.prefill(n_tokens) > self.disk.seconds(n_bytes) + self.back.seconds(n_bytes)
