"""JSON answers and OpenAI-shaped errors, as gateway and worker send them."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from tourkit.errors import TourkitError
from tourkit.server.replies import error_body


def json_response(status: int, body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def error_response(exc: TourkitError) -> Response:
    """The error as its status and body, with Retry-After where trying again makes sense."""
    status, body = error_body(exc)
    response = json_response(status, body)
    if status in (429, 503):
        response.headers["retry-after"] = "1"
    return response
