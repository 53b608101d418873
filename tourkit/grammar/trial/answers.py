"""Checks and repairs one answer.

The time it takes depends on the client's schema, so a worker lets its trial process do it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tourkit.grammar.check import validate
from tourkit.grammar.repair import repair

_MOST_ERRORS = 5  # shown to the client, and to the model if it is asked again


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check. `text`: the answer after repair. `repaired`, `errors`: lines for people.

    `is_json`: False if the answer is no JSON text.
    """

    valid: bool
    text: str
    repaired: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    is_json: bool = True


def judge(source: str, text: str, *, may_repair: bool) -> Verdict:
    """Check an answer. `source`: the JSON text of the schema.

    If the answer breaks the schema, repair it by rule if that makes it valid and `may_repair` is set.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return Verdict(False, text, errors=(f"not JSON: {exc}",), is_json=False)
    schema = json.loads(source)
    errors = validate(schema, data)
    if not errors:
        return Verdict(True, text)
    if may_repair:
        fixed, repairs = repair(schema, data)
        if repairs and not validate(schema, fixed):
            return Verdict(True, json.dumps(fixed, ensure_ascii=False), tuple(repairs))
    return Verdict(False, text, errors=tuple(errors[:_MOST_ERRORS]))
