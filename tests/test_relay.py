"""The gateway passes a worker's stream in whole pieces, so that an error never follows half of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tourkit.server.gateway.relay import whole_pieces

ENDS = b"\n\n"
STREAM = b"data: one\n\ndata: two\n\n: waiting\n\ndata: [DONE]\n\n"


def passed(*blocks: bytes, dies: bool = False) -> list[bytes]:
    """Return what is passed of a stream that comes in blocks. `dies`: the worker ends the connection after them."""
    got: list[bytes] = []

    async def worker() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block
        if dies:
            raise ConnectionResetError

    async def run() -> None:
        async for piece in whole_pieces(worker(), ENDS):
            got.append(piece)

    try:
        asyncio.run(run())
    except ConnectionResetError:
        assert dies
    return got


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 12, 13, len(STREAM)])
def test_each_block_ends_with_a_whole_piece_however_the_stream_is_cut(size: int) -> None:
    got = passed(*(STREAM[i : i + size] for i in range(0, len(STREAM), size)))

    assert b"".join(got) == STREAM
    assert all(block.endswith(ENDS) for block in got)


def test_half_a_piece_of_a_worker_that_died_is_left_out() -> None:
    assert passed(b"data: one\n\ndata: t", b"w", dies=True) == [b"data: one\n\n"]


def test_an_end_without_the_mark_is_passed() -> None:
    assert passed(b"data: one\n\nrest") == [b"data: one\n\n", b"rest"]
