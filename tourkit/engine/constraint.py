"""Grammars through llguidance: compiled once, copied per sequence, and closed out when the tokens run out.

llguidance never raises for a bad grammar or token: every step here asks for its error state.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tourkit.engine.bounded import bounded
from tourkit.engine.minimal import minimal_instance
from tourkit.engine.types import Constraint
from tourkit.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

# One space after separators: as most training text has it, and no other whitespace to wander in.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CACHE_SIZE = 256
_MAX_NESTING = 100  # llguidance and Python's own JSON parser give up a little above this


class GrammarCompiler:
    """Compiles constraints for one vocabulary and keeps the recent ones. Thread-safe.

    `piece` gives the bytes of a token, `count` the number of tokens a text takes.
    """

    def __init__(
        self,
        tokenizer: Any,
        n_vocab: int,
        eog: frozenset[int],
        piece: Callable[[int], bytes],
        count: Callable[[str], int],
        *,
        leading_space: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._count = count
        self._leading_space = leading_space
        self._ranks = ClosingRanks.of([piece(token) for token in range(n_vocab)], eog)
        self._cache: OrderedDict[Constraint, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """A fresh matcher. Raises RequestError when the constraint is not one llguidance can hold a model to."""
        with self._lock:
            compiled = self._cache.get(constraint)
            if compiled is not None:
                self._cache.move_to_end(constraint)
        if compiled is None:
            compiled = self._compile(constraint)
            with self._lock:
                self._cache[constraint] = compiled
                while len(self._cache) > _CACHE_SIZE:
                    self._cache.popitem(last=False)
        prototype, reserve = compiled
        return Matcher(prototype.deep_copy(), reserve, self._ranks, self._n_vocab)

    def _compile(self, constraint: Constraint) -> tuple[Any, int]:
        from llguidance import LLMatcher

        schema = json.loads(constraint.source)
        if _depth(schema) > _MAX_NESTING:
            raise RequestError(
                f"the schema is nested over {_MAX_NESTING} levels deep", param="response_format", code="invalid_schema"
            )
        prototype = LLMatcher(self._tokenizer, self._grammar(bounded(schema)), log_level=0)
        if prototype.is_error():
            reason = str(prototype.get_error()).strip().splitlines()[0]
            raise RequestError(
                f"the schema cannot be enforced: {reason}", param="response_format", code="unsupported_schema"
            )
        shortest = json.dumps(minimal_instance(schema), ensure_ascii=False)
        return prototype, self._count(shortest) + 16

    def _grammar(self, schema: Any) -> str:
        from llguidance import LLMatcher

        if not self._leading_space:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPACING))
        # SentencePiece models start with a token that has a leading space, which a plain JSON grammar refuses.
        spaced = {**schema, "x-guidance": _SPACING} if isinstance(schema, dict) else schema
        return str(
            LLMatcher.grammar_from_lark(f"start: lead body\nlead: /[ \\n]{{0,2}}/\nbody: %json {json.dumps(spaced)}\n")
        )


class Matcher:
    """Where one sequence stands in its grammar. `reserve` tokens are enough to close the shortest document."""

    def __init__(self, matcher: Any, reserve: int, ranks: ClosingRanks, n_vocab: int) -> None:
        import numpy as np

        self._matcher = matcher
        self.reserve = reserve
        self._ranks = ranks
        self._n_vocab = n_vocab
        self._bits = np.zeros((n_vocab + 31) // 32, dtype=np.int32)

    def allows(self, token: int) -> bool:
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits of every token the grammar refuses to minus infinity."""
        import numpy as np

        logits[~self._allowed()] = -np.inf

    def closing_token(self, logits: np.ndarray) -> int:
        """The allowed token that leads to the end fastest; the likeliest of those that are equal."""
        import numpy as np

        allowed = self._allowed()
        candidates = np.flatnonzero(allowed)
        if candidates.size == 0:
            raise EngineError("the grammar allows no token")
        ranks = self._ranks.where(allowed)[candidates]
        best = candidates[ranks == ranks.min()]
        return int(best[np.argmax(logits[best])])

    def accept(self, tokens: list[int]) -> None:
        """Advance by tokens. Raises EngineError when the grammar refuses them or hits a limit."""
        if not self._matcher.consume_tokens(tokens):
            raise EngineError(f"the grammar failed: {str(self._matcher.get_error()).strip()[:200]}")

    def forced(self) -> list[int]:
        """The tokens that must come next, whatever the model says."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def done(self) -> bool:
        """True when the document is complete and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def _allowed(self) -> np.ndarray:
        import numpy as np

        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise EngineError(f"the grammar failed: {str(self._matcher.get_error()).strip()[:200]}")
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return bits[: self._n_vocab].view(bool)


@dataclass(frozen=True, slots=True)
class ClosingRanks:
    """How well each token leads to the end of a JSON document, lowest best: the order tried in close-out.

    A bracket ends an array outside a string but only adds to it inside one, so there are two orders. `probes` are
    the tokens of `]` and `}` alone: both are allowed inside a string only.
    """

    outside: np.ndarray
    inside: np.ndarray
    probes: tuple[int, int]

    @staticmethod
    def of(pieces: list[bytes], eog: frozenset[int]) -> ClosingRanks:
        import numpy as np

        outside = np.array([_rank(piece, b"]}", b'"') for piece in pieces], dtype=np.int16)
        inside = np.array([_rank(piece, b'"', b"") for piece in pieces], dtype=np.int16)
        for ranks in (outside, inside):
            ranks[sorted(eog)] = 0
        return ClosingRanks(outside, inside, (pieces.index(b"]"), pieces.index(b"}")))

    def where(self, allowed: np.ndarray) -> np.ndarray:
        """The order that holds where these tokens are allowed."""
        return self.inside if all(allowed[probe] for probe in self.probes) else self.outside


def _rank(piece: bytes, first: bytes, second: bytes) -> int:
    """Rank of a token: one made of `first` alone, of `second` too, of separators, short values, then the rest."""
    if not piece:
        return 1000
    if piece.isspace():
        return 900
    if not piece.strip(first):
        return 1
    if not piece.strip(first + second):
        return 2
    if not piece.strip(b'"]},: '):
        return 3
    if piece.strip() == b"null":
        return 4
    if piece.isdigit() and piece[:1] != b"0":
        return 5 + len(piece)
    if piece[:1] in b"{[\\":
        return 500
    return 50 + min(len(piece), 100)


def _depth(value: Any, limit: int = _MAX_NESTING + 1) -> int:
    """Nesting depth of a JSON value, not looked into further than `limit`."""
    if limit == 0 or not isinstance(value, dict | list):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(child, limit - 1) for child in children), default=0)
