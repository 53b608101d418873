"""Find out why a vLLM process ended, from its last lines on stderr."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MOST_SHOWN = 300  # characters of a line
_RAISED = re.compile(r"\b([A-Z]\w*(?:Error|Exception))\b(?:: (.+))?$")  # the last line of a traceback
# vLLM's server and its engine are two processes, and each also reports the failure of the other.
_SEE_ABOVE = re.compile("root cause above|initialization failed|ended with an? (error|exception)", re.IGNORECASE)
_COUNTED = re.compile(r"\d+ validation errors? for \w+$")  # from pydantic; the next line describes the errors
_PROCESS = re.compile(r"^\([^)]*\)")  # the name of vLLM's process, before each line
_GIVEN = re.compile(r" \[type=.*$")  # the input that pydantic refused


def reason(lines: Sequence[str]) -> str | None:
    """Return the last exception that says what went wrong, in one line; None if there is none."""
    for i in reversed(range(len(lines))):
        found = _RAISED.search(lines[i])
        if found is None or _SEE_ABOVE.search(lines[i]):
            continue
        raised = found[0][:_MOST_SHOWN]
        if not _COUNTED.search(found[0]) or i + 1 == len(lines):
            return raised
        detail = _GIVEN.sub("", _PROCESS.sub("", lines[i + 1])).strip()[:_MOST_SHOWN]
        return f"{raised}: {detail}" if detail else raised
    return None
