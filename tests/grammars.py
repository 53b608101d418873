"""Prepares and compiles constraints on a runner's vocabulary, as a worker does, in this process."""

from __future__ import annotations

from collections.abc import Callable

from tourkit.backends.llama_cpp import LlamaRunner
from tourkit.generation import Constraint
from tourkit.grammar.compiler import GrammarCompiler
from tourkit.grammar.matcher import Matcher
from tourkit.grammar.prepare import Preparer
from tourkit.grammar.prepared import PLAIN, Manner


class Grammars:
    """Makes matchers for one vocabulary. `count` returns the number of tokens of a text."""

    def __init__(self, runner: LlamaRunner, count: Callable[[str], int] = len, *, leading_space: bool = False) -> None:
        vocabulary = runner.grammar_tokenizer()
        pieces = [runner.piece(token) for token in range(runner.n_vocab)]
        self.preparer = Preparer(vocabulary, pieces, count, leading_space=leading_space)
        self.compiler = GrammarCompiler(vocabulary, runner.n_vocab, runner.eog, runner.piece)

    def matcher(self, constraint: Constraint, manner: Manner = PLAIN) -> Matcher:
        """Return a new matcher. Raises RequestError as `Preparer.prepare` does."""
        return self.compiler.matchers(self.preparer.prepare(constraint, manner), 1)[0]
