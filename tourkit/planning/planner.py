"""Which variants fill the roles here, on what, and how much context they get: for the whole set at once.

Decides and explains; reads no file, loads nothing. In this order: as many roles as can be stay in memory together, each
role gets the model named first for it, more bits a weight, a finer KV cache, a longer context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tourkit.bundle.index import Index
from tourkit.errors import NotSo, UsageError
from tourkit.hardware.probe import Hardware
from tourkit.launch import ALL_LAYERS, NO_LAYERS, Launch
from tourkit.manifest.models import ROLES
from tourkit.planning.model_shape import Shape
from tourkit.planning.options import Option, PassedOver, options_of
from tourkit.planning.packing import Assignment, Budget, SizedOption, assign, budget_of, fits_alone, pack
from tourkit.planning.plan import CPU, Device, Memory, Placement, Plan
from tourkit.planning.upgrades import grow
from tourkit.units import counted, size_text

# Tokens a sequence and sequences at once, the first that lets every role be filled.
_FLOORS = ((4096, 4), (4096, 2), (2048, 2), (2048, 1), (1024, 1))
# Where growing ends by itself: on a CPU a longer prompt takes minutes. --context goes further.
_LONGEST = {True: 32_768, False: 8192}


def plan(
    index: Index,
    hardware: Hardware,
    *,
    roles: tuple[str, ...] = (),
    context: int | None = None,
    slots: int | None = None,
    shapes: Mapping[tuple[str, str], Shape] | None = None,
) -> Plan:
    """Fill the roles. `shapes` by model and quant; where one is missing it is guessed from the size of the file.

    Raises UsageError for a role the bundle does not have, NotSo when none, or one of `roles`, can be filled.
    """
    for role in roles:
        if role not in index.roles:
            raise UsageError(f"role {role!r}: the bundle fills {', '.join(index.roles)} only: choose one of them")
    order = sorted(roles or index.roles, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
    wanted = {role: index.roles[role] for role in order}
    planner = _Planner(index, hardware, wanted, shapes or {})
    floors = list(dict.fromkeys((context or least, slots or most) for least, most in _FLOORS))
    settled: dict[tuple[int, int], Assignment] = {}
    for floor in floors:
        settled[floor] = planner.assign(*floor)
        if planner.filled(settled[floor]) == planner.most_filled:
            break
    floor = max(settled, key=lambda floor: planner.filled(settled[floor]))  # the first of equals
    made = planner.finish(settled[floor], floor, grow_context=context is None, most_slots=slots or _FLOORS[0][1])
    if made.unfilled and (roles or not made.placements):
        raise NotSo(made.unfilled[0])
    return made


class _Planner:
    """The forms of every model in question, and the steps that choose among them."""

    def __init__(
        self,
        index: Index,
        hardware: Hardware,
        wanted: Mapping[str, tuple[str, ...]],
        shapes: Mapping[tuple[str, str], Shape],
    ) -> None:
        self._hardware = hardware
        self._wanted = wanted
        self._models = {model.id: model for model in index.models}
        self._budget: Budget = budget_of(hardware)
        self._forms: dict[str, list[Option]] = {}
        self._refused: dict[str, list[PassedOver]] = {}
        for model_id in dict.fromkeys(id_ for ids in wanted.values() for id_ in ids):
            if model_id in self._models:
                found = options_of(index, self._models[model_id], hardware, shapes)
                self._forms[model_id], self._refused[model_id] = found

    def filled(self, settled: Assignment) -> tuple[int, int]:
        """How many roles have a model, and how many of them are on a GPU."""
        chosen = [settled.choices[model_id].form.on_gpu for model_id in settled.assigned.values()]
        return len(chosen), sum(chosen)

    @property
    def most_filled(self) -> tuple[int, int]:
        """What `filled` would be if memory were no matter."""
        kinds = [[form.on_gpu for id_ in ids for form in self._forms.get(id_, [])] for ids in self._wanted.values()]
        return sum(bool(each) for each in kinds), sum(any(each) for each in kinds)

    # --- choosing -------------------------------------------------------------------------------------------------

    def assign(self, context: int, slots: int) -> Assignment:
        """Models and residency, everything at its smallest: `context` tokens in `slots` sequences."""
        bases = {}
        for model_id, forms in self._forms.items():
            base = self._base(forms, context, slots)
            if base is not None:
                bases[model_id] = base
        options = {}
        for role, ids in self._wanted.items():
            fitting = [id_ for id_ in ids if id_ in bases]
            # Where there is a GPU, what it cannot hold gives way to what it can: taking turns beats a CPU.
            found = [id_ for id_ in fitting if bases[id_].form.on_gpu] or fitting
            if found:
                options[role] = found
        return assign(options, bases, self._budget)

    def _base(self, forms: list[Option], context: int, slots: int) -> SizedOption | None:
        """The smallest choice that fits by itself: on a GPU if there is one, else on the CPU; None for none."""
        for on_gpu in (True, False):
            choices = [self._choice(form, context, slots) for form in forms if form.on_gpu is on_gpu]
            fitting = [choice for choice in choices if fits_alone(choice, self._budget)]
            if fitting:
                return min(fitting, key=lambda choice: (choice.gpu.total, choice.ram.total))
        return None

    def _choice(self, form: Option, context: int, slots: int) -> SizedOption:
        """A form at its smallest."""
        most = form.shape.context or self._models[form.model].context
        most = min(most, self._models[form.model].context)
        layers = ALL_LAYERS if form.on_gpu else NO_LAYERS
        return SizedOption(form, min(context, most), slots, form.cache_types[0], layers)

    def _longest(self, choice: SizedOption) -> int:
        """Tokens a sequence may grow to by itself."""
        most = self._choice(choice.form, 1 << 30, 1).context
        return min(most, _LONGEST[choice.form.on_gpu])

    def finish(self, settled: Assignment, floor: tuple[int, int], *, grow_context: bool, most_slots: int) -> Plan:
        """Use the memory that is left, then say what was decided and why."""
        order = list(dict.fromkeys(settled.assigned.values()))
        choices = {model_id: settled.choices[model_id] for model_id in order}
        longest = {id_: self._longest(choice) for id_, choice in choices.items()} if grow_context else {}
        choices = grow(choices, self._forms, settled.resident, self._budget, most_slots, longest)
        where = pack(choices, settled.resident, self._budget) or {}
        placements = tuple(self._placement(id_, choices, settled, where) for id_ in order)
        return Plan(
            placements=placements,
            notes=tuple(self._notes(settled, choices, floor, most_slots)),
            passed_over=tuple(self._passed_over(settled, choices)),
            unfilled=tuple(self._unfilled(settled, floor)),
            devices=self._devices(placements),
            threads=self._hardware.threads,
        )

    # --- saying ---------------------------------------------------------------------------------------------------

    def _placement(
        self, model_id: str, choices: dict[str, SizedOption], settled: Assignment, where: Mapping[str, str]
    ) -> Placement:
        roles = tuple(role for role, id_ in settled.assigned.items() if id_ == model_id)
        resident = model_id in settled.resident
        fallbacks = tuple(
            self._placed(choice, roles, device, resident=resident)
            for choice, device in self._fallbacks(model_id, roles, choices, settled, where)
        )
        made = self._placed(choices[model_id], roles, where[model_id], resident=resident)
        return replace(made, fallbacks=fallbacks)

    def _placed(self, choice: SizedOption, roles: tuple[str, ...], device: str, *, resident: bool) -> Placement:
        shares = [] if choice.gpu_layers.is_none else [(device, choice.gpu)]
        shares.append((CPU, choice.ram))
        launch = Launch(
            model=choice.form.model,
            quant=choice.form.quant,
            stack=choice.form.stack,
            path=choice.form.path,
            slots=choice.slots,
            context=choice.context,
            threads=self._hardware.threads,
            gpu_layers=choice.gpu_layers,
            cache_type=choice.cache_type,
            lora=choice.form.lora,
        )
        return Placement(
            roles=roles,
            launch=launch,
            device=device,
            resident=resident,
            size=choice.form.size,
            memory=tuple(Memory(id_, s.weights, s.cache, s.overhead, s.total) for id_, s in shares),
            numbers_from=choice.form.shape.source,
        )

    def _fallbacks(
        self,
        model_id: str,
        roles: tuple[str, ...],
        choices: dict[str, SizedOption],
        settled: Assignment,
        where: Mapping[str, str],
    ) -> list[tuple[SizedOption, str]]:
        """The best form for each other stack and kind of device, and the lightest for this one; then the next models.

        Each fits in the place of what it stands in for, all others staying as they are.
        """
        now = choices[model_id]
        forms = [form for form in self._forms[model_id] if form != now.form]
        found: list[tuple[SizedOption, str]] = []
        own = (now.form.stack, now.form.on_gpu)
        seen = {own}

        def kept(as_model: str) -> frozenset[str]:
            if model_id not in settled.resident:
                return settled.resident
            return settled.resident - {model_id} | {as_model}

        def add(form: Option, *, as_model: str) -> bool:
            smallest = self._choice(form, now.context, now.slots)
            for choice in (smallest, self._choice(form, min(now.context, _FLOORS[0][0]), now.slots)):
                others = {id_: other for id_, other in choices.items() if id_ != model_id}
                place = pack({**others, as_model: choice}, kept(as_model), self._budget)
                if place is not None:
                    found.append((choice, place[as_model]))
                    return True
            return False

        def order(form: Option) -> tuple[bool, bool, tuple[int, int, int]]:
            # On the GPU first: a CPU is many times slower, whatever it runs; there the same file is as good as any.
            return form.on_gpu, not form.on_gpu and form.quant == now.form.quant, form.rank

        lighter = [form for form in forms if form.size < now.form.size and form.on_gpu is now.form.on_gpu]
        lightest = min(lighter, key=lambda form: form.size, default=None)
        for form in sorted(forms, key=order, reverse=True):
            place = (form.stack, form.on_gpu)
            if (place not in seen or (place == own and form == lightest)) and add(form, as_model=model_id):
                seen.add(place)
        for other in self._wanted[roles[0]]:
            if other == model_id or not all(other in self._wanted[role] for role in roles):
                continue
            if other in choices:  # loaded for other roles anyway: its worker is shared
                found.append((choices[other], where[other]))
            else:
                any(add(form, as_model=other) for form in sorted(self._forms.get(other, []), key=order, reverse=True))
        return found

    def _notes(
        self, settled: Assignment, choices: dict[str, SizedOption], floor: tuple[int, int], most_slots: int
    ) -> list[str]:
        notes = list(self._hardware.problems)
        for role, model_id in settled.assigned.items():
            for earlier in self._wanted[role]:
                if earlier == model_id:
                    break
                notes.append(f"{role}: {earlier} passed over: {self._why_not(earlier, settled, floor)}")
        turns = [role for role, model_id in settled.assigned.items() if model_id not in settled.resident]
        if turns:
            notes.append(f"{', '.join(turns)}: take turns, for not everything fits at once")
        for choice in choices.values():
            if choice.slots < most_slots:
                size = f"{counted(choice.slots, 'sequence')} of {choice.context} tokens"
                notes.append(f"{choice.form.model}: {size} at once, for no more fit")
            if choice.form.shape.source == "the file's size alone":
                notes.append(f"{choice.form.model}: no header tells its shape: its KV cache is a guess from the size")
        return notes

    def _why_not(self, model_id: str, settled: Assignment, floor: tuple[int, int]) -> str:
        """Why a model that was named before the chosen one is not used."""
        forms = self._forms.get(model_id, [])
        if not forms:
            return _grouped(self._refused.get(model_id, [])) or "the bundle has no variant of it"
        smallest = min((self._choice(form, *floor) for form in forms), key=lambda c: (not c.form.on_gpu, c.total))
        alone = "" if model_id in settled.choices else ", even alone"
        beside = "" if alone else " beside the others"
        return f"at least {size_text(smallest.total)} do not fit{beside}{alone}"

    def _unfilled(self, settled: Assignment, floor: tuple[int, int]) -> list[str]:
        lines = []
        for role, ids in self._wanted.items():
            if role not in settled.assigned:
                reasons = "; ".join(f"{id_}: {self._why_not(id_, settled, floor)}" for id_ in ids)
                usable = ", ".join(f"{size_text(size)} of {name}" for name, size in self._budget.usable())
                lines.append(f"role {role}: nothing in the bundle fits {usable} or runs here: {reasons}")
        return lines

    def _passed_over(self, settled: Assignment, choices: dict[str, SizedOption]) -> list[PassedOver]:
        """Every variant but the chosen ones, in the order of the models, with the reason."""
        passed = []
        for model_id, forms in self._forms.items():
            passed += self._refused[model_id]
            now = choices.get(model_id)
            for quant in dict.fromkeys(form.quant for form in forms):
                if now is None:
                    passed.append(PassedOver(model_id, quant, "the roles that name this model got another"))
                elif quant != now.form.quant:
                    same = [form for form in forms if form.quant == quant]
                    best = next((form for form in same if form.on_gpu is now.form.on_gpu), same[0])
                    passed.append(PassedOver(model_id, quant, self._why_not_this(best, now, choices, settled)))
        return passed

    def _why_not_this(
        self, form: Option, now: SizedOption, choices: dict[str, SizedOption], settled: Assignment
    ) -> str:
        if form.rank < now.form.rank and form.on_gpu is now.form.on_gpu:
            if form.rank[0] == 0:
                return f"on a CPU 16 bits are half as fast as {now.form.quant}, for the same answers"
            return f"{now.form.quant} on {now.form.stack} is better and fits"
        if now.form.on_gpu and not form.on_gpu:
            return "it would run on the CPU"
        tried = replace(
            now, form=form, cache_type=form.cache_types[0], gpu_layers=ALL_LAYERS if form.on_gpu else NO_LAYERS
        )
        if form.on_gpu and not now.form.on_gpu:
            return f"{size_text(tried.gpu.total)} do not fit the GPU"
        more = tried.gpu.total - now.gpu.total if form.on_gpu else tried.ram.total - now.ram.total
        if pack({**choices, form.model: tried}, settled.resident, self._budget) is None:
            return f"it takes {size_text(more)} more than {now.form.quant}, which are not left"
        return f"{now.form.quant} leaves more room"

    def _devices(self, placements: tuple[Placement, ...]) -> tuple[Device, ...]:
        devices = []
        for id_, name, total, usable in self._budget.devices:
            takes = [(p.resident, m.total) for p in placements for m in p.memory if m.device == id_]
            used = sum(size for resident, size in takes if resident)
            used += max((size for resident, size in takes if not resident), default=0)
            devices.append(Device(id_, name, total, usable, used))
        return tuple(devices)


def _grouped(refused: list[PassedOver]) -> str:
    """Reasons with the variants they are true of."""
    by_reason: dict[str, list[str]] = {}
    for each in refused:
        by_reason.setdefault(each.reason, []).append(each.quant)
    return "; ".join(f"{', '.join(quants)}: {reason}" for reason, quants in by_reason.items())
