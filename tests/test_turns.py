"""Tables of events: requests admitted, models loaded and evicted. And every request gets its turn."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tourkit.server.gateway.turns import NOTHING, Phase, Step, Turns

Event = Callable[[Turns], Step]


def ask(number: int, model: str) -> Event:
    return lambda turns: turns.ask(number, model)


def leave(number: int) -> Event:
    return lambda turns: turns.leave(number)


def begin(model: str) -> Event:
    return lambda turns: turns.begin(model)


def loaded() -> Event:
    return lambda turns: turns.loaded()


def admit(*numbers: int) -> Step:
    return Step(admit=numbers)


def load(model: str, evict: str | None = None) -> Step:
    return Step(evict=evict, load=model)


def unload(model: str) -> Event:
    return lambda turns: turns.unload(model)


def unloaded() -> Event:
    return lambda turns: turns.unloaded()


def evict(model: str) -> Step:
    return Step(evict=model)


CASES: dict[str, list[tuple[Event, Step]]] = {
    "the first request loads its model and is admitted then": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
    ],
    "one model is loaded before the first request, and nothing is evicted for that request": [
        (begin("a"), load("a")),
        (loaded(), NOTHING),
        (ask(1, "a"), admit(1)),
    ],
    "while no request waits for another model, requests are admitted at once": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "a"), admit(2)),
        (leave(1), NOTHING),
        (ask(3, "a"), admit(3)),
    ],
    "another model waits until the admitted requests have ended": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "a"), admit(2)),
        (ask(3, "b"), NOTHING),
        (leave(1), NOTHING),
        (leave(2), load("b", evict="a")),
        (loaded(), admit(3)),
    ],
    "a model without running requests is evicted at once": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (leave(1), NOTHING),
        (ask(2, "b"), load("b", evict="a")),
    ],
    "a request waits behind an earlier request for another model": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "b"), NOTHING),
        (ask(3, "a"), NOTHING),
        (leave(1), load("b", evict="a")),
        (loaded(), admit(2)),
        (leave(2), load("a", evict="b")),
        (loaded(), admit(3)),
    ],
    "a turn admits all requests that wait for the model when it is loaded": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "b"), NOTHING),
        (ask(3, "c"), NOTHING),
        (ask(4, "b"), NOTHING),
        (leave(1), load("b", evict="a")),
        (ask(5, "b"), NOTHING),
        (loaded(), admit(2, 4, 5)),
        (ask(6, "b"), NOTHING),
        (leave(2), NOTHING),
        (leave(4), NOTHING),
        (leave(5), load("c", evict="b")),
        (loaded(), admit(3)),
    ],
    "the turn goes to the model of the first waiting request": [
        (begin("a"), load("a")),
        (ask(1, "c"), NOTHING),
        (ask(2, "b"), NOTHING),
        (ask(3, "a"), NOTHING),
        (loaded(), admit(3)),
        (leave(3), load("c", evict="a")),
        (loaded(), admit(1)),
        (leave(1), load("b", evict="c")),
    ],
    "a waiting request that hangs up is forgotten": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "b"), NOTHING),
        (leave(2), NOTHING),
        (leave(1), NOTHING),
        (ask(3, "a"), admit(3)),
    ],
    "requests behind one that hangs up are admitted, except those behind another waiting request": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "b"), NOTHING),
        (ask(3, "a"), NOTHING),
        (ask(4, "a"), NOTHING),
        (ask(5, "c"), NOTHING),
        (ask(6, "a"), NOTHING),
        (leave(2), admit(3, 4)),
        (leave(1), NOTHING),
        (leave(3), NOTHING),
        (leave(4), load("c", evict="a")),
    ],
    "if all requests of a model hang up while it loads, the next model gets the turn after the load": [
        (ask(1, "a"), load("a")),
        (ask(2, "b"), NOTHING),
        (leave(1), NOTHING),
        (loaded(), load("b", evict="a")),
        (loaded(), admit(2)),
    ],
    "if all requests hang up during a load, the loaded model stays": [
        (ask(1, "a"), load("a")),
        (leave(1), NOTHING),
        (loaded(), NOTHING),
        (ask(2, "a"), admit(2)),
    ],
    "if a model cannot be loaded, its requests are admitted to get the error, and it is evicted": [
        (ask(1, "a"), load("a")),
        (ask(2, "b"), NOTHING),
        (loaded(), admit(1)),
        (leave(1), load("b", evict="a")),
    ],
    "a model is unloaded at once if no request runs": [
        (begin("a"), load("a")),
        (loaded(), NOTHING),
        (unload("a"), evict("a")),
        (unloaded(), NOTHING),
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
    ],
    "a model is unloaded when its admitted requests have ended, and a request that waits then loads it again": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (unload("a"), NOTHING),
        (ask(2, "a"), NOTHING),
        (leave(1), load("a", evict="a")),
        (loaded(), admit(2)),
    ],
    "a request that comes while a model is unloaded loads it again when it is gone": [
        (begin("a"), load("a")),
        (loaded(), NOTHING),
        (unload("a"), evict("a")),
        (ask(1, "a"), NOTHING),
        (unloaded(), load("a")),
        (loaded(), admit(1)),
    ],
    "a model that is unloaded makes way for the model of a waiting request": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (ask(2, "b"), NOTHING),
        (unload("a"), NOTHING),
        (leave(1), load("b", evict="a")),
        (loaded(), admit(2)),
    ],
    "a model is unloaded after its load has ended": [
        (begin("a"), load("a")),
        (unload("a"), NOTHING),
        (loaded(), evict("a")),
        (unloaded(), NOTHING),
    ],
    "unloading a model that is not loaded does nothing": [
        (begin("a"), load("a")),
        (loaded(), NOTHING),
        (unload("b"), NOTHING),
        (ask(1, "a"), admit(1)),
    ],
    "leaving twice is the same as leaving once": [
        (ask(1, "a"), load("a")),
        (loaded(), admit(1)),
        (leave(1), NOTHING),
        (leave(1), NOTHING),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_every_event_has_its_step(case: str) -> None:
    turns = Turns()

    for event, step in CASES[case]:
        assert event(turns) == step


def test_the_phase_says_what_is_going_on() -> None:
    turns = Turns()
    phases = [turns.phase]
    for event in (ask(1, "a"), loaded(), ask(2, "b"), leave(1), loaded()):
        event(turns)
        phases.append(turns.phase)

    assert phases == [Phase.FREE, Phase.SWAPPING, Phase.OPEN, Phase.DRAINING, Phase.SWAPPING, Phase.OPEN]


def test_the_phase_of_a_model_that_is_to_be_unloaded_is_draining() -> None:
    turns = Turns()
    for event in (ask(1, "a"), loaded(), unload("a")):
        event(turns)
    draining = turns.phase
    for event in (leave(1), unloaded()):
        event(turns)

    assert (draining, turns.phase, turns.swaps) == (Phase.DRAINING, Phase.FREE, 0)


def test_a_swap_is_counted_when_a_model_has_to_go() -> None:
    turns = Turns()
    for event in (begin("a"), loaded(), ask(1, "a"), leave(1)):
        event(turns)
    assert turns.swaps == 0

    turns.ask(2, "b")
    assert turns.swaps == 1


def test_who_waits_is_counted_by_model() -> None:
    turns = Turns()
    for event in (begin("a"), ask(1, "a"), ask(2, "b"), ask(3, "b")):
        event(turns)

    assert (turns.waiting, turns.waiting_for("a"), turns.waiting_for("b")) == (3, 1, 2)


@pytest.mark.parametrize("seed", range(50))
def test_under_any_load_every_request_has_its_turn_after_at_most_one_of_each_other_model(seed: int) -> None:
    """Requests come, end and hang up at random. Only requests of the holder are admitted, and none waits too long."""
    world = World(random.Random(seed))
    for number in range(300):
        world.happen(number)
    while world.inside or world.asked or world.swapping:
        world.finish_something()

    assert world.turns.phase in (Phase.OPEN, Phase.FREE)
    assert world.turns.waiting == 0
    assert world.longest_wait <= len(MODELS)


MODELS = ("a", "b", "c", "d")


class World:
    """Simulated requests, and memory for one model. It carries out the steps."""

    def __init__(self, chance: random.Random) -> None:
        self.turns = Turns()
        self.chance = chance
        self.asked: dict[int, tuple[str, int]] = {}  # request → its model, and the count of turns when it came
        self.inside: dict[int, str] = {}
        self.swapping = False
        self.given = 0
        self.longest_wait = 0

    def happen(self, number: int) -> None:
        kind = self.chance.random()
        if kind < 0.5:
            model = self.chance.choice(MODELS)
            self.asked[number] = (model, self.given)
            self.obey(self.turns.ask(number, model))
        elif kind < 0.6 and self.asked:
            gone = self.chance.choice(list(self.asked))
            del self.asked[gone]
            self.obey(self.turns.leave(gone))
        else:
            self.finish_something()

    def finish_something(self) -> None:
        if self.swapping:
            self.swapping = False
            self.obey(self.turns.loaded())
        elif self.inside:
            done = self.chance.choice(list(self.inside))
            del self.inside[done]
            self.obey(self.turns.leave(done))

    def obey(self, step: Step) -> None:
        for number in step.admit:
            model, before = self.asked.pop(number)
            assert model == self.turns.holder
            self.inside[number] = model
            self.longest_wait = max(self.longest_wait, self.given - before)
        if step.load is not None:
            assert not self.inside
            assert not self.swapping
            assert step.load != step.evict
            self.swapping = True
            self.given += 1
