"""The trial process with constraints that do harm, whatever the limits on real constraints are.

Run as the command of a trial process. It adds kinds of constraints to the real ones:
"crash": a Lark chain of 2,698 rules, given to llguidance without any check: it recurses until the stack is full.
"hang", "hog", "keep": Python code that never ends, takes all memory, or keeps `source` MiB.
"""

from __future__ import annotations

import sys

from llguidance import LLMatcher

from tourkit.generation import Constraint
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.trial.jobs import Jobs
from tourkit.grammar.trial.process import main

CHAIN = "start: r0\n" + "".join(f'r{i}: r{i + 1} "a"\n' for i in range(2698)) + 'r2698: "x"\n'


def harmful(jobs: Jobs) -> None:
    prepare = jobs.preparer.prepare
    kept: list[bytes] = []

    class Harmful:
        def prepare(self, constraint: Constraint, manner: Manner) -> Prepared:
            if constraint.kind == "crash":
                LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(CHAIN))
            while constraint.kind == "hang":
                pass
            while constraint.kind == "hog":
                kept.append(b"1" * 2**24)
            if constraint.kind == "keep":
                kept.append(b"1" * (int(constraint.source) * 2**20))
                return prepare(Constraint("regex", "a"), manner)
            return prepare(constraint, manner)

    jobs.preparer = Harmful()  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main(harmful))
