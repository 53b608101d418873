"""What an engine's thread does now, and how fast it was until now: the gateway ends a worker whose model call hangs."""

from __future__ import annotations

import time

from tourkit.generation import Activity

_MANY = 64  # tokens: a call of at least this many takes as long a token as the prefill of a prompt


class WorkMeter:
    """Measures one thread. That thread calls `advance` and `rest`; any thread may read `activity`.

    `advance` reads the clock once. It takes less than a microsecond, twice a step.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0  # with work under way
        self._large = 0, 0.0  # tokens and seconds of the calls with many tokens
        self._now: tuple[float, int] | None = None  # begin and tokens of the work under way

    def advance(self, done: int, coming: int) -> None:
        """Record that `done` tokens are computed now, and that work over `coming` tokens begins. 0: other work."""
        now = time.monotonic()
        if self._now is not None:
            self._seconds += now - self._now[0]
            if done >= _MANY:
                self._large = self._large[0] + done, self._large[1] + now - self._now[0]
        self._tokens += done
        self._now = now, coming

    def rest(self) -> None:
        """Record that there is nothing to do."""
        self._now = None

    def activity(self) -> Activity:
        now, rate = self._now, self._tokens / self._seconds if self._seconds else 0.0
        return Activity(rate=rate) if now is None else Activity(time.monotonic() - now[0], now[1], rate)

    def prefill_rate(self) -> float:
        """Return the tokens a second of calls with many tokens; of all calls if there was none, 0 before the first."""
        tokens, seconds = self._large
        return tokens / seconds if seconds else self.activity().rate
