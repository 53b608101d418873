"""Prepares constraints: all work on a schema, a trial compile, and a walk of some steps in the grammar.

This work can take any amount of time and memory. So it runs in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tourkit.generation import Constraint
from tourkit.grammar.prepared import Manner, Prepared


class Preparer:
    """Prepares constraints for one vocabulary. Caches nothing.

    `tokenizer`: llguidance's view of the vocabulary. `pieces`: the bytes of each token. `count` returns the number of
    tokens of a text. `leading_space`: answers of the model begin with a space.
    """

    def __init__(
        self,
        tokenizer: Any,
        pieces: Sequence[bytes],
        count: Callable[[str], int],
        *,
        leading_space: bool = False,
    ) -> None:
        from tourkit.grammar.compiler import GrammarCompiler

        self._old = GrammarCompiler(
            tokenizer,
            len(pieces),
            frozenset(tokenizer.eos_tokens),
            pieces.__getitem__,
            count,
            leading_space=leading_space,
        )

    def prepare(self, constraint: Constraint, manner: Manner = Manner()) -> Prepared:
        """Return the prepared constraint. Raises RequestError if it is malformed, or cannot be met or followed."""
        from tourkit.grammar.compiler import Manner as Old
        from tourkit.grammar.rewrites import EXACT, GENERIC

        made = self._old._compile(constraint, Old(manner.tight, manner.compact))
        level = {EXACT: "strict", GENERIC: "generic"}.get(made.level, "relaxed")
        return Prepared(made.grammar, True, made.reserve, level, made.dropped, made.samples, made.json_text)


class GrammarCompiler:  # until A1's lands
    def __init__(self, tokenizer: Any, pieces: Sequence[bytes], eog: frozenset[int]) -> None:
        from tourkit.grammar.closing import ClosingRanks

        self._tokenizer, self._n_vocab, self._ranks = tokenizer, len(pieces), ClosingRanks.of(list(pieces), eog)
        self._cache: dict[Prepared, Any] = {}

    def matchers(self, prepared: Prepared, count: int) -> list[Any]:
        from llguidance import LLMatcher, LLParserLimits

        from tourkit.grammar.compiler import _SIZES
        from tourkit.grammar.matcher import Compiled, Matcher

        if prepared not in self._cache:
            prototype = LLMatcher(
                self._tokenizer, prepared.grammar, log_level=0, limits=LLParserLimits(**_SIZES[prepared.large])
            )
            level = {"strict": 0, "generic": 5}.get(prepared.level, 2)
            self._cache[prepared] = Compiled(
                prototype,
                prepared.grammar,
                prepared.reserve,
                level,
                prepared.dropped,
                prepared.json_text,
                prepared.samples,
            )
        return [Matcher(self._cache[prepared], self._ranks, self._n_vocab) for _ in range(count)]
