"""Which text of a stream of token bytes may be sent."""

from __future__ import annotations

import pytest

from tourkit.engine.stop_strings import TextStream


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    stream = TextStream()
    pieces = "дом".encode()

    shown = [stream.feed(pieces[i : i + 1]) for i in range(len(pieces))]

    assert shown == ["", "д", "", "о", "", "м"]


def test_bytes_that_are_no_utf8_become_the_replacement_character() -> None:
    stream = TextStream()

    assert stream.feed(b"a\xff") + stream.close() == "a\N{REPLACEMENT CHARACTER}"


def test_an_unfinished_character_at_the_end_is_not_lost() -> None:
    stream = TextStream()

    assert stream.feed("д".encode()[:1]) == ""
    assert stream.close() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "shown", "stopped"),
    [
        ("hello world", (), "hello world", False),
        ("hello END world", ("END",), "hello ", True),
        ("EEEND", ("END",), "EE", True),
        ("hello EN", ("END",), "hello EN", False),
        ("one two", ("two", "one"), "", True),
        ("a\n\nb", ("\n\n",), "a", True),
        ("ababac", ("abac",), "ab", True),
    ],
)
def test_stop_strings_whatever_the_size_of_the_pieces(
    text: str, stop: tuple[str, ...], shown: str, stopped: bool, size: int
) -> None:
    stream = TextStream(stop)
    raw = text.encode()

    out = "".join(stream.feed(raw[i : i + size]) for i in range(0, len(raw), size)) + stream.close()

    assert (out, stream.stopped) == (shown, stopped)


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    stream = TextStream(("END",))

    assert stream.feed(b"hello E") == "hello "
    assert stream.feed(b"x") == "Ex"


@pytest.mark.parametrize(
    ("text", "found"), [("one two", "two"), ("one END two", "END"), ("one EN", ""), ("a two END", "two")]
)
def test_the_stop_string_that_ended_the_text_is_known(text: str, found: str) -> None:
    stream = TextStream(("END", "two"))

    for char in text:
        stream.feed(char.encode())
    stream.close()

    assert stream.found == found
