"""Writes the constraints that are not JSON Schemas (regex, choice, Lark, GBNF) as llguidance's grammars."""

from __future__ import annotations

import json
import re

from tourkit.errors import one_line
from tourkit.generation import Constraint
from tourkit.grammar.refusals import TOO_COMPLEX, refusal, refuse
from tourkit.grammar.static_limits import MAX_REPEATED, check_text


def text_grammar(constraint: Constraint) -> str:
    """Return the grammar of a regex, a choice, or a Lark or GBNF text.

    Raises RequestError if it is empty, too large, or cannot be read.
    """
    from llguidance import LLMatcher

    if constraint.kind not in ("regex", "choice", "grammar"):
        refuse(constraint.kind, f"{constraint.kind!r} is not a kind of constraint", "invalid_grammar")
    check_text(constraint)
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(constraint.source))
    if constraint.kind == "choice":
        options = " | ".join(map(json.dumps, _options(constraint.source)))
        return str(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {options}\n"))
    return str(LLMatcher.grammar_from_lark(_lark(constraint.source)))


def _options(source: str) -> list[str]:
    """Return the strings of a choice, without duplicates."""
    try:
        options = json.loads(source)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, list) or not options or not all(isinstance(o, str) and o for o in options):
        refuse("choice", "choice must be a list of at least one string, none of them empty", "invalid_grammar")
    if max(map(len, options)) > MAX_REPEATED:
        refuse("choice", f"a string of the choice has more than {MAX_REPEATED} characters", TOO_COMPLEX)
    return list(dict.fromkeys(options))


def _lark(source: str) -> str:
    """Return a Lark grammar unchanged; convert a GBNF grammar to Lark."""
    if not re.search(r"^[ \t]*root\s*::=", source, re.MULTILINE):
        return source
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(source))
    except Exception as exc:  # llguidance raises nothing narrower for a rule that is not defined
        said = f"the grammar cannot be read: {one_line(str(exc) or type(exc).__name__)}"
        raise refusal("grammar", said, "invalid_grammar") from exc
