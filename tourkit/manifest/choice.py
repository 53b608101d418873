"""Choosing a part of a set: the variants that given roles and stacks need."""

from collections.abc import Sequence

from tourkit.errors import UsageError
from tourkit.manifest.models import Manifest, VariantId
from tourkit.stacks import STACKS


def chosen(manifest: Manifest, roles: Sequence[str] = (), stacks: Sequence[str] = ()) -> frozenset[VariantId]:
    """Return the variants that `roles` need on `stacks`; an empty argument means all of them.

    The base of a LoRA adapter is chosen with its adapter. Raises UsageError for an unknown role or stack, and if no
    variant is left.
    """
    for given, known, word in ((roles, list(manifest.roles), "role"), (stacks, list(STACKS), "stack")):
        for name in given:
            if name not in known:
                raise UsageError(f"{manifest.path}: no {word} {name!r}: choose from {', '.join(known)}")
    models = {id_ for role in roles or manifest.roles for id_ in manifest.roles[role]}
    models |= {manifest.models[id_].adapts or id_ for id_ in models}
    formats = {STACKS[stack].format for stack in stacks or STACKS}
    found = {id_ for id_, variant in manifest.variants.items() if id_.model in models and variant.format in formats}
    if not found:
        raise UsageError(f"{manifest.path}: no variant of these roles runs on these stacks: choose others")
    return frozenset(found)
