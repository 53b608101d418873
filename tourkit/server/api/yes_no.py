"""Scores of documents from a model that writes text: the probability of "yes" as the first token of its answer.

The prompt is the one that Qwen3-Reranker was trained with, so that model gets its own. Others understand it too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from enum import Enum

from starlette.requests import Request as HttpRequest

from tourkit.backends.base import Engine, Scores, Templated
from tourkit.errors import EngineError, RequestError
from tourkit.generation import Request, SamplingParams, Thinking, TokenLogprob
from tourkit.server.api.completions import Prompts
from tourkit.server.api.model import Model

_TASK = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
_LARGEST = 700.0  # whose exponential is a number
_BIAS = 100.0  # added to the logits of the answers, so that one of them is drawn; log probabilities do not have it


class _Layout(Enum):
    """Where the task stands: what a model's chat template can show."""

    SYSTEM = "a message of its own"
    USER = "before the question"  # for templates without system messages
    PLAIN = "a prompt without a template"


class YesNo:
    """The questions to one model, and the tokens of its answers."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: tuple[_Layout, tuple[int, int]] | None = None

    async def scores(self, query: str, documents: Sequence[str], client: str, http: HttpRequest) -> Scores | None:
        """Return the scores of documents; None if the client hangs up. `client`: as in Request.

        Raises RequestError, QueueFull, EngineError, EngineDead.
        """
        if self._known is None:
            self._known = await asyncio.to_thread(_known, self._model.engine)
        layout, answers = self._known
        params = _params(answers)
        requests = [_request(query, document, layout, params, client) for document in documents]
        prompts = Prompts(self._model, tuple(requests), http)
        values: dict[int, float] = {}
        try:
            if await prompts.start():
                async for i, delta in prompts.deltas():
                    if delta.failure:
                        raise delta.failure
                    for row in delta.logprobs[:1]:
                        values[i] = _probability(row)
        except RequestError as exc:
            fix = "; or set max_tokens_per_doc" if exc.code == "context_length_exceeded" else ""
            raise RequestError(f"documents: {exc}{fix}", param="documents", code=exc.code) from exc
        if not prompts.complete:
            return None
        if len(values) < len(documents):
            raise EngineError("the model gave no probabilities for its answer: use a model of the role rerank")
        return Scores(tuple(values[i] for i in range(len(documents))), prompts.usage().n_prompt)


def _probability(row: TokenLogprob) -> float:
    """Return the probability of yes among the two answers."""
    (_, yes), (_, no) = row.top
    return 1 / (1 + math.exp(min(no - yes, _LARGEST)))


def _params(answers: tuple[int, int]) -> SamplingParams:
    return SamplingParams(
        max_tokens=1,
        temperature=0,
        logit_bias=tuple((token, _BIAS) for token in answers),
        top_logprobs=len(answers),
        scored=answers,
    )


def _request(query: str, document: str, layout: _Layout, params: SamplingParams, client: str) -> Request:
    """Return the question whether one document fits. What is the same for all documents comes first."""
    question = f"<Instruct>: {_INSTRUCT}\n<Query>: {query}\n<Document>: {document}"
    if layout is _Layout.PLAIN:
        return Request(prompt=f"{_TASK}\n\n{question}\n\nAnswer:", params=params, whole=True, client=client)
    messages: tuple[dict[str, str], ...] = (
        {"role": "system", "content": _TASK},
        {"role": "user", "content": question},
    )
    if layout is _Layout.USER:
        messages = ({"role": "user", "content": f"{_TASK}\n\n{question}"},)
    thinking = Thinking(enabled=False)
    return Request(messages=messages, params=params, thinking=thinking, whole=True, client=client)


def _known(engine: Engine) -> tuple[_Layout, tuple[int, int]]:
    """Return the layout for a model, and the tokens of yes and of no. Raises RequestError if it cannot say them."""
    assert isinstance(engine, Templated)
    for layout in (_Layout.SYSTEM, _Layout.USER):
        try:
            shown = engine.apply_template(_request("a", "b", layout, SamplingParams(), ""))
        except RequestError:  # the template refuses system messages, or there is none
            continue
        if _TASK in shown:
            return layout, _answers(engine)
    return _Layout.PLAIN, _answers(engine)


def _answers(engine: Engine) -> tuple[int, int]:
    """Return the token of yes and that of no; their first tokens if they have more. Raises RequestError."""
    yes, no = (engine.tokenize(word, add_special=False)[0] for word in ("yes", "no"))
    if yes == no:
        raise RequestError(
            "this model has no tokens that tell yes from no: use a model of the role rerank",
            param="model",
            code="unsupported_model",
        )
    return yes, no
