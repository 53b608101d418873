"""A compiled grammar, the state of one sequence in it, and llguidance's error messages.

llguidance never raises for a bad grammar or token, so every step here checks its error state.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tourkit.errors import EngineError, RequestError, TourkitError, one_line
from tourkit.grammar.closing import Closing, ClosingRanks
from tourkit.grammar.prepared import Prepared

if TYPE_CHECKING:
    import numpy as np

# llguidance's messages if a grammar, or a state in it, exceeds its limits.
LIMIT_HIT = re.compile("too complex|too large|too many|TooComplex|limit|row has|NoExtension", re.IGNORECASE)


# While only single tokens are checked, the lexer spends the fuel that the last mask left. A mask refills it.
_REFILL = 16  # tokens
# Seconds of CPU time. A step that takes longer is slow. Slow steps of one sequence may take twice as long in all: one
# slow step may be the fault of a busy machine.
MAX_STEP = 0.1
_BASE_WEIGHT = 2**19  # bytes of a small grammar
_TOKEN_WEIGHT, _MAX_GROWTH = 20_000, 20 * 2**20  # bytes that the lexer's new states take for a token, and in all


@dataclass(slots=True)
class Compiled:
    """A compiled grammar; each matcher copies its `prototype`. All copies share one lexer, which only grows.

    `uses`: requests so far. `tokens`: those accepted so far. `unfilled`: those accepted since the last mask. `spent`: a
    copy hit a limit, so that the shared lexer may be full.
    """

    prototype: Any
    prepared: Prepared
    uses: int = 0
    tokens: int = 0
    unfilled: int = 0
    spent: bool = False

    @property
    def weight(self) -> int:
        """The bytes of memory that the grammar takes, about."""
        grown = min(self.tokens * _TOKEN_WEIGHT, _MAX_GROWTH)
        return max(self.prepared.weight, _BASE_WEIGHT) + 2 * len(self.prepared.grammar) + grown


class Matcher:
    """The state of one sequence in its grammar. `compiled`: what all matchers of the grammar share.

    `reserve`: tokens enough to close a document that has begun. `level`: "strict" if every document the grammar allows
    meets the constraint, "relaxed" if the `dropped` parts of the schema are not enforced, "generic" if only the type of
    the root is enforced. `grammar`: the text that was compiled, as llguidance serialises it. Every step raises
    RequestError if it hits a limit of the grammar, or if the steps of this sequence are too slow.
    """

    def __init__(self, compiled: Compiled, ranks: ClosingRanks, n_vocab: int) -> None:
        import numpy as np

        prepared = compiled.prepared
        self._matcher = compiled.prototype.deep_copy()
        self.compiled = compiled
        self.grammar = prepared.grammar
        self.reserve = prepared.reserve
        self.level = prepared.level
        self.dropped = prepared.dropped
        self._is_optional = prepared.optional
        self._header_end = prepared.header_end
        self._closing = Closing(ranks, prepared)
        self._slow = 0.0  # seconds in slow steps so far
        self._n_vocab = n_vocab
        self._bits = np.zeros((n_vocab + 31) // 32, dtype=np.int32)

    @property
    def in_call(self) -> bool:
        """Whether the text is inside a call of a tool that it could do without."""
        return self._is_optional and self._header_end is None and not self._matcher.is_accepting()

    @property
    def must_close(self) -> bool:
        """Whether the text is closed out if the tokens run short. Free text is not: it may end anywhere."""
        return not self._is_optional or self.in_call

    def allows(self, token: int) -> bool:
        """Return whether a token may come next. Far cheaper than a mask."""
        began = time.thread_time()
        allowed = self._matcher.validate_tokens([token]) == 1
        self._slow = slow_time(self._slow, began)
        return bool(allowed)

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits of all tokens that the grammar refuses to minus infinity."""
        import numpy as np

        logits[~self._allowed(self._matcher)] = -np.inf

    def closing_token(self, logits: np.ndarray) -> int:
        """Return the allowed token that leads to the end fastest; of equal ones, the likeliest."""
        allowed = self._allowed(self._matcher)
        if not allowed.any():
            raise EngineError("the grammar allows no token")
        return self._closing.choose(self._matcher, allowed, self._allowed, logits)

    def accept(self, tokens: list[int]) -> None:
        """Advance by `tokens`. Raises EngineError if the grammar refuses them."""
        compiled = self.compiled
        began = time.thread_time()
        if not self._matcher.consume_tokens(tokens):
            raise self._failure(self._matcher)
        self._slow = slow_time(self._slow, began)
        self._closing.follow(tokens)
        if self._header_end in tokens:
            self._header_end = None
        compiled.tokens += len(tokens)
        compiled.unfilled += len(tokens)
        if compiled.unfilled >= _REFILL and not self._matcher.is_stopped():
            self._compute_mask(self._matcher)

    def forced(self) -> list[int]:
        """Return the tokens that must come next, whatever the logits are."""
        began = time.thread_time()
        tokens = list(self._matcher.compute_ff_tokens())
        self._slow = slow_time(self._slow, began)
        return tokens

    @property
    def done(self) -> bool:
        """Whether the document is complete and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _allowed(self, matcher: Any) -> np.ndarray:
        """Return for each token whether the matcher allows it."""
        import numpy as np

        self._compute_mask(matcher)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._n_vocab].view(bool)

    def _compute_mask(self, matcher: Any) -> None:
        """Write the mask of a matcher to `_bits`. This also refills the fuel of the shared lexer."""
        began = time.thread_time()
        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if matcher.is_error():
            raise self._failure(matcher)
        self._slow = slow_time(self._slow, began)
        self.compiled.unfilled = 0

    def _failure(self, matcher: Any) -> TourkitError:
        """Return the error of a failed matcher: RequestError if its grammar grew too large, else EngineError."""
        said = error_line(matcher)
        if LIMIT_HIT.search(said):
            self.compiled.spent = True
            return RequestError(f"the grammar grew too large ({said}): write a simpler one", code="grammar_limit")
        return EngineError(f"the grammar failed: {said}")


def slow_time(before: float, began: float) -> float:
    """Return the seconds of CPU time in slow steps, from those `before` and a step that began at `began`.

    Raises RequestError if they are too many. A step cannot be stopped: the limits of its grammar keep it short.
    """
    took = time.thread_time() - began
    if took <= MAX_STEP:
        return before
    if before + took > 2 * MAX_STEP:
        raise RequestError(
            f"the grammar is too slow (one step took {took * 1000:.0f} ms): write a simpler one", code="grammar_limit"
        )
    return before + took


def error_line(matcher: Any) -> str:
    """Return llguidance's message for a matcher in its error state, in one line."""
    text = str(matcher.get_error()).partition("<state>")[0].strip() or str(matcher.stop_reason())
    text = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return one_line(f"{lines[0]} {errors[-1]}" if errors and lines[0] != errors[-1] else lines[0])
