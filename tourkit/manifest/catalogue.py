"""Choose models from the catalogue: by licence, role, language, stack and memory.

The values in the catalogue's files decide here. The planner decides what fits on a machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tourkit.defaults import stated
from tourkit.errors import UsageError
from tourkit.manifest.languages import may_speak, speaks
from tourkit.manifest.models import ROLES, Model
from tourkit.stacks import STACKS
from tourkit.units import size_text

CONTEXT = 4096  # tokens of the one sequence whose KV cache `memory` counts
_KV_BYTES = 2  # a 16-bit key or value
_STATE_BYTES = 4  # a number in the state of a hybrid model's layer


@dataclass(frozen=True, slots=True)
class Terms:
    """What a licence says about commercial use: `use` is "yes", "conditional", "no" or "unknown"; `reason` says why."""

    use: str
    reason: str


_UNKNOWN = Terms("unknown", "no source states the licence: first read it on the model's page")
_META = "follow its conditions on the number of users, on naming and on acceptable use"
LICENSES = {
    "apache-2.0": Terms("yes", "permissive: keep the licence text and the notices"),
    "mit": Terms("yes", "permissive: keep the licence text"),
    "llama2": Terms(
        "conditional", "Llama 2 Community License: acceptable use policy; with over 700 million monthly users, ask Meta"
    ),
    "llama3": Terms("conditional", f"Llama 3 Community License: {_META}"),
    "llama3.1": Terms("conditional", f"Llama 3.1 Community License: {_META}"),
    "gemma": Terms("conditional", "Gemma Terms of Use: they bind use, hosted services and copies that you pass on"),
    "bigscience-bloom-rail-1.0": Terms(
        "conditional", "BigScience RAIL: it forbids some uses; read which on the model's page"
    ),
    "internlm2-license": Terms("conditional", "commercial use is free, but apply to the authors first"),
    "yi-license": Terms("conditional", "commercial use is free with the authors' permission: apply for it"),
    "nvidia-open-model": Terms(
        "conditional", "NVIDIA Open Model License: it permits commercial use; read its terms on the model's page"
    ),
    "other (LFM Open License)": Terms(
        "conditional", "LFM Open License: commercial use only below 10 million US dollars of yearly revenue"
    ),
    "other (LFM Open License v1.0)": Terms(
        "conditional", "LFM Open License: commercial use only below 10 million US dollars of yearly revenue"
    ),
    "other (Stability AI)": Terms("conditional", "for commercial use see https://stability.ai/license"),
    "other (non-commercial)": Terms("no", "the authors allow research only"),
    "cc-by-nc-sa-4.0": Terms("no", "the name of the licence says NonCommercial"),
    "unknown": _UNKNOWN,
}


def terms(license_: str) -> Terms:
    """Return what a licence id says about commercial use. An id that is not in the table counts as unknown."""
    return LICENSES.get(license_, _UNKNOWN)


@dataclass(frozen=True, slots=True)
class SizedVariant:
    """A variant with a known size: the bytes of its weights."""

    quant: str
    size: int


@dataclass(frozen=True, slots=True)
class Wish:
    """The conditions a model must meet. None and False mean no condition. `memory` is in bytes."""

    license: str | None = None
    commercial: bool = False
    role: str | None = None
    language: str | None = None
    memory: int | None = None
    stack: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The models that meet a wish, and the models that may meet it: the catalogue lacks a value for them."""

    models: tuple[Model, ...]
    unstated: dict[str, tuple[str, ...]] = field(default_factory=dict)  # "language" or "size" -> model ids


def search(models: Iterable[Model], wish: Wish) -> Found:
    """Return the models that meet every part of the wish. Raises UsageError for an unknown role or stack."""
    for word, given, known in (("role", wish.role, ROLES), ("stack", wish.stack, tuple(STACKS))):
        if given is not None and given not in known:
            raise UsageError(f"--{word} {given!r}: unknown: choose one of {', '.join(known)}")
    found: list[Model] = []
    unstated: dict[str, list[str]] = {}
    for model in models:
        if not _stated_parts_fit(model, wish):
            continue
        missing = [
            name
            for name, asked, known in (
                ("language", wish.language, wish.language is None or not may_speak(model, wish.language)),
                ("size", wish.memory, smallest(model, wish.stack) is not None),
            )
            if asked is not None and not known
        ]
        for name in missing:
            unstated.setdefault(name, []).append(model.id)
        if not missing:
            found.append(model)
    return Found(tuple(found), {name: tuple(ids) for name, ids in unstated.items()})


def _stated_parts_fit(model: Model, wish: Wish) -> bool:
    """Return False if a value in the catalogue rules the model out."""
    small = smallest(model, wish.stack)
    return (
        (wish.license or "").lower() in model.license.lower()
        and (not wish.commercial or terms(model.license).use in ("yes", "conditional"))
        and (wish.role is None or wish.role in model.roles)
        and (wish.language is None or speaks(model, wish.language) or may_speak(model, wish.language))
        and (wish.stack is None or wish.stack in stacks(model))
        and (wish.memory is None or small is None or memory(model, small.size) <= wish.memory)
    )


def stacks(model: Model) -> tuple[str, ...]:
    """Return the stacks that can load one of the model's formats."""
    formats = {variant.format for variant in model.variants}
    return tuple(stack for stack, traits in STACKS.items() if traits.format in formats)


def smallest(model: Model, stack: str | None = None) -> SizedVariant | None:
    """Return the variant with the smallest known size, of one stack if given; None if no size is known."""
    sized = [
        SizedVariant(v.quant, v.size)
        for v in model.variants
        if v.size is not None and (stack is None or v.format == STACKS[stack].format)
    ]
    return min(sized, key=lambda variant: variant.size, default=None)


def memory(model: Model, weights: int) -> int:
    """Return the bytes of the weights, and of a 16-bit KV cache and the states for one sequence of CONTEXT tokens."""
    arch = model.arch
    if arch is None or model.only_reads:  # it keeps no KV cache between calls
        return weights
    tokens = min(CONTEXT, model.context)
    attending = arch.attention_layers or arch.n_layers
    windowed = 0
    if arch.sliding_window is not None:
        windowed = attending if arch.sliding_layers is None else arch.sliding_layers
    cells = (attending - windowed) * tokens + windowed * min(tokens, arch.sliding_window or tokens)
    states = (arch.state_values or 0) * _STATE_BYTES
    return weights + 2 * cells * arch.n_kv_heads * arch.head_dim * _KV_BYTES + states


def as_json(model: Model, stack: str | None = None) -> dict[str, Any]:
    """Return one model as data for scripts; null if no source states the value."""
    small = smallest(model, stack)
    said = terms(model.license)
    return {
        "id": model.id,
        "repo": model.repo,
        "family": model.family,
        "architecture": model.architecture,
        "license": model.license,
        "commercial": said.use,
        "commercial_reason": said.reason,
        "gated": model.gated,
        "context": model.context,
        "params": model.params,
        "base": model.base,
        "roles": list(model.roles),
        "languages": list(model.languages),
        "summary": model.summary,
        "sampling": stated(model.sampling) or None,
        "stacks": list(stacks(model)),
        "memory": memory(model, small.size) if small else None,
        "variants": [
            {"quant": v.quant, "format": v.format, "repo": v.repo, "revision": v.revision, "size": v.size}
            for v in model.variants
        ],
    }


def table(models: Sequence[Model], stack: str | None = None) -> Iterator[str]:
    """Yield lines for people: a row for each model with its summary below, then a line for each licence."""
    head = ("model", "licence", "commercial", "context", "memory from", "roles", "stacks")
    rows = [head, *(_row(model, stack) for model in models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for number, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if number:
            model = models[number - 1]
            languages = f" [{', '.join(model.languages)}]" if model.languages else ""
            yield f"    {model.summary}{languages}"
    yield ""
    yield from footnotes(models)


def footnotes(models: Iterable[Model]) -> Iterator[str]:
    """Yield a line for each licence of the models: whether commercial use is allowed, and why."""
    for license_ in sorted({model.license for model in models}):
        said = terms(license_)
        yield f"{license_}: commercial use: {said.use}: {said.reason}"


def _row(model: Model, stack: str | None) -> tuple[str, ...]:
    small = smallest(model, stack)
    needs = f"{size_text(memory(model, small.size))} {small.quant}" if small else "?"
    gated = " (gated)" if model.gated else ""
    commercial = terms(model.license).use
    return (
        model.id,
        model.license + gated,
        commercial,
        str(model.context),
        needs,
        ", ".join(model.roles),
        ", ".join(stacks(model)),
    )
