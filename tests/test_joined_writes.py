"""The header of an answer leaves together with the first bytes of its body. Transports stand in for sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tourkit.connections import JoinedWrites

HEADER = b"HTTP/1.1 200 OK\r\n\r\n"


class Recorded(asyncio.Transport):
    """Records what is done to it. The buffer holds seven bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.done.append(data)

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def get_write_buffer_size(self) -> int:
        return 7


def done(use: Callable[[JoinedWrites], object], turns: int = 0) -> list[bytes | str]:
    """Return what is done to a transport in one turn of the loop, and in the next `turns`."""

    async def run() -> list[bytes | str]:
        transport = Recorded()
        use(JoinedWrites(transport, asyncio.get_running_loop()))
        for _ in range(turns):
            await asyncio.sleep(0)
        return list(transport.done)

    return asyncio.run(run())


def writes(*blocks: bytes) -> Callable[[JoinedWrites], object]:
    return lambda joined: [joined.write(block) for block in blocks]


def test_a_header_and_the_first_bytes_of_its_body_are_one_write() -> None:
    assert done(writes(HEADER, b"one", b"two"), turns=1) == [HEADER + b"one", b"two"]


def test_a_header_without_a_body_leaves_in_the_next_turn_of_the_loop() -> None:
    assert done(writes(HEADER)) == []
    assert done(writes(HEADER), turns=1) == [HEADER]


def test_two_headers_leave_in_their_order() -> None:
    more = b"HTTP/1.1 100 Continue\r\n\r\n"

    assert done(writes(more, HEADER, b"one"), turns=1) == [more + HEADER, b"one"]


def test_the_end_of_a_connection_comes_after_the_header() -> None:
    def answer(joined: JoinedWrites) -> None:
        joined.write(HEADER)
        joined.close()

    assert done(answer, turns=1) == [HEADER, "close"]


def test_a_connection_that_is_broken_off_sends_no_header_after_it() -> None:
    def answer(joined: JoinedWrites) -> None:
        joined.write(HEADER)
        joined.abort()

    assert done(answer, turns=1) == ["abort"]


def test_a_header_that_waits_counts_as_unsent() -> None:
    sizes: list[int] = []

    def answer(joined: JoinedWrites) -> None:
        joined.write(HEADER)
        sizes.append(joined.get_write_buffer_size())
        joined.write(b"one")
        sizes.append(joined.get_write_buffer_size())

    done(answer)
    assert sizes == [len(HEADER) + 7, 7]
