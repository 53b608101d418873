"""Spaces in generated JSON: as in the conversation so far, else as the model writes by itself."""

from __future__ import annotations

import pytest

from tourkit.errors import EngineDead, EngineError, QueueFull
from tourkit.generation import Constraint, Delta, Emit, Finish, Request
from tourkit.grammar.spacing import Spacing

ASKED = {"role": "user", "content": 'Write {"kind":"","count":0}.'}
HELD = Request(messages=(ASKED,), constraint=Constraint.json_object())


class Model:
    """Gives the endings it was made with, one per call, and counts the calls."""

    def __init__(self, *endings: Delta | Exception) -> None:
        self.endings = list(endings)
        self.asked = 0

    def __call__(self, emit: Emit) -> None:
        ending = self.endings[self.asked]
        self.asked += 1
        if isinstance(ending, Exception):
            raise ending
        emit(ending)


def wrote(text: str) -> Delta:
    return Delta(0, text, 8, Finish.LENGTH)


@pytest.mark.parametrize(
    ("text", "compact"),
    [(': "Ann Lee", ', False), (':"Ann Lee","', True), ('":\n  "Ann"', False), (" dohe dohe: x", True), ("", True)],
)
def test_without_an_example_an_answer_is_spaced_as_the_model_writes(text: str, compact: bool) -> None:
    assert Spacing(Model(wrote(text))).compact(HELD) is compact


def test_the_model_is_asked_once() -> None:
    model = Model(wrote(': "Ann'))
    spacing = Spacing(model)

    assert [spacing.compact(HELD), spacing.compact(HELD)] == [False, False]
    assert model.asked == 1


@pytest.mark.parametrize("compact", [False, True])
def test_where_the_conversation_shows_it_the_model_is_not_asked(compact: bool) -> None:
    model = Model()
    turn = {"role": "assistant", "content": '{"a":1}' if compact else '{"a": 1}'}

    assert Spacing(model).compact(Request(messages=(ASKED, turn, ASKED), constraint=HELD.constraint)) is compact
    assert model.asked == 0


def test_an_answer_that_is_no_json_needs_to_know_nothing() -> None:
    model = Model()

    assert not Spacing(model).compact(Request(prompt="x", constraint=Constraint("regex", "a+")))
    assert not Spacing(model).compact(Request(prompt="x"))
    assert model.asked == 0


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (QueueFull("full"), QueueFull),
        (Delta(0, "", 0, Finish.ERROR, EngineError("broken")), EngineError),
        (Delta(0, "", 0, Finish.ABORT), EngineDead),
    ],
)
def test_a_model_that_could_not_be_asked_is_asked_again(ending: Delta | Exception, error: type[Exception]) -> None:
    spacing = Spacing(Model(ending, wrote(': "Ann')))

    with pytest.raises(error):
        spacing.compact(HELD)
    assert not spacing.compact(HELD)
