"""Write docs/catalogue.md from the catalogue and the sets: `python tools/catalogue_page.py docs/catalogue.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tourkit.manifest import catalogue, languages, lock, manifest, models
from tourkit.manifest.models import Manifest, Model
from tourkit.units import size_text

_HEAD = """\
# The catalogue

`make docs` writes this page from `manifests/`; a test checks that both agree. `tourkit models` shows the same data and
filters it by licence, commercial use, role, language, memory and stack. To use a model in a set, name its id: see
[Manifests, the catalogue and locks](manifest.md). Each file names its sources in comments. A value without a source is
left out; `tourkit lock` asks the hub for commits, sizes and hashes.

*Memory from* is the smallest variant with a known size plus a 16-bit KV cache for one sequence of 4096 tokens (or the
model's context, if that is shorter). `tourkit plan` computes the exact numbers for your machine. *Languages* are those
that the publisher names. *Russian* says for which roles of a set the publisher of the first model names it.
"""


def render() -> str:
    """Return the whole page."""
    models = manifest.catalogue()
    sets = [manifest.load(name) for name in manifest.builtin_sets()]
    parts = [
        _HEAD,
        "## Sets\n",
        *_sets(sets),
        "\n## Models\n",
        *_models(sorted(models.values(), key=lambda model: (model.family or "", model.id))),
        "\n## Licences\n",
        "This is not legal advice: read the licence. An id that is not in this table is unknown, not allowed.\n",
        *_licences(),
    ]
    return "\n".join(parts) + "\n"


def _sets(sets: Iterable[Manifest]) -> Iterator[str]:
    yield "| set | for | roles | Russian | pinned |"
    yield "|---|---|---|---|---|"
    for one in sets:
        roles = "<br>".join(f"{role}: {', '.join(ids)}" for role, ids in one.roles.items())
        russian = languages.russian_text(tuple(one.roles), languages.russian_roles(one))
        yield f"| `{one.name}` | {one.summary} | {roles} | {russian} | {_pinned(one)} |"


def _pinned(one: Manifest) -> str:
    path = lock.path_of(one.path)
    if not path.is_file():
        return f"no lock yet: `tourkit lock {one.name}`"
    pinned = lock.read(path)
    resolved, variants = len(pinned.resolved), len(pinned.variants)
    if resolved == variants:
        return f"all {resolved} variants"
    return f"{resolved} of {variants} variants; `tourkit lock {one.name}` for the rest"


def _models(models: Iterable[Model]) -> Iterator[str]:
    yield "| model | good at | licence | commercial | context | languages | roles | memory from | variants |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for model in models:
        small = catalogue.smallest(model)
        cells = (
            f"`{model.id}`<br>{model.repo}",
            model.summary,
            model.license + (", gated" if model.gated else ""),
            catalogue.terms(model.license).use,
            str(model.context),
            languages.text(model.languages),
            ", ".join(model.roles),
            size_text(catalogue.memory(model, small.size)) if small else "not stated",
            "<br>".join(f"{form}: {', '.join(quants)}" for form, quants in _by_format(model).items()),
        )
        yield f"| {' | '.join(cells)} |"


def _by_format(model: Model) -> dict[str, list[str]]:
    return {
        form: [v.quant for v in model.variants if v.format == form]
        for form in models.FORMATS
        if any(v.format == form for v in model.variants)
    }


def _licences() -> Iterator[str]:
    yield "| licence | commercial use | why |"
    yield "|---|---|---|"
    for license_, said in catalogue.LICENSES.items():
        yield f"| {license_} | {said.use} | {said.reason} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
