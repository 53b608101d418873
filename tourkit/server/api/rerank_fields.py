"""The body of POST /v1/rerank, in the shape of Jina and of Cohere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tourkit.errors import RequestError
from tourkit.server.api import limits
from tourkit.server.api.fields import boolean, integer
from tourkit.server.api.requests import checked_model_of
from tourkit.server.api.route_fields import RERANK

_TEXT = "text"  # the field of a document that is an object
_IMAGE = "image"  # the same for an image, as Jina has it


@dataclass(frozen=True, slots=True)
class Rerank:
    """A parsed request. `documents`: the texts. `given`: the documents as they were sent, strings or objects.

    `top_n`: how many results to return; None for all. `shows_documents`: the results have the documents.
    `most_tokens`: how many tokens of each document count; None for all.
    """

    model: str
    query: str
    documents: tuple[str, ...]
    given: tuple[Any, ...]
    top_n: int | None = None
    shows_documents: bool = True
    most_tokens: int | None = None


def parse_rerank(body: Any) -> Rerank:
    """Check and convert the body of POST /v1/rerank. Raises RequestError with the field."""
    model, _ = checked_model_of(body, RERANK)
    query, given = body.get("query"), body.get("documents")
    if not isinstance(query, str) or not query:
        raise RequestError("query must be a non-empty string", param="query")
    limits.QUERY.check(len(query))
    if not isinstance(given, list) or not given:
        raise RequestError("documents must be a list of at least one text", param="documents")
    limits.DOCUMENTS.check(len(given))
    return Rerank(
        model=model,
        query=query,
        documents=tuple(_text(document, f"documents[{i}]") for i, document in enumerate(given)),
        given=tuple(given),
        top_n=integer(body, "top_n", 1),
        shows_documents=body.get("return_documents") is None or boolean(body, "return_documents"),
        most_tokens=integer(body, "max_tokens_per_doc", 1),
    )


def _text(document: Any, where: str) -> str:
    """Return the text of a document. Other fields of an object do not count."""
    text = document.get(_TEXT) if isinstance(document, dict) else document
    if isinstance(text, str):
        limits.DOCUMENT_LENGTH.check(len(text), where)
        return text
    if isinstance(document, dict) and _IMAGE in document:
        raise RequestError(
            f"{where} is an image: this model is text-only, so send texts", param=where, code="unsupported_content"
        )
    raise RequestError(f"{where} must be a string, or an object with a string as text", param=where)
