"""What schemathesis imports: short answers, and the reasons for which an allowed body may be refused.

tools/fuzz_openapi.py starts it. The environment of schemathesis has no tourkit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import schemathesis
from schemathesis.generation import GenerationMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from unsaid import is_unsaid

_MOST = 2
# The field that limits the length of an answer, by the beginning of the path.
_LIMITS = {"/v1/responses": "max_output_tokens", "/v1/": "max_tokens"}
_OTHERS = {"max_completion_tokens"}


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """Ask for short answers: without a limit an answer takes the whole context."""
    body, path = case.body, case.operation.path
    if not isinstance(body, dict) or not body.keys() & {"messages", "prompt", "input"}:
        return
    if path in ("/api/chat", "/api/generate"):
        options = body.get("options") or {}
        if isinstance(options, dict) and not options.get("num_predict"):
            body["options"] = options | {"num_predict": _MOST}
    elif path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        limit = next(name for start, name in _LIMITS.items() if path.startswith(start))
        if not any(body.get(name) for name in {limit, *_OTHERS}):
            body[limit] = _MOST
    for name in ("n", "best_of"):
        if isinstance(body.get(name), int) and _MOST < body[name] <= 128:
            body[name] = _MOST


@schemathesis.check
def refused_for_a_known_reason(context: Any, response: Any, case: Any) -> None:
    """A body that the document allows is refused only for a reason that no schema can say."""
    if response.status_code != 400 or case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    message, code = _said(response.json()["error"])
    assert is_unsaid(message, code), f"refused, but the document allows it: {message}"


@schemathesis.check
def events_are_as_documented(context: Any, response: Any, case: Any) -> None:
    """The data of each event of a stream follows `x-event-schema`."""
    kind = response.headers.get("content-type", [""])[0].partition(";")[0]
    content = case.operation.definition.raw["responses"].get(str(response.status_code), {}).get("content", {})
    event_schema = content.get(kind, {}).get("x-event-schema")
    if event_schema is None:
        return
    components = case.operation.schema.raw_schema["components"]
    validator = jsonschema_rs.Draft202012Validator({**event_schema, "components": components})
    events = list(_events(response.content.decode()))
    assert events, "a stream without events"
    for event in events:
        error = next(iter(validator.iter_errors(event)), None)
        assert error is None, f"an event is not what the document says: {error.message}: {event}"


def _events(stream: str) -> Iterator[Any]:
    """Yield the data of each event: of a line that begins with `data:`, else of a line of JSON."""
    for line in stream.splitlines():
        data = line.removeprefix("data:").strip()
        if data and data != "[DONE]" and not line.startswith((":", "event:")):
            yield json.loads(data)


def _said(error: Any) -> tuple[str, str | None]:
    """Return message and code of an error in the form of any API."""
    if isinstance(error, str):  # Ollama's, without a code
        return error, None
    return error["message"], error.get("code") or (error.get("details") or {}).get("error_code")
