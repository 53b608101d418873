"""Our results in OpenAI's format: completions, stream chunks and errors as JSON, and their HTTP responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
from starlette.responses import Response

from tourkit.calling.tools import Call, CallPiece
from tourkit.errors import EngineDead, QueueFull, RequestError, TourkitError, excerpt
from tourkit.generation import Delta, Finish, TokenLogprob
from tourkit.server.api.dialects import event
from tourkit.server.api.requests import NO_OPTIONS, StreamOptions

DONE = b"data: [DONE]\n\n"  # the end of OpenAI's streams
_LONGEST_MESSAGE = 2_000  # characters; a library's message can quote a whole request


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished sequence. `logprobs`: None if the request did not ask for them. `reasoning`: its thinking.

    `calls`: the tools that it calls, in order. `stop`: the stop string that ended it; empty if none did.
    """

    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...] | None
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of a request. `n_cached`: tokens of the prompt that were found in the KV cache.

    `n_reasoning`: how many of the completion's tokens are thinking. `first`: when the first piece of the answer came,
    in seconds of the monotonic clock; 0 if none came. An answer that is not sent in pieces has one piece.
    """

    n_prompt: int
    n_completion: int
    n_cached: int
    n_reasoning: int = 0
    first: float = field(default=0.0, compare=False)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.n_prompt + other.n_prompt,
            self.n_completion + other.n_completion,
            self.n_cached + other.n_cached,
            self.n_reasoning + other.n_reasoning,
            self.first or other.first,
        )

    def to_json(self) -> dict[str, Any]:
        thinking = {"completion_tokens_details": {"reasoning_tokens": self.n_reasoning}} if self.n_reasoning else {}
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_completion,
            "total_tokens": self.n_prompt + self.n_completion,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
        } | thinking


class Reply(Protocol):
    """How an API writes one answer. Each request has its own, so it may keep what it has written of a stream.

    The methods of a stream return bytes of whole pieces, for example whole server-sent events.
    """

    def completion(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """Return the body of an answer that is no stream."""
        ...

    def opening(self, n: int) -> bytes:
        """Return the begin of a stream of `n` answers; empty if it begins with the first chunk."""
        ...

    def chunk(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        """Return what a delta adds; empty if the client sees nothing of it. `usage`: makes the tokens so far."""
        ...

    def failure(self, exc: TourkitError) -> bytes:
        """Return the end of a stream that failed."""
        ...

    def closing(self, choices: Sequence[Choice], usage: Usage, remark: dict[str, Any] | None) -> bytes:
        """Return the end of a stream. `remark`: what is to say about structured answers; None for nothing."""
        ...


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The answers to one chat request. `created`: whole seconds since 1970. `reasoning`: show the thinking.

    `fingerprint`: of the model and its settings. `options`: of the stream. If it asks for the usage, every chunk has
    the key `usage`; it is null except where the usage is. `legacy_calls`: as in Generate.
    """

    id: str
    created: int
    model: str
    logprobs: bool = False
    reasoning: bool = True
    fingerprint: str = ""
    options: StreamOptions = NO_OPTIONS
    legacy_calls: bool = False

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | {"system_fingerprint": self.fingerprint or None}

    def completion(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        shown = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None}
                | self._shown_reasoning(choice.reasoning)
                | self._shown_calls(choice),
                "logprobs": self._shown_logprobs(choice.logprobs or ()),
                "finish_reason": self._shown_finish(choice.finish),
            }
            for i, choice in enumerate(choices)
        ]
        return self._head("chat.completion") | {"choices": shown, "usage": usage.to_json()}

    def opening(self, n: int) -> bytes:
        """Return the first chunk of a stream: the role of each choice."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(n)])

    def chunk(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        """Return chunks of a stream; empty if the delta changes nothing that the client sees."""
        if not self._shows(delta):
            return b""
        return b"".join(self._piece(each, usage) for each in _one_call_each(delta))

    def _piece(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        content = ({"content": delta.text} if delta.text else {}) | self._shown_reasoning(delta.reasoning)
        content |= self._shown_pieces(delta.calls)
        finish = self._shown_finish(delta.finish)
        logprobs = self._shown_logprobs(delta.logprobs) if delta.logprobs else None
        choice = {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": finish}
        return self._chunk([choice], usage() if self.options.always else None)

    def _shows(self, delta: Delta) -> bool:
        has_news = delta.text or delta.finish or delta.logprobs or delta.calls
        return bool(has_news or (delta.reasoning and self.reasoning))

    def failure(self, exc: TourkitError) -> bytes:
        return event(error_body(exc)[1])

    def closing(self, choices: Sequence[Choice], usage: Usage, remark: dict[str, Any] | None) -> bytes:
        """Return a chunk with the remark, the chunk for stream_options.include_usage, and the end."""
        about = self._chunk([], more={"tourkit": remark}) if remark is not None else b""
        return about + (self._chunk([], usage) if self.options.usage else b"") + DONE

    def _chunk(
        self, choices: list[dict[str, Any]], usage: Usage | None = None, more: dict[str, Any] | None = None
    ) -> bytes:
        shown = {"usage": usage.to_json() if usage is not None else None} if self.options.usage else {}
        return event(self._head("chat.completion.chunk") | {"choices": choices} | shown | (more or {}))

    def _shown_reasoning(self, text: str) -> dict[str, str]:
        return {"reasoning_content": text} if text and self.reasoning else {}

    def _shown_finish(self, finish: Finish | None) -> str | None:
        if finish is Finish.TOOL_CALLS and self.legacy_calls:
            return "function_call"
        return None if finish is None else finish.value

    def _shown_calls(self, choice: Choice) -> dict[str, Any]:
        """Return the calls of an answer as parts of its message. A message of calls alone has no content."""
        if not choice.calls:
            return {}
        about = [{"name": call.name, "arguments": call.arguments} for call in choice.calls]
        content = {"content": choice.text or None}
        if self.legacy_calls:
            return content | {"function_call": about[0]}
        calls = [
            {"id": call.id, "type": "function", "function": each}
            for call, each in zip(choice.calls, about, strict=True)
        ]
        return content | {"tool_calls": calls}

    def _shown_pieces(self, pieces: tuple[CallPiece, ...]) -> dict[str, Any]:
        if not pieces:
            return {}
        if self.legacy_calls:
            name = next(({"name": piece.name} for piece in pieces if piece.name), {})
            return {"function_call": name | {"arguments": "".join(piece.arguments for piece in pieces)}}
        return {"tool_calls": [_shown_piece(piece) for piece in pieces]}

    def _shown_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            shown_token(each.token, each.logprob)
            | {"top_logprobs": [shown_token(token, value) for token, value in each.top]}
            for each in logprobs
        ]
        return {"content": content, "refusal": None}


def _one_call_each(delta: Delta) -> tuple[Delta, ...]:
    """Split a delta so that each part has one piece of one call. Some clients read only the first piece of a chunk."""
    joined: dict[int, CallPiece] = {}
    for piece in delta.calls:
        before = joined.get(piece.index)
        text = piece.arguments
        joined[piece.index] = piece if before is None else replace(before, arguments=before.arguments + text)
    if len(joined) < 2:
        return (replace(delta, calls=tuple(joined.values())) if joined else delta,)
    first, *others = joined.values()
    parts = [
        replace(delta, calls=(first,), finish=None),
        *(Delta(delta.index, "", 0, calls=(each,)) for each in others),
    ]
    return (*parts[:-1], replace(parts[-1], finish=delta.finish))


def _shown_piece(piece: CallPiece) -> dict[str, Any]:
    if not piece.name:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    about = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": about}


def shown_token(token: bytes, logprob: float) -> dict[str, Any]:
    """Return a token with its log probability."""
    # A token may be a part of a character. Then only its bytes are exact, and its text is only for reading.
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def error_body(exc: TourkitError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body in OpenAI's format for one of our errors."""
    param, code, status, kind = None, None, 500, "server_error"
    if isinstance(exc, RequestError):
        param, code, status = exc.param, exc.code, exc.status
        kind = "invalid_request_error" if status < 500 else "server_error"
    elif isinstance(exc, QueueFull):
        status, kind, code = 429, "rate_limit_error", "queue_full"
    elif isinstance(exc, EngineDead):
        status, code = 503, "engine_dead"
    return status, {
        "error": {"message": excerpt(str(exc), _LONGEST_MESSAGE), "type": kind, "param": param, "code": code}
    }


def json_response(status: int, body: dict[str, Any]) -> Response:
    """Return an HTTP response with a JSON body."""
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def error_response(exc: TourkitError) -> Response:
    """Return an HTTP response for one of our errors, with Retry-After if the client should try again."""
    status, body = error_body(exc)
    response = json_response(status, body)
    if status in (429, 503):
        response.headers["retry-after"] = "1"
    return response
