"""Thinking and content are told apart while an answer is made: by each family's markers, at any cut."""

from __future__ import annotations

import pytest

from tourkit.backends.reasoning import FAMILIES
from tourkit.engine.reasoning_stream import Markers, ReasoningStream, Where

MARKERS: dict[str, Markers] = {markers.name: markers for _, markers in FAMILIES}
THOUGHT, CONTENT = "Он спросил:\n2 < 3? да, </it> is so", 'The answer is **4** < 5.\n\nif a </b> then "ё"'
# Of each family: an answer in its own form.
ANSWERS = {
    "think": f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}",
    "granite": f"<think>{THOUGHT}</think>\n<response>{CONTENT}</response>",
    "mistral": f"[THINK]{THOUGHT}[/THINK]{CONTENT}",
    "gemma-4": f"<|channel>thought\n{THOUGHT}\n<channel|>{CONTENT}",
    "gpt-oss": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{CONTENT}",
}
FAMILY = pytest.mark.parametrize("family", ANSWERS)


def split(text: bytes, family: str, *, size: int = 1, where: Where = Where.LEAD, cut: bool = False) -> tuple[str, str]:
    """Return thinking and content of an answer that comes in pieces of `size` bytes."""
    stream = ReasoningStream(MARKERS[family], where)
    parts = [stream.feed(text[at : at + size]) for at in range(0, len(text), size)]
    parts.append(stream.close(cut=cut))
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


def test_every_family_has_an_answer_here() -> None:
    assert set(ANSWERS) == set(MARKERS)


@FAMILY
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_nothing_is_lost_however_the_answer_is_cut_into_pieces(family: str, size: int) -> None:
    assert split(ANSWERS[family].encode(), family, size=size) == (THOUGHT, CONTENT)


@FAMILY
def test_an_answer_that_is_cut_off_holds_no_part_of_a_marker(family: str) -> None:
    whole = ANSWERS[family].encode()
    for end in range(len(whole)):
        thought, content = split(whole[:end], family, cut=True)
        kept = (THOUGHT, CONTENT)
        assert kept[0].startswith(thought.rstrip("\N{REPLACEMENT CHARACTER}"))
        assert kept[1].startswith(content.rstrip("\N{REPLACEMENT CHARACTER}"))


@FAMILY
def test_the_thinking_may_have_begun_in_the_prompt(family: str) -> None:
    markers = MARKERS[family]
    rest = ANSWERS[family].partition(markers.begin.rstrip())[2]

    assert split(rest.encode(), family, where=Where.THINKING) == (THOUGHT, CONTENT)


@FAMILY
@pytest.mark.parametrize("text", ["", "\n\n Hello", "5 < 7", "<b>bold</b>", "assistance", "[1, 2]", "<", " "])
def test_an_answer_without_thinking_is_left_as_it_is(family: str, text: str) -> None:
    assert split(text.encode(), family) == ("", text)


@FAMILY
def test_what_the_model_says_to_end_the_thinking_early_is_no_text(family: str) -> None:
    markers = MARKERS[family]
    answer = markers.begin + THOUGHT + markers.end + CONTENT

    assert split(answer.encode(), family) == (THOUGHT, CONTENT)


@FAMILY
def test_thinking_that_begins_again_before_the_content_is_thinking(family: str) -> None:
    markers = MARKERS[family]
    again = "<|start|>assistant" if markers.channels else ""
    answer = f"{markers.begin}one{markers.close}{again}{markers.begin}two{markers.end}{CONTENT}"

    assert split(answer.encode(), family) == ("one\n\ntwo", CONTENT)


def test_a_marker_inside_the_content_is_text_if_text_can_spell_it() -> None:
    """An answer may be about these markers."""
    about = 'Use re.sub("<think>.*?</think>", "", text).'

    assert split(f"<think>hm</think>{about}".encode(), "think") == ("hm", about)


@pytest.mark.parametrize("family", ["gemma-4", "gpt-oss"])
def test_a_control_token_inside_the_content_begins_thinking_again(family: str) -> None:
    markers = MARKERS[family]
    apart = "<|end|><|start|>assistant" if markers.channels else ""
    answer = f"{markers.begin}a{markers.end}one{apart}{markers.begin}b{markers.end} two"

    assert split(answer.encode(), family) == ("a\n\nb", "one two")


def test_the_commentary_of_gpt_oss_is_thinking() -> None:
    """It is for tools. Only the channel "final" is for the reader."""
    answer = (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Done."
    )

    assert split(answer.encode(), "gpt-oss") == ("{}", "Done.")
