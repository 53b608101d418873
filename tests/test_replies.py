"""How answers are written as OpenAI's JSON."""

from __future__ import annotations

import json
from typing import Any

from tourkit.calling.tools import CallPiece
from tourkit.generation import Delta, Finish
from tourkit.server.api.replies import ChatReply, Usage


def chunks(delta: Delta) -> list[dict[str, Any]]:
    """Return the only choice of each chunk that a delta makes."""
    sent = ChatReply("id", 0, "tool").chunk(delta, lambda: Usage(1, 1, 0)).decode()
    return [json.loads(event.removeprefix("data: "))["choices"][0] for event in sent.split("\n\n") if event]


def test_each_chunk_has_one_piece_of_one_call_because_clients_read_only_the_first() -> None:
    head, begin = CallPiece(0, "", "call_a", "get_weather"), CallPiece(0, '{"')
    rest, other = CallPiece(0, "}"), CallPiece(1, "", "call_b", "get_time")

    found = chunks(Delta(0, "text", 4, Finish.TOOL_CALLS, calls=(head, begin, rest, other)))

    first = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "get_weather", "arguments": '{"}'}}
    second = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "get_time", "arguments": ""}}
    assert [choice["delta"] for choice in found] == [
        {"content": "text", "tool_calls": [first]},
        {"tool_calls": [second]},
    ]
    assert [choice["finish_reason"] for choice in found] == [None, "tool_calls"]


def test_pieces_of_one_call_are_one_piece_of_a_chunk() -> None:
    [choice] = chunks(Delta(0, "", 2, calls=(CallPiece(0, "", "call_a", "get_time"), CallPiece(0, '{"'))))

    assert [piece["function"]["arguments"] for piece in choice["delta"]["tool_calls"]] == ['{"']
