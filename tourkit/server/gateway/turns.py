"""Whose turn it is among models that do not fit into memory together. Pure: events in, what is to be done now out.

Requests for the model that has the turn are let in as they come. Once one for another model waits, those that come
later wait behind it; when those inside have ended the turn goes to the model that was asked for first, with all that
wait for it. So a request waits for at most one turn of each other model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    FREE = auto()  # nobody has the turn
    SWAPPING = auto()  # the last holder is being ended, or the new one is being loaded
    OPEN = auto()  # requests for the holder are let in
    DRAINING = auto()  # another model waits: those inside finish, and nobody else is let in


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that waits. `number` is its own, `model` the one it asks for."""

    number: int
    model: str


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done now: requests to let in, and a model to load as soon as the one to evict is gone."""

    admit: tuple[int, ...] = ()
    evict: str | None = None
    load: str | None = None


NOTHING = Step()


class Turns:
    """The state: who has the turn, who is inside, who waits, in the order of coming."""

    def __init__(self) -> None:
        self.holder: str | None = None
        self.swaps = 0  # times that a model had to go for another
        self._swapping = False
        self._inside: set[int] = set()
        self._waiting: list[Ticket] = []

    @property
    def phase(self) -> Phase:
        if self.holder is None:
            return Phase.FREE
        if self._swapping:
            return Phase.SWAPPING
        return Phase.DRAINING if self._waiting else Phase.OPEN

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def waiting_for(self, model: str) -> int:
        return sum(ticket.model == model for ticket in self._waiting)

    def begin(self, model: str) -> Step:
        """Nobody has asked yet: load this one, for there is room for one."""
        return self._give_to(model)

    def ask(self, number: int, model: str) -> Step:
        """A request has come."""
        self._waiting.append(Ticket(number, model))
        return self._go_on()

    def leave(self, number: int) -> Step:
        """A request has ended, or will wait no longer."""
        self._inside.discard(number)
        self._waiting = [ticket for ticket in self._waiting if ticket.number != number]
        return self._go_on()

    def loaded(self) -> Step:
        """The holder has been loaded, or could not be: its requests are let in either way, to hear of it."""
        self._swapping = False
        step = self._let_in([ticket for ticket in self._waiting if ticket.model == self.holder])
        return step if step.admit else self._go_on()

    def _go_on(self) -> Step:
        if self._swapping or not self._waiting:
            return NOTHING
        if self._waiting[0].model == self.holder:
            return self._let_in(self._first_of_holder())
        return NOTHING if self._inside else self._give_to(self._waiting[0].model)

    def _first_of_holder(self) -> list[Ticket]:
        """Those that came before anybody who waits for another model."""
        other = next((i for i, ticket in enumerate(self._waiting) if ticket.model != self.holder), None)
        return self._waiting[:other]

    def _let_in(self, tickets: list[Ticket]) -> Step:
        numbers = tuple(ticket.number for ticket in tickets)
        self._inside.update(numbers)
        self._waiting = [ticket for ticket in self._waiting if ticket.number not in self._inside]
        return Step(admit=numbers)

    def _give_to(self, model: str) -> Step:
        evicted, self.holder, self._swapping = self.holder, model, True
        self.swaps += evicted is not None
        return Step(evict=evicted, load=model)
