"""POST /v1/rerank over one engine: the documents in the order in which they fit the query.

A reranker gives the scores. A model that writes text is asked whether each document fits (see yes_no).
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tourkit.backends.base import Engine, Scorer, Scores, Templated
from tourkit.errors import RequestError
from tourkit.server.api.model import Model
from tourkit.server.api.off_loop import result, tokenized
from tourkit.server.api.replies import json_response
from tourkit.server.api.rerank_fields import Rerank
from tourkit.server.api.yes_no import YesNo
from tourkit.server.http import CLIENT_LEFT, unless_hung_up

_EMULATED = {"x-tourkit-emulated": "rerank"}
_LONGEST_TOKEN = 64  # characters; text beyond this many for each token that counts is not tokenized


async def rerank(model: Model, yes_no: YesNo, asked: Rerank, client: str, http: HttpRequest) -> Response:
    """Return the results, the best first. Raises RequestError, QueueFull, EngineError, EngineDead.

    `yes_no`: of the model. `client`: as in Request.
    """
    engine = model.engine
    is_reranker = isinstance(engine, Scorer)
    if not is_reranker and not isinstance(engine, Templated):
        raise RequestError(
            "this model makes embeddings and no scores: use a model of the role rerank",
            param="model",
            code="unsupported_model",
        )
    size = len(asked.query) + sum(map(len, asked.documents))
    documents = await tokenized(size, lambda: _cut(engine, asked), http.receive)
    if documents is None:
        return Response(status_code=CLIENT_LEFT)
    if isinstance(engine, Scorer):
        scores = await _scored(engine, asked.query, documents, size, http)
    else:
        scores = await yes_no.scores(asked.query, documents, client, http)
    if scores is None:
        return Response(status_code=CLIENT_LEFT)
    response = await asyncio.to_thread(lambda: json_response(200, _body(asked, scores)))
    response.headers.update({} if is_reranker else _EMULATED)
    return response


async def _scored(
    engine: Scorer, query: str, documents: tuple[str, ...], size: int, http: HttpRequest
) -> Scores | None:
    """Return the scores of a reranker; None if the client hangs up. Then its documents leave the queue."""
    begun = await tokenized(size, lambda: engine.score(query, documents), http.receive, Future.cancel)
    if begun is None:
        return None
    found: Scores | None = await unless_hung_up(http.receive, result(begun))
    return found


def _cut(engine: Engine, asked: Rerank) -> tuple[str, ...]:
    """Return the documents. Each has at most as many tokens as the request says."""
    most = asked.most_tokens
    if most is None:
        return asked.documents

    def cut(text: str) -> str:
        text = text[: most * _LONGEST_TOKEN]
        tokens = engine.tokenize(text, add_special=False)
        return text if len(tokens) <= most else engine.detokenize(tokens[:most]).strip()

    return tuple(map(cut, asked.documents))


def _body(asked: Rerank, scores: Scores) -> dict[str, Any]:
    """Return the reply. It has what the clients of Jina read and what those of Cohere read."""
    order = sorted(range(len(scores.values)), key=lambda i: -scores.values[i])[: asked.top_n]
    used = {"prompt_tokens": scores.n_tokens, "total_tokens": scores.n_tokens}
    tokens = {"input_tokens": scores.n_tokens, "output_tokens": 0}
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": asked.model,
        "results": [_result(asked, i, scores.values[i]) for i in order],
        "usage": used,
        "meta": {"api_version": {"version": "2"}, "tokens": tokens},
    }


def _result(asked: Rerank, index: int, score: float) -> dict[str, Any]:
    found = {"index": index, "relevance_score": score}
    if not asked.shows_documents:
        return found
    given = asked.given[index]
    return found | {"document": given if isinstance(given, dict) else {"text": given}}
