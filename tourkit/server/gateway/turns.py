"""Decide the turns of models that do not fit into memory together. Pure: it takes events and returns the next steps.

Requests for the model that has the turn are admitted at once. When a request for another model waits, all later
requests wait behind it. When the admitted requests have ended, the turn goes to the model of the first waiting request,
and all requests that wait for this model are admitted. So a request waits for at most one turn of each other model.

A model that stays in memory has a `Turns` of its own, with no other model. So it is loaded and unloaded in the same
way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    FREE = auto()  # no model has the turn
    SWAPPING = auto()  # the last holder is ending, or the new one is loading
    OPEN = auto()  # requests for the holder are admitted
    DRAINING = (
        auto()
    )  # another model waits, or it is to be unloaded: admitted requests finish, and no other is admitted


@dataclass(frozen=True, slots=True)
class Ticket:
    """A waiting request: its own `number` and the `model` that it asks for."""

    number: int
    model: str


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now: admit these requests, evict a model, and load a model once the evicted one is gone."""

    admit: tuple[int, ...] = ()
    evict: str | None = None
    load: str | None = None


NOTHING = Step()


class Turns:
    """The state of the turns: the model that has the turn, the admitted requests, and the waiting ones in order."""

    def __init__(self) -> None:
        self.holder: str | None = None
        self.swaps = 0  # how often one model was evicted for another
        self._swapping = False
        self._leaving = False  # the holder is to be unloaded
        self._inside: set[int] = set()
        self._waiting: list[Ticket] = []

    @property
    def phase(self) -> Phase:
        if self.holder is None:
            return Phase.FREE
        if self._swapping:
            return Phase.SWAPPING
        return Phase.DRAINING if self._waiting or self._leaving else Phase.OPEN

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits, and nothing is loaded or unloaded now."""
        return not (self._inside or self._waiting or self._swapping)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def waiting_for(self, model: str) -> int:
        return sum(ticket.model == model for ticket in self._waiting)

    def numbers_for_others(self, model: str) -> tuple[int, ...]:
        """Return the numbers of the requests that wait for another model than this one."""
        return tuple(ticket.number for ticket in self._waiting if ticket.model != model)

    def model_of(self, number: int) -> str:
        """Return the model that a waiting request asks for."""
        return next(ticket.model for ticket in self._waiting if ticket.number == number)

    def begin(self, model: str) -> Step:
        """Load this model before the first request, because there is memory for one."""
        return self._give_to(model)

    def unload(self, model: str) -> Step:
        """Evict this model when its admitted requests have ended. Later requests wait, and load it again."""
        if self.holder != model:
            return NOTHING
        self._leaving = True
        return self._go_on()

    def ask(self, number: int, model: str) -> Step:
        """Add a request."""
        self._waiting.append(Ticket(number, model))
        return self._go_on()

    def leave(self, number: int) -> Step:
        """Remove a request that has ended or no longer waits."""
        self._inside.discard(number)
        self._waiting = [ticket for ticket in self._waiting if ticket.number != number]
        return self._go_on()

    def loaded(self) -> Step:
        """Admit the requests of the holder. If loading failed they get the error."""
        self._swapping = False
        step = self._let_in([ticket for ticket in self._waiting if ticket.model == self.holder])
        return step if step.admit else self._go_on()

    def unloaded(self) -> Step:
        """The holder is gone, and no other model was to be loaded."""
        self._swapping, self.holder = False, None
        return self._go_on()

    def _go_on(self) -> Step:
        if self._swapping or not (self._waiting or self._leaving):
            return NOTHING
        if not self._leaving and self._waiting[0].model == self.holder:
            return self._let_in(self._first_of_holder())
        if self._inside:
            return NOTHING
        return self._give_to(self._waiting[0].model) if self._waiting else self._leave_free()

    def _first_of_holder(self) -> list[Ticket]:
        """Return the waiting requests for the holder that came before any request for another model."""
        other = next((i for i, ticket in enumerate(self._waiting) if ticket.model != self.holder), None)
        return self._waiting[:other]

    def _let_in(self, tickets: list[Ticket]) -> Step:
        numbers = tuple(ticket.number for ticket in tickets)
        self._inside.update(numbers)
        self._waiting = [ticket for ticket in self._waiting if ticket.number not in self._inside]
        return Step(admit=numbers)

    def _give_to(self, model: str) -> Step:
        evicted, self.holder, self._swapping, self._leaving = self.holder, model, True, False
        self.swaps += evicted not in (None, model)
        return Step(evict=evicted, load=model)

    def _leave_free(self) -> Step:
        self._swapping, self._leaving = True, False
        return Step(evict=self.holder)
