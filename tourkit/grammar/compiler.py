"""Compiles prepared constraints to llguidance's grammars and caches the recent ones.

All work on the constraint itself is done before (`prepare`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from tourkit.errors import EngineError
from tourkit.grammar.closing import ClosingRanks
from tourkit.grammar.matcher import Compiled, Matcher, error_line
from tourkit.grammar.prepared import Prepared

_MAX_CACHED = 256  # grammars
_MAX_CACHED_BYTES = 96 * 2**20
_MAX_USES = 256  # requests; then a grammar is compiled again, because its lexer keeps every state that it has been in
# Fuel is at the library's defaults: 200,000 for a step is about 15 ms. A state of the lexer takes about 1 kB.
_LIMITS = {"max_lexer_states": 100_000}
_LARGE = _LIMITS | {"max_items_in_row": 15_000, "step_max_items": 60_000}  # 15,000 items in a row are about 80 ms


def new_matcher(tokenizer: Any, grammar: str, *, large: bool) -> Any:
    """Compile a grammar, under the larger limits if `large`. Return llguidance's matcher; it may be in its error state.

    Releases the GIL.
    """
    from llguidance import LLMatcher, LLParserLimits

    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**(_LARGE if large else _LIMITS)))


class GrammarCompiler:
    """Compiles prepared constraints for one vocabulary and caches the recent ones. Thread-safe.

    `piece` returns the bytes of a token.
    """

    def __init__(self, tokenizer: Any, n_vocab: int, eog: frozenset[int], piece: Callable[[int], bytes]) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._ranks = ClosingRanks.of([piece(token) for token in range(n_vocab)], eog)
        self._cache: OrderedDict[bytes, Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def matchers(self, prepared: Prepared, count: int) -> list[Matcher]:
        """Return `count` independent matchers of one grammar, each at its start.

        Raises EngineError if the grammar does not compile: the constraint was prepared for another vocabulary.
        """
        key = hashlib.sha256(prepared.to_json().encode()).digest()
        with self._lock:
            compiled = self._cache.get(key)
            if compiled is not None and (compiled.spent or compiled.uses >= _MAX_USES):
                del self._cache[key]
                compiled = None
        compiled = self._compile(prepared) if compiled is None else compiled
        with self._lock:
            compiled.uses += 1
            self._cache[key] = compiled
            self._cache.move_to_end(key)
            self._make_room()
        return [Matcher(compiled, self._ranks, self._n_vocab) for _ in range(count)]

    def _compile(self, prepared: Prepared) -> Compiled:
        prototype = new_matcher(self._tokenizer, prepared.grammar, large=prepared.large)
        if prototype.is_error():
            raise EngineError(f"the grammar does not compile: {error_line(prototype)}")
        return Compiled(prototype, prepared)

    def _make_room(self) -> None:
        """Drop the grammars used longest ago until the rest is within the limits. The newest one always stays."""
        left = sum(compiled.weight for compiled in self._cache.values())
        while len(self._cache) > 1 and (len(self._cache) > _MAX_CACHED or left > _MAX_CACHED_BYTES):
            left -= self._cache.popitem(last=False)[1].weight
