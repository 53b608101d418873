"""The paths of the routes: other spellings of them, their methods, and the answers for all other requests.

Clients use a base URL without /v1 or with it twice, and put a slash at the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from tourkit.errors import RequestError, excerpt
from tourkit.server.api.replies import error_response

# What a worker answers for its model.
FORWARDED = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"),
    *("/apply-template", "/tokenize", "/detokenize"),
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
)
# Those that can answer with a stream.
STREAMED = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"}
)
_VERSION = "/v1"
_VERSIONED = (
    *("/chat/completions", "/completions", "/responses", "/embeddings", "/rerank", "/models"),
    *("/messages", "/messages/count_tokens"),
)
_VERSIONED_FOLDERS = ("/models/", "/responses/")
_OLLAMA = "/api/"
_OTHER_NAMES = {"/v2/rerank": "/v1/rerank", "/reranking": "/v1/rerank"}  # Cohere's, llama.cpp's
_BARE = frozenset({"/tokenize", "/detokenize", "/apply-template", "/health", "/metrics", "/version", "/openapi.json"})


def canonical(path: str) -> str:
    """Return the path as the routes have it. A path that is no spelling of a route keeps its meaning."""
    path = path.rstrip("/") or "/"
    while path.startswith(f"{_VERSION}{_VERSION}/"):
        path = path.removeprefix(_VERSION)
    if path.removeprefix(_VERSION) in _BARE or path.startswith(_VERSION + _OLLAMA):
        return path.removeprefix(_VERSION)
    if path.removeprefix(_VERSION) in _OTHER_NAMES:
        return _OTHER_NAMES[path.removeprefix(_VERSION)]
    if path in _VERSIONED or path.startswith(_VERSIONED_FOLDERS):
        return _VERSION + path
    return path


def methods(scope: Scope, routes: Iterable[BaseRoute]) -> str:
    """Return the methods of a path, as the header Allow has them; "" if there is no such path."""
    found = {"POST"} if scope["path"] in FORWARDED else set[str]()
    matching = [each for each in routes if isinstance(each, Route) and each.matches(scope)[0] is not Match.NONE]
    exact = [route for route in matching if not route.param_convertors]
    for route in exact or matching:
        found |= route.methods or set()
    return ", ".join(sorted(found | {"OPTIONS"})) if found else ""


def options(scope: Scope, routes: Iterable[BaseRoute]) -> Response:
    """Return the answer to OPTIONS: the methods of a path."""
    allowed = methods(scope, routes)
    return Response(status_code=204, headers={"allow": allowed}) if allowed else _no_route(Request(scope))


async def not_found(request: Request, exc: Exception | None = None) -> Response:
    """Return 405 for a path that has other methods, else 404."""
    allowed = methods(request.scope, request.app.routes)
    if not allowed:
        return _no_route(request)
    path = excerpt(request.url.path)
    message = f"{request.method} {path}: this route takes {allowed}"
    response = error_response(RequestError(message, code="method_not_allowed", status=405))
    response.headers["allow"] = allowed
    return response


def _no_route(request: Request) -> Response:
    return error_response(RequestError(f"{request.method} {excerpt(request.url.path)}: no such route", status=404))
