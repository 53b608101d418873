"""The answers of POST /api/chat, /api/generate and /api/embed in Ollama's format: JSON, or a stream of JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from tourkit.backends.base import Embeddings
from tourkit.calling.tools import Call, Calls
from tourkit.errors import TourkitError
from tourkit.generation import Delta, Finish, TokenLogprob
from tourkit.server.api.dialects import OLLAMA_CHAT, line
from tourkit.server.api.replies import Choice, Usage, error_body
from tourkit.server.api.requests import Embed

_NANOSECONDS = 1_000_000_000


class OllamaReply:
    """The answer to one request. It keeps which calls of a stream were sent.

    `is_chat`: the text is in a message, else in `response`. `logprobs`: show log probabilities. `began`: seconds of the
    monotonic clock.
    """

    def __init__(self, model: str, *, is_chat: bool, logprobs: bool = False, began: float | None = None) -> None:
        self._model, self._is_chat, self._logprobs = model, is_chat, logprobs
        self._began = time.monotonic() if began is None else began
        self._calls = Calls()
        self._n_sent = 0  # calls

    def completion(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = choices
        body = self._body(choice.text, choice.reasoning, choice.calls, choice.logprobs or ())
        return body | self._ending(choice.finish, usage)

    def loaded(self) -> dict[str, Any]:
        """Return the answer to a request that only loads the model."""
        return self._body("") | {"done": True, "done_reason": "load"}

    def opening(self, n: int) -> bytes:
        return b""

    def chunk(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        """Return a line if there is new text or thinking, or a call that is whole because the next one has begun."""
        self._calls.take(delta.calls)
        whole = self._calls.found[self._n_sent : -1]
        if not (delta.text or delta.reasoning or whole or (delta.logprobs and self._logprobs)):
            return b""
        body = self._body(delta.text, delta.reasoning, whole, delta.logprobs)
        self._n_sent += len(whole)
        return line(body | {"done": False})

    def failure(self, exc: TourkitError) -> bytes:
        return OLLAMA_CHAT.failure(*error_body(exc))

    def closing(self, choices: Sequence[Choice], usage: Usage, remark: dict[str, Any] | None) -> bytes:
        [choice] = choices
        rest = choice.calls[self._n_sent :]
        calls = line(self._body("", calls=rest) | {"done": False}) if any(map(_is_whole, rest)) else b""
        last = self._body("") | self._ending(choice.finish, usage)
        return calls + line(last | ({"tourkit": remark} if remark is not None else {}))

    def _body(
        self, text: str, thinking: str = "", calls: Sequence[Call] = (), logprobs: Sequence[TokenLogprob] = ()
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "created_at": _now()}
        thought = {"thinking": thinking} if thinking else {}
        if self._is_chat:
            shown = [_shown_call(i, call) for i, call in enumerate(calls, self._n_sent) if _is_whole(call)]
            message = {"role": "assistant", "content": text} | thought | ({"tool_calls": shown} if shown else {})
            body |= {"message": message}
        else:
            body |= {"response": text} | thought
        return body | ({"logprobs": list(map(_shown_logprob, logprobs))} if self._logprobs and logprobs else {})

    def _ending(self, finish: Finish, usage: Usage) -> dict[str, Any]:
        """Return the end of an answer. The durations are in nanoseconds; loading is not a part of them."""
        now = time.monotonic()
        first = usage.first or now
        return {
            "done": True,
            "done_reason": "length" if finish is Finish.LENGTH else "stop",
            "total_duration": _nanoseconds(now - self._began),
            "load_duration": 0,
            "prompt_eval_count": usage.n_prompt,
            "prompt_eval_duration": _nanoseconds(first - self._began),
            "eval_count": usage.n_completion,
            "eval_duration": _nanoseconds(now - first),
        }


def embed_body(asked: Embed, found: Embeddings, began: float) -> bytes:
    """Return the body of an answer of /api/embed. `began`: seconds of the monotonic clock."""
    took = _nanoseconds(time.monotonic() - began)
    about = {"total_duration": took, "load_duration": 0, "prompt_eval_count": found.n_tokens}
    body = {"model": asked.model, "embeddings": list(found.vectors)} | about
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def embeddings_body(asked: Embed, found: Embeddings) -> bytes:
    """Return the body of an answer of /api/embeddings."""
    return orjson.dumps({"embedding": found.vectors[0]}, option=orjson.OPT_SERIALIZE_NUMPY)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)


def _is_whole(call: Call) -> bool:
    """Whether a call was not cut off by num_predict. Clients would run a call without its arguments."""
    try:
        json.loads(call.arguments)
    except ValueError:
        return False
    return True


def _shown_call(index: int, call: Call) -> dict[str, Any]:
    about = {"index": index, "name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "function": about}


def _shown_logprob(found: TokenLogprob) -> dict[str, Any]:
    likeliest = [_shown_token(token, value) for token, value in found.top]
    return _shown_token(found.token, found.logprob) | {"top_logprobs": likeliest}


def _shown_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
