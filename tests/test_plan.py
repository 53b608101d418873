"""What this machine grants, and which variant each role gets of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tourkit.bundle import BundleFile, BundleModel, BundleVariant, Index, variant_dir
from tourkit.errors import NotSo, UsageError
from tourkit.hardware import Hardware, probe
from tourkit.plan import plan

GIB = 2**30


def machine(
    folder: Path, *, cpu_max: str = "max 100000", memory_max: str = "max", total_kib: int = 32 * 2**20
) -> Hardware:
    """A probe of copies of the files a cgroup has."""
    (folder / "cpu.max").write_text(f"{cpu_max}\n")
    (folder / "memory.max").write_text(f"{memory_max}\n")
    (folder / "meminfo").write_text(f"MemTotal:       {total_kib} kB\nMemFree: 1 kB\n")
    return probe(folder, folder / "meminfo")


def test_a_cpu_quota_limits_the_threads(tmp_path: Path) -> None:
    assert machine(tmp_path, cpu_max="100000 100000").threads == 1
    assert machine(tmp_path, cpu_max="50000 100000").threads == 1


def test_without_a_quota_all_allowed_processors_are_used(tmp_path: Path) -> None:
    assert machine(tmp_path).threads == machine(tmp_path, cpu_max="9999999 100000").threads >= 1


def test_the_smaller_of_machine_and_cgroup_memory_counts(tmp_path: Path) -> None:
    assert machine(tmp_path, memory_max=str(8 * GIB)).ram == 8 * GIB
    assert machine(tmp_path, memory_max=str(2**62)).ram == 32 * GIB
    assert machine(tmp_path).ram == 32 * GIB


def test_this_machine_has_a_thread_and_some_memory() -> None:
    here = probe()

    assert here.threads >= 1
    assert here.ram > 2**27


def index(roles: dict[str, tuple[str, ...]], sizes: dict[str, dict[str, float]], fmt: str = "gguf") -> Index:
    """A bundle index by model and quant with weight sizes in GiB."""
    variants, files = [], []
    for model, quants in sizes.items():
        for quant, size in quants.items():
            variants.append(BundleVariant(model, quant, fmt, f"me/{model}", "main", "1" * 40))
            path = f"{variant_dir(model, quant)}/{model}.{fmt}"
            files.append(BundleFile(path, int(size * GIB), "0" * 64, f"me/{model}", "1" * 40, path))
    models = tuple(BundleModel(model, f"me/{model}", "mit", 8192, None, False) for model in sizes)
    return Index("set", "", "", roles, models, tuple(variants), tuple(files))


def test_the_largest_quant_that_leaves_room_for_all_roles_is_taken() -> None:
    bundle = index(
        {"brain": ("big",), "tool": ("small",)}, {"big": {"Q4": 5, "Q8": 9}, "small": {"Q4": 2, "Q8": 4, "F16": 8}}
    )

    made = plan(bundle, Hardware(threads=4, ram=20 * GIB))

    assert [(p.roles, p.quant, p.threads) for p in made.placements] == [(("brain",), "Q8", 4), (("tool",), "Q8", 4)]


def test_roles_on_the_same_model_share_one_placement() -> None:
    bundle = index({"tool": ("small",), "graph": ("special", "small")}, {"small": {"Q4": 2}})

    made = plan(bundle, Hardware(threads=1, ram=8 * GIB))

    assert [(p.roles, p.model) for p in made.placements] == [(("tool", "graph"), "small")]
    assert made.notes == ("graph: special passed over: the bundle has no variant for an installed stack",)


def test_a_model_that_does_not_fit_gives_way_to_the_next_with_the_reason() -> None:
    bundle = index({"brain": ("huge", "fits")}, {"huge": {"Q4": 40}, "fits": {"Q4": 5}})

    made = plan(bundle, Hardware(threads=1, ram=16 * GIB))

    assert made.placements[0].model == "fits"
    assert made.notes == ("brain: huge passed over: 40.0 GiB do not fit beside the others",)


def test_nothing_that_fits_is_said_so() -> None:
    with pytest.raises(NotSo, match="role brain: nothing in the bundle fits"):
        plan(index({"brain": ("huge",)}, {"huge": {"Q4": 40}}), Hardware(threads=1, ram=8 * GIB))


def test_a_role_the_bundle_does_not_fill_is_refused_with_those_it_does() -> None:
    with pytest.raises(UsageError, match="'embed': the bundle fills brain only"):
        plan(index({"brain": ("m",)}, {"m": {"Q4": 1}}), Hardware(threads=1, ram=8 * GIB), roles=("embed",))


def test_context_and_slots_can_be_asked_for_up_to_what_the_model_has() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4": 1}})

    made = plan(bundle, Hardware(threads=1, ram=8 * GIB), context=100_000, slots=2)

    assert (made.placements[0].context, made.placements[0].slots) == (8192, 2)
