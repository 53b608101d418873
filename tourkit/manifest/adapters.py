"""LoRA adapters in a set: `adapts` names the base model whose weights an adapter changes.

The base comes with its adapter: it is locked, fetched and bundled even if no role names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.manifest.models import Model


def with_bases(ids: Iterable[str], find: Callable[[str], Model]) -> dict[str, Model]:
    """Return the models with these ids, each once and in order, then the bases of the adapters among them."""
    models = {id_: find(id_) for id_ in dict.fromkeys(ids)}
    bases = [model.adapts for model in models.values() if model.adapts is not None]
    return models | {id_: find(id_) for id_ in bases if id_ not in models}


def problems(models: dict[str, Model]) -> Iterator[str]:
    """Yield the errors in the set's LoRA adapters, one line each: "key: problem: fix"."""
    for id_, model in models.items():
        if model.adapts is None:
            continue
        base = models.get(model.adapts)  # None if this adapter is itself a base: `with_bases` goes one step only
        if base is not None and base.adapts is not None:
            yield f"models.{id_}.adapts: {model.adapts!r} is an adapter itself: name the model it adapts"
        if [variant.format for variant in model.variants] != ["gguf"]:
            yield f"models.{id_}.variants: an adapter has one variant, of format gguf: leave the others out"


def served(models: dict[str, Model]) -> dict[str, Model]:
    """Drop adapters without a GGUF of their own and of their base: adapters are applied to GGUF weights only."""
    gguf = {id_ for id_, model in models.items() if any(variant.format == "gguf" for variant in model.variants)}
    return {id_: model for id_, model in models.items() if model.adapts is None or {id_, model.adapts} <= gguf}
