"""What schemathesis imports: short answers, and the reasons for which an allowed body may be refused.

tools/fuzz_openapi.py starts it. The environment of schemathesis has no tourkit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from unsaid import is_unsaid

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
_MOST_ANSWERS = 2


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """Ask for short answers: without a limit an answer takes the whole context."""
    body = case.body
    if not isinstance(body, dict) or "model" not in body:
        return
    if ("messages" in body or "prompt" in body) and not any(body.get(name) for name in _LIMITS):
        body["max_tokens"] = 2
    for name in ("n", "best_of"):
        if isinstance(body.get(name), int) and 1 < body[name] <= 128:
            body[name] = _MOST_ANSWERS


@schemathesis.check
def refused_for_a_known_reason(context: Any, response: Any, case: Any) -> None:
    """A body that the document allows is refused only for a reason that no schema can say."""
    if response.status_code != 400 or case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    error = response.json()["error"]
    assert is_unsaid(error["message"], error["code"]), f"refused, but the document allows it: {error['message']}"
