"""What a role set offers and needs: languages, bytes to fetch, and the smallest machine, for each stack."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tourkit.bundle.index import Index
from tourkit.errors import NotSo
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.manifest import languages
from tourkit.manifest.choice import chosen
from tourkit.manifest.lock import Lock, facts
from tourkit.manifest.models import Manifest, Variant, VariantId
from tourkit.planning.model_shape import Shape
from tourkit.planning.planner import plan
from tourkit.planning.sources import index_of, shapes_of_manifest
from tourkit.stacks import STACKS
from tourkit.units import GIB

SIZES = tuple(size * GIB for size in (2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128))  # of RAM or of one GPU
RAM_BESIDE_GPU = 32 * GIB
_THREADS = 8  # no memory depends on it


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of the smallest of SIZES on which every role is filled, all layers of them on a GPU. None: all too small.

    `in_turn`: models may take turns in memory. `at_once`: all of them are loaded at the same time.
    """

    in_turn: int | None
    at_once: int | None


@dataclass(frozen=True, slots=True)
class OnStack:
    """A set on one stack. `size`: bytes that `prefetch --stack` fetches, as far as they are known.

    `exact`: the lock has every size; else some are the rounded ones of the catalogue. `unknown`: variants of unknown
    size, not counted in `size`. `unfilled`: roles without a variant of known size for this stack; `ram` (without a
    GPU) and `vram` (one GPU) leave them out, and are None if the stack fills no role, or cannot use a GPU.
    """

    stack: str
    size: int
    exact: bool
    unknown: tuple[str, ...]
    unfilled: tuple[str, ...]
    ram: Need | None
    vram: Need | None


@dataclass(frozen=True, slots=True)
class SetFacts:
    """A role set. `languages`: those that brain and fast both have a model for; empty if no publisher names any.

    `russian`: the roles whose first model has a publisher that names Russian.
    """

    name: str
    summary: str
    roles: dict[str, tuple[str, ...]]
    languages: tuple[str, ...]
    russian: tuple[str, ...]
    stacks: tuple[OnStack, ...]


def facts_of(manifest: Manifest, lock: Lock | None) -> SetFacts:
    """Count what the set needs on each stack that has a variant in it. Without a lock only stated sizes are known."""
    formats = {variant.format for variant in manifest.variants.values()}
    stacks = [name for name, stack in STACKS.items() if stack.format in formats]
    return SetFacts(
        manifest.name,
        manifest.summary,
        dict(manifest.roles),
        languages.of_set(manifest),
        languages.russian_roles(manifest),
        tuple(_on_stack(manifest, lock, stack) for stack in stacks),
    )


def _on_stack(manifest: Manifest, lock: Lock | None, stack: str) -> OnStack:
    variants = {id_: manifest.variants[id_] for id_ in sorted(chosen(manifest, stacks=[stack]))}
    locked = _locked_sizes(lock)
    sizes = {id_: locked.get(id_) or variant.size for id_, variant in variants.items()}
    unfilled, ram, vram = (
        _needs(manifest, lock, stack, variants) if lock is not None else (tuple(manifest.roles), None, None)
    )
    return OnStack(
        stack,
        size=sum(size for size in sizes.values() if size is not None),
        exact=all(id_ in locked for id_ in variants),
        unknown=tuple(str(id_) for id_, size in sizes.items() if size is None),
        unfilled=unfilled,
        ram=ram,
        vram=vram,
    )


def _locked_sizes(lock: Lock | None) -> dict[VariantId, int]:
    """Bytes of each variant of which the lock knows the size of every file."""
    found = {}
    for variant in lock.variants if lock is not None else ():
        sizes = [size for size, _ in facts(variant).values()]
        if variant.complete and sizes and None not in sizes:
            found[variant.id] = sum(size for size in sizes if size is not None)
    return found


def _needs(
    manifest: Manifest, lock: Lock, stack: str, variants: dict[VariantId, Variant]
) -> tuple[tuple[str, ...], Need | None, Need | None]:
    """The roles that cannot be planned on this stack, and the memory for the others."""
    index = index_of(manifest, lock)
    held = {id_.model for id_ in variants if any(file.path.startswith(f"{id_.folder}/") for file in index.files)}
    roles = tuple(role for role, ids in manifest.roles.items() if held & set(ids))
    unfilled = tuple(role for role in manifest.roles if role not in roles)
    if not roles:
        return unfilled, None, None
    index = replace(index, roles={role: manifest.roles[role] for role in roles})
    shapes = shapes_of_manifest(manifest)
    vram = _need(index, shapes, stack, on_gpu=True) if STACKS[stack].uses_gpu else None
    return unfilled, _need(index, shapes, stack, on_gpu=False), vram


def _need(index: Index, shapes: dict[VariantId, Shape], stack: str, *, on_gpu: bool) -> Need:
    in_turn: int | None = None
    for size in SIZES:
        try:
            made = plan(index, _machine(size, stack, on_gpu=on_gpu), shapes=shapes)
        except NotSo:  # nothing fits
            continue
        beside = on_gpu and any(placement.launch.gpu_layers.count is not None for placement in made.placements)
        if made.unfilled or beside:  # `beside`: layers in RAM, which a larger GPU would hold
            continue
        in_turn = in_turn or size
        if all(placement.resident for placement in made.placements):
            return Need(in_turn, size)
    return Need(in_turn, None)


def _machine(size: int, stack: str, *, on_gpu: bool) -> Hardware:
    """A machine with `size` bytes of RAM and no GPU, or with RAM_BESIDE_GPU and one GPU of `size` bytes.

    Nothing keeps the stack from using the GPU.
    """
    if not on_gpu:
        return Hardware(_THREADS, size, stacks=(InstalledStack(stack),))
    gpu = Gpu("0", "GPU", "cuda", size, size)
    stacks = (InstalledStack(stack, gpu="cuda"),)
    return Hardware(_THREADS, RAM_BESIDE_GPU, gpus=(gpu,), stacks=stacks, compiler="cc", python_headers=True)
