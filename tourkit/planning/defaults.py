"""The defaults of requests for each placement: from the set, from the model's entry, and from the model's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tourkit.bundle.index import Index
from tourkit.defaults import RoleDefaults, Sampling, first_stated
from tourkit.errors import LocalError
from tourkit.headers.sampling import sampling_in
from tourkit.launch import Launch
from tourkit.manifest.models import CHAT_ROLES, ROLES
from tourkit.planning.plan import Placement
from tourkit.stacks import STACKS

SET = "the manifest's [defaults]"
MODEL = "the model's [sampling]"
_GUESSES = "vLLM guesses from the prompt, which excludes min_p"
_NO_TEXT = frozenset(ROLES) - frozenset(CHAT_ROLES)  # the roles that generate no text


def with_defaults(placement: Placement, index: Index, say: Callable[[str], None]) -> Placement:
    """Return a placement, and its fallbacks, with the defaults that its requests get. Its paths are absolute.

    `say` gets a line for a file whose sampling settings cannot be used; then the file states none.
    """
    if _NO_TEXT.issuperset(placement.roles):
        return placement
    rows = _rows(placement.launch, placement.roles, index, say)
    fallbacks = tuple(with_defaults(each, index, say) for each in placement.fallbacks)
    return replace(placement, launch=replace(placement.launch, defaults=tuple(rows)), fallbacks=fallbacks)


def _rows(launch: Launch, roles: tuple[str, ...], index: Index, say: Callable[[str], None]) -> Iterator[RoleDefaults]:
    """Yield a row for each role of the index that generates text, and one for the other names of the model.

    Roles of other placements are among them: if their model cannot be loaded, this one may answer for them. `roles`:
    those of this placement.
    """
    of_model = [(MODEL, model) for model in _of_models(launch.model, index)]
    try:
        of_model.append(sampling_in(Path(launch.path)))
    except (LocalError, OSError) as exc:
        say(f"default sampling of {launch.model}: not taken from its own file: {exc}")
    of_set = {row.role: row for row in index.defaults}
    guesses = STACKS[launch.stack].guesses(roles, on_gpu=not launch.gpu_layers.is_none)
    for role in (*(role for role in index.roles if role not in _NO_TEXT), ""):
        row = of_set.get(role, RoleDefaults(role))
        first = [(_GUESSES, Sampling(min_p=0.0))] if guesses else []
        sampling, sources = first_stated([*first, (SET, row.sampling), *of_model])
        yield replace(row, sampling=sampling, sources=sources)


def _of_models(model: str, index: Index) -> Iterator[Sampling]:
    """Yield what the entry of a model states; of a LoRA adapter also what the entry of its base states."""
    models = {each.id: each for each in index.models}
    for id_ in (model, models[model].adapts if model in models else None):
        if id_ in models:
            yield models[id_].sampling
