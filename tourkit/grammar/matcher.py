"""A compiled grammar, the state of one sequence in it, and llguidance's error messages.

llguidance never raises for a bad grammar or token, so every step here checks its error state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tourkit.errors import EngineError, RequestError, TourkitError, one_line
from tourkit.grammar.closing import Closing, ClosingRanks
from tourkit.grammar.rewrites import EXACT, GENERIC

if TYPE_CHECKING:
    import numpy as np

# llguidance's messages if a grammar, or a state in it, exceeds its limits.
LIMIT_HIT = re.compile("too complex|too large|too many|TooComplex|limit|row has|NoExtension", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled grammar; each matcher copies its `prototype`. `reserve`: tokens enough to close a begun document.

    `level`: the rung of the ladder, 0 for the schema as it was given. `dropped`: JSON pointers to parts of the schema
    that are not enforced. `grammar`: the text that was compiled, as llguidance serialises it.
    """

    prototype: Any
    grammar: str
    reserve: int
    level: int = 0
    dropped: tuple[str, ...] = ()
    json_text: bool = True
    samples: tuple[str, ...] = ()


class Matcher:
    """The state of one sequence in its grammar. `reserve`: tokens enough to close a document that has begun.

    `level`: "strict" if every document the grammar allows meets the constraint, "relaxed" if the `dropped` parts of
    the schema are not enforced, "generic" if only the type of the root is enforced. `grammar`: the text that was
    compiled, as llguidance serialises it.
    """

    def __init__(self, compiled: Compiled, ranks: ClosingRanks, n_vocab: int) -> None:
        import numpy as np

        self._matcher = compiled.prototype.deep_copy()
        self.grammar = compiled.grammar
        self.reserve = compiled.reserve
        self.level = {EXACT: "strict", GENERIC: "generic"}.get(compiled.level, "relaxed")
        self.dropped = compiled.dropped
        self._closing = Closing(ranks, json_text=compiled.json_text, samples=compiled.samples)
        self._n_vocab = n_vocab
        self._bits = np.zeros((n_vocab + 31) // 32, dtype=np.int32)

    def allows(self, token: int) -> bool:
        """Return whether a token may come next. Far cheaper than a mask."""
        return bool(self._matcher.validate_tokens([token]) == 1)

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
        """Advance by `tokens`. Raises RequestError if the grammar hits a limit, EngineError if it refuses them."""
        if not self._matcher.consume_tokens(tokens):
            raise _failure(self._matcher)
        self._closing.follow(tokens)

    def forced(self) -> list[int]:
        """Return the tokens that must come next, whatever the logits are."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def done(self) -> bool:
        """Whether the document is complete and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _allowed(self, matcher: Any) -> np.ndarray:
        """Return for each token whether the matcher allows it."""
        import numpy as np

        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if matcher.is_error():
            raise _failure(matcher)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._n_vocab].view(bool)


def _failure(matcher: Any) -> TourkitError:
    """Return the error of a failed matcher: RequestError if its grammar grew too large, else EngineError."""
    said = error_line(matcher)
    if LIMIT_HIT.search(said):
        return RequestError(f"the grammar grew too large ({said}): write a simpler one", code="grammar_limit")
    return EngineError(f"the grammar failed: {said}")


def error_line(matcher: Any) -> str:
    """Return llguidance's message for a matcher in its error state, in one line."""
    text = str(matcher.get_error()).partition("<state>")[0].strip() or str(matcher.stop_reason())
    text = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return one_line(f"{lines[0]} {errors[-1]}" if errors and lines[0] != errors[-1] else lines[0])
