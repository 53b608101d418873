"""`tourkit sets`: the built-in role sets with languages, sizes and what they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tourkit.commands.output import json_option, print_json, show
from tourkit.manifest import languages
from tourkit.units import GIB, size_text

if TYPE_CHECKING:
    from tourkit.planning.sets import Need, OnStack, SetFacts

_HEAD = ("set", "stack", "to fetch", "RAM without a GPU", "GPU memory", "Russian", "languages")


@click.command()
@json_option
def sets(as_json: bool) -> None:
    """List the built-in role sets: languages, bytes to fetch, and the smallest machine, for each stack.

    "To fetch" is what `tourkit prefetch SET --stack STACK` fetches: "about" where the lock does not have every size,
    "over" where some sizes are not known. RAM and GPU memory are of the smallest usual machine on which every role is
    filled: first if the models may take turns, then with all of them loaded at once. "(not embed)": no variant of known
    size fills this role.

    Languages are those that publishers name. "Russian": the roles whose first model has it. "languages": those that
    brain and fast both have a model for.

    \b
    Example: tourkit sets
    """
    from tourkit.manifest import lock as locks
    from tourkit.manifest import manifest as manifests
    from tourkit.planning.sets import facts_of

    found = []
    for name in manifests.builtin_sets():
        manifest = manifests.load(name)
        path = locks.path_of(manifest.path)
        found.append(facts_of(manifest, locks.read(path) if path.exists() else None))
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for line in _table(found):
        show(line)


def _table(found: list[SetFacts]) -> Iterator[str]:
    """A row for each set and stack; the summary of a set below its rows."""
    rows = {each.name: [_row(each, on, first=not number) for number, on in enumerate(each.stacks)] for each in found}
    every = [_HEAD, *(row for own in rows.values() for row in own)]
    widths = [max(len(row[column]) for row in every) for column in range(len(_HEAD))]
    yield _line(_HEAD, widths)
    for each in found:
        for row in rows[each.name]:
            yield _line(row, widths)
        yield f"    {each.summary}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(facts: SetFacts, on: OnStack, *, first: bool) -> tuple[str, ...]:
    without = f" (not {', '.join(on.unfilled)})" if on.unfilled and on.ram is not None else ""
    return (
        facts.name if first else "",
        on.stack,
        _size_text(on),
        _need_text(on.ram) + without,
        _need_text(on.vram),
        languages.russian_text(tuple(facts.roles), facts.russian) if first else "",
        languages.text(facts.languages) if first else "",
    )


def _size_text(on: OnStack) -> str:
    if not on.size:
        return "not known"
    about = "over " if on.unknown else "" if on.exact else "about "
    return about + size_text(on.size)


def _need_text(need: Need | None) -> str:
    """The two sizes of a need in GiB: "6 GiB in turn, 16 GiB at once"; "-" if there is none."""
    if need is None or need.in_turn is None:
        return "-"
    if need.at_once == need.in_turn:
        return f"{need.in_turn // GIB} GiB"
    together = f"{need.at_once // GIB} GiB at once" if need.at_once else "more at once"
    return f"{need.in_turn // GIB} GiB in turn, {together}"
