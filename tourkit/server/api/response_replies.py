"""Our results in the format of OpenAI's Responses API: a response with its items, and the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tourkit.calling.tools import Call, CallPiece
from tourkit.errors import TourkitError
from tourkit.generation import Delta, Finish, TokenLogprob
from tourkit.server.api.dialects import event, response_failure
from tourkit.server.api.replies import DONE, Choice, Usage, error_body, shown_token

_DONE, _CUT, _RUNS = "completed", "incomplete", "in_progress"  # status of responses and of items


def new_id(kind: str) -> str:
    """Return a new id of a response (`resp`) or of an item (`msg`, `fc`, `rs`)."""
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass(slots=True)
class ResponseReply:
    """The answer to one request. It is kept for the length of a stream, and knows what was sent.

    `about`: the fields of the response that repeat the request. `created`: whole seconds since 1970. `reasoning`: show
    the thinking. `logprobs`: the request asks for them. `clock`: returns seconds since 1970.
    """

    id: str
    created: int
    about: dict[str, Any]
    reasoning: bool = True
    logprobs: bool = False
    clock: Callable[[], float] = time.time
    _n_sent: int = 0  # events
    _items: list[dict[str, Any]] = field(default_factory=list)  # of the stream; all but the last one have ended
    _is_open: bool = False  # the last item goes on
    _held: list[dict[str, Any]] = field(default_factory=list)  # log probabilities whose text has not come yet

    # --- whole answers ------------------------------------------------------------------------------------------------

    def completion(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = choices
        status = _status(choice.finish)
        items = [_reasoning_item(choice.reasoning)] if choice.reasoning and self.reasoning else []
        if choice.text or not choice.calls:
            logprobs = self._shown_logprobs(choice.logprobs or ())
            items.append(_message_item(choice.text, logprobs, _DONE if choice.calls else status))
        for call in choice.calls:
            items.append(_call_item(call, status if call is choice.calls[-1] else _DONE))
        return self._response(status, items, usage)

    def _response(self, status: str, items: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """Return a response. Its usage is at the end, where the log of requests looks for it."""
        head = {"id": self.id, "object": "response", "created_at": self.created}
        ended: dict[str, Any] = {
            "completed_at": int(self.clock()) if status == _DONE else None,
            "status": status,
            "error": None,
        }
        ended |= {"incomplete_details": {"reason": "max_output_tokens"} if status == _CUT else None}
        return head | ended | self.about | {"output": items, "usage": _usage(usage) if usage is not None else None}

    # --- streams ------------------------------------------------------------------------------------------------------

    def opening(self, n: int) -> bytes:
        begun = self._response(_RUNS, [])
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def chunk(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        self._held += self._shown_logprobs(delta.logprobs)
        pieces = b""
        if delta.reasoning and self.reasoning:
            pieces += self._into("reasoning") + self._grow("response.reasoning_text.delta", delta.reasoning)
        if delta.text:
            pieces += self._into("message") + self._text(delta.text)
        for piece in delta.calls:
            pieces += self._call_piece(piece)
        return pieces

    def failure(self, exc: TourkitError) -> bytes:
        """Return an error event, and the response as failed."""
        status, body = error_body(exc)
        failed = self._response("failed", self._items)
        code = body["error"]["code"] or "server_error"
        failed |= {"error": {"code": code, "message": body["error"]["message"]}}
        number, self._n_sent = self._n_sent, self._n_sent + 1
        return response_failure(status, body, number) + self._event("response.failed", response=failed)

    def closing(self, choices: Sequence[Choice], usage: Usage, remark: dict[str, Any] | None) -> bytes:
        [choice] = choices
        status = _status(choice.finish)
        pieces = b"" if self._items and self._items[-1]["type"] != "reasoning" else self._into("message")
        pieces += self._close(status)
        response = self._response(status, self._items, usage) | ({"tourkit": remark} if remark is not None else {})
        return pieces + self._event(f"response.{status}", response=response) + DONE

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._n_sent = self._n_sent, self._n_sent + 1
        return event({"type": kind, "sequence_number": number} | fields, kind)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        """Return an event about the only part of the last item."""
        where = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}
        return self._event(kind, **where, **fields)

    def _into(self, kind: str) -> bytes:
        """Return the events that begin an item of a kind; none if the last item is one and goes on."""
        if self._is_open and self._items[-1]["type"] == kind:
            return b""
        pieces = self._close(_DONE)
        item = _reasoning_item("") if kind == "reasoning" else _message_item("", [], _RUNS)
        pieces += self._open(item)
        return pieces + self._part_event("response.content_part.added", part=dict(item["content"][0]))

    def _open(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        self._is_open = True
        shown = item | ({"content": []} if "content" in item else {})
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=shown)

    def _grow(self, kind: str, text: str, **fields: Any) -> bytes:
        self._items[-1]["content"][0]["text"] += text
        return self._part_event(kind, delta=text, **fields)

    def _text(self, text: str) -> bytes:
        logprobs, self._held = self._held, []
        self._items[-1]["content"][0]["logprobs"] += logprobs
        return self._grow("response.output_text.delta", text, logprobs=logprobs)

    def _call_piece(self, piece: CallPiece) -> bytes:
        pieces = b""
        if piece.name:
            pieces += self._close(_DONE) + self._open(_call_item(Call(piece.id, piece.name), _RUNS))
        if piece.arguments:
            item = self._items[-1]
            item["arguments"] += piece.arguments
            where = {"item_id": item["id"], "output_index": len(self._items) - 1}
            pieces += self._event("response.function_call_arguments.delta", **where, delta=piece.arguments)
        return pieces

    def _close(self, status: str) -> bytes:
        """Return the events that end the last item; none if it has ended."""
        if not self._is_open:
            return b""
        item, self._is_open = self._items[-1], False
        index = len(self._items) - 1
        if item["type"] == "function_call":
            item["status"] = status
            about = {"item_id": item["id"], "output_index": index, "name": item["name"]}
            done = self._event("response.function_call_arguments.done", **about, arguments=item["arguments"])
        else:
            [part] = item["content"]
            if item["type"] == "reasoning":
                done = self._part_event("response.reasoning_text.done", text=part["text"])
            else:
                item["status"] = status
                part["logprobs"] += self._held
                self._held = []
                done = self._part_event("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            done += self._part_event("response.content_part.done", part=part)
        return done + self._event("response.output_item.done", output_index=index, item=item)

    def _shown_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        if not self.logprobs:
            return []
        return [
            shown_token(each.token, each.logprob)
            | {"top_logprobs": [shown_token(token, value) for token, value in each.top]}
            for each in logprobs
        ]


def _status(finish: Finish) -> str:
    return _CUT if finish is Finish.LENGTH else _DONE


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.n_prompt,
        "output_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "input_tokens_details": {"cached_tokens": usage.n_cached, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": usage.n_reasoning},
    }


def _reasoning_item(text: str) -> dict[str, Any]:
    """Return an item with the thinking. There is no summary: the text itself is there."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": new_id("rs"), "type": "reasoning", "summary": [], "content": content}


def _message_item(text: str, logprobs: list[dict[str, Any]], status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}]
    return {"id": new_id("msg"), "type": "message", "status": status, "role": "assistant", "content": content}


def _call_item(call: Call, status: str) -> dict[str, Any]:
    about = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": new_id("fc"), "type": "function_call", "status": status} | about
