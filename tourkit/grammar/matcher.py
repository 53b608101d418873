"""A compiled grammar, where one sequence stands in it, and what llguidance says when it fails.

llguidance never raises for a bad grammar or token: every step here asks for its error state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tourkit.errors import EngineError, RequestError, TourkitError
from tourkit.grammar.check import one_line
from tourkit.grammar.closing import Closing, ClosingRanks
from tourkit.grammar.rewrites import EXACT, GENERIC

if TYPE_CHECKING:
    import numpy as np

# What llguidance says when a grammar, or the way through it, is larger than its limits.
LIMIT_HIT = re.compile("too complex|too large|too many|TooComplex|limit|row has|NoExtension", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar to copy from. `reserve`, in tokens, is enough to close a document that has begun.

    `level` is a step of the ladder, 0 being the schema as it was given; `dropped` are JSON pointers into the schema.
    `grammar` is what was compiled, as llguidance serialises it.
    """

    prototype: Any
    grammar: str
    reserve: int
    level: int = 0
    dropped: tuple[str, ...] = ()
    json_text: bool = True
    samples: tuple[str, ...] = ()


class Matcher:
    """Where one sequence stands in its grammar. `reserve` tokens are enough to close a document that has begun.

    `level` is "strict" when every document the grammar allows meets the constraint, "relaxed" when `dropped` parts of
    the schema are not enforced, "generic" when only the type of the root is. `grammar` is what was compiled, as
    llguidance serialises it.
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
        """Whether a token may come next. Far cheaper than a mask."""
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits of every token the grammar refuses to minus infinity."""
        import numpy as np

        logits[~self._allowed(self._matcher)] = -np.inf

    def closing_token(self, logits: np.ndarray) -> int:
        """The allowed token that leads to the end fastest; the likeliest of those that are equal."""
        allowed = self._allowed(self._matcher)
        if not allowed.any():
            raise EngineError("the grammar allows no token")
        return self._closing.choose(self._matcher, allowed, self._allowed, logits)

    def accept(self, tokens: list[int]) -> None:
        """Advance by tokens. Raises RequestError when the grammar hits a limit, EngineError when it refuses them."""
        if not self._matcher.consume_tokens(tokens):
            raise _failure(self._matcher)
        self._closing.follow(tokens)

    def forced(self) -> list[int]:
        """The tokens that must come next, whatever the model says."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def done(self) -> bool:
        """True when the document is complete and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _allowed(self, matcher: Any) -> np.ndarray:
        """Which tokens a matcher allows."""
        import numpy as np

        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if matcher.is_error():
            raise _failure(matcher)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._n_vocab].view(bool)


def _failure(matcher: Any) -> TourkitError:
    """What stopped a grammar that was being followed: its own size, which is the request's, or a fault of ours."""
    said = error_line(matcher)
    if LIMIT_HIT.search(said):
        return RequestError(f"the grammar grew too large on the way, write a simpler one: {said}", code="grammar_limit")
    return EngineError(f"the grammar failed: {said}")


def error_line(matcher: Any) -> str:
    """What llguidance says is wrong with a matcher that is in its error state, in one line."""
    text = str(matcher.get_error()).partition("<state>")[0].strip() or str(matcher.stop_reason())
    text = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return one_line(f"{lines[0]} {errors[-1]}" if errors and lines[0] != errors[-1] else lines[0])
