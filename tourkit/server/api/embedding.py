"""POST /v1/embeddings over one engine: returns vectors in OpenAI's JSON, and stops if the client hangs up."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tourkit.backends.base import Embedder, Embeddings
from tourkit.errors import RequestError
from tourkit.server.api.off_loop import result, tokenized
from tourkit.server.api.requests import Embed
from tourkit.server.http import CLIENT_LEFT, unless_hung_up

if TYPE_CHECKING:
    from tourkit.backends.base import Engine


async def embed(
    engine: Engine, asked: Embed, http: HttpRequest, make: Callable[[Embed, Embeddings], bytes] | None = None
) -> Response:
    """Return the embeddings in the order of the texts. `make`: makes the body; None for that of OpenAI's API.

    Raises RequestError, QueueFull, EngineDead.
    """
    if not isinstance(engine, Embedder):
        raise RequestError(
            "this model writes text and makes no embeddings: use a model of the role embed",
            param="model",
            code="unsupported_model",
        )
    if asked.dimensions not in (None, engine.size):
        raise RequestError(
            f"dimensions is {asked.dimensions}, but embeddings of this model have {engine.size}: leave it out",
            param="dimensions",
            code="unsupported_parameter",
        )
    size = sum(map(len, asked.texts))
    # Cancelling the engine's future removes the texts from its queue.
    begun = await tokenized(size, lambda: engine.embed(asked.texts), http.receive, Future.cancel)
    if begun is None:
        return Response(status_code=CLIENT_LEFT)
    found = await unless_hung_up(http.receive, result(begun))
    if found is None:
        return Response(status_code=CLIENT_LEFT)
    body = await asyncio.to_thread(make or _body, asked, found)
    return Response(body, media_type="application/json")


def _body(asked: Embed, found: Embeddings) -> bytes:
    little_endian = found.vectors.astype("<f4", copy=False)
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(vector.tobytes()).decode() if asked.base64 else vector,
        }
        for i, vector in enumerate(little_endian)
    ]
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    reply = {"object": "list", "data": data, "model": asked.model, "usage": usage}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
