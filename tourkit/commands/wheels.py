"""The command `wheels`, and what `prefetch --wheels` shares with it: Python wheels for the machine at the venue."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tourkit.commands.output import BarListener, bundle_option, json_option, note, print_json, resumable, show
from tourkit.errors import UsageError
from tourkit.units import counted, size_text

if TYPE_CHECKING:
    from tourkit.bundle.index import Index
    from tourkit.fetch.wheels.choose import Choice, Order


@dataclass(frozen=True, slots=True)
class Shown:
    """What --dry-run shows of wheels: as lines, and as JSON."""

    lines: list[str]
    as_json: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The wheels that a command has chosen. Without targets it holds nothing and does nothing."""

    order: Order | None
    choices: Sequence[Choice] = ()

    def shown(self, root: Path) -> Shown | None:
        """Return what --dry-run shows; None without targets."""
        return _shown(self.choices, root) if self.order is not None else None

    def collect(self, root: Path, jobs: int) -> Index | None:
        """Bring the wheels into the bundle and return its index; None without targets."""
        from tourkit.fetch.wheels.collect import collect
        from tourkit.fetch.wheels.package_index import PackageIndex

        if self.order is None:
            return None
        listener = BarListener("wheels")
        with resumable("run the same command again, it resumes"), listener.bar:
            index = PackageIndex(self.order.settings)
            return collect(self.order, self.choices, root, index, jobs=jobs, listener=listener)


@contextmanager
def chosen(
    targets: Sequence[str],
    root: Path,
    *,
    locks: Path | None = None,
    given: Sequence[Path] = (),
    indexes: Sequence[str] = (),
    brought: Path | None = None,
    machine: Path | None = None,
    build: bool = True,
) -> Iterator[Chosen]:
    """Choose the wheels of the targets for the bundle at `root`. They can be collected while the context is open.

    `locks`: the manifest that the locks are kept beside. `given`: wheels that are files. `indexes`: addresses of more
    indexes. `brought`: a folder that all wheels must come from. `machine`: the file of the machine that `here` names.
    `build`: whether llama.cpp's wheel may be built now.
    """
    if not targets:
        yield Chosen(None)
        return
    from tourkit.fetch.wheels.choose import Order, choose
    from tourkit.fetch.wheels.pip_settings import IndexSettings, read_settings
    from tourkit.fetch.wheels.target import parse_target
    from tourkit.hardware.machine_file import read_machine

    known = read_machine(machine) if machine is not None else None
    parsed = tuple(dict.fromkeys(parse_target(text, known) for text in targets))
    if brought is not None:
        settings = IndexSettings(no_index=True, find_links=(str(brought.resolve()),))
    else:
        settings = read_settings().with_indexes(tuple(indexes))
    beside = locks.with_name(f"{locks.stem}.wheels") if locks is not None else None
    own_index = bool(indexes) or brought is not None
    order = Order(parsed, settings, given=tuple(given), own_index=own_index, locks=beside)
    with tempfile.TemporaryDirectory(prefix="tourkit-wheels-") as folder:
        with resumable("run the same command again"):
            choices = choose(order, root, Path(folder), note, build=build)
        for choice in choices:
            how = f"from the lock {choice.lock_name}" if choice.reused else "resolved"
            note(f"{choice.target}: {counted(len(choice.wheels), 'package')}, {how}")
        yield Chosen(order, choices)


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@bundle_option
@click.option(
    "--wheel",
    "given",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A wheel that you built or downloaded, such as llama.cpp's with CUDA; may be repeated.",
)
@click.option(
    "--extra-index",
    "indexes",
    multiple=True,
    metavar="URL",
    help="One more package index, which has llama.cpp's wheel.",
)
@click.option(
    "--add",
    "brought",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Index the wheels of this folder; asks no network.",
)
@click.option(
    "--machine",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="`here` is the machine of this file, which `tourkit doctor --json` wrote there.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Files to fetch at once.")
@click.option("--dry-run", is_flag=True, help="Print packages and bytes, and fetch nothing.")
@json_option
def wheels(
    targets: tuple[str, ...],
    bundle: Path,
    given: tuple[Path, ...],
    indexes: tuple[str, ...],
    brought: Path | None,
    machine: Path | None,
    jobs: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Collect Python wheels for a machine into a bundle, so that it installs there without a network.

    TARGET is `here`, or a Python and a platform such as cp312-manylinux_2_31_x86_64, cp312-macosx_14_0_arm64 or
    cp312-win_amd64. `:SET` behind it says what is installed: cpu (default), cuda-llama, cuda-vllm, transformers, onnx,
    or several with +. The oldest glibc is 2.31.

    Versions are those of the lock wheels/pylock.TARGET-SET.toml in the bundle, if it is there. The package index is
    pip's: its variables, pip.conf and .netrc. uv chooses the packages: pip install 'tourkit[supply]'.

    --wheel and --extra-index count for every TARGET. --add puts wheels that people bring into the bundle and its index.
    With a TARGET it also writes the list that install.sh reads, from these wheels alone.

    \b
    Examples: tourkit wheels cp312-manylinux_2_31_x86_64 cp312-win_amd64 --bundle /media/usb/bundle
              tourkit wheels cp312-manylinux_2_31_x86_64:cuda-vllm --bundle /media/usb/bundle --dry-run
              tourkit wheels here:cuda-vllm --machine venue.json --bundle /media/usb/bundle
              tourkit wheels --add ~/wheels --bundle /media/usb/bundle
    """
    targets = targets or (("here",) if machine is not None else ())
    if brought is None and not targets:
        raise UsageError("no TARGET: name one, such as cp312-manylinux_2_31_x86_64 or here, or give --add DIR")
    if brought is not None:
        if given or indexes:
            raise UsageError("--add takes its wheels from one folder: leave out --wheel and --extra-index")
        if not dry_run:
            _add(bundle, brought, as_json=as_json and not targets)
    if not targets:
        return
    source = bundle / "wheels" / "files" if brought is not None and not dry_run else brought
    if source is not None:
        given = tuple(sorted(source.glob("tourkit-*.whl"))[-1:])  # else tourkit's own wheel is made
    build = not dry_run
    with chosen(targets, bundle, given=given, indexes=indexes, brought=source, machine=machine, build=build) as found:
        if dry_run:
            shown = _shown(found.choices, bundle)
            _print(shown, as_json)
            return
        found.collect(bundle, jobs)
        _print(_shown(found.choices, bundle), as_json, whole=bundle)


def _add(bundle: Path, folder: Path, *, as_json: bool) -> None:
    from tourkit.fetch.wheels.collect import add

    listener = BarListener("wheels")
    with listener.bar:
        added = add(bundle, folder, listener)
    size = sum(wheel.size or 0 for wheel in added)
    if as_json:
        print_json({"added": [wheel.file for wheel in added], "bytes": size})
    else:
        show(f"{bundle}: {counted(len(added), 'wheel is', 'wheels are')} in the index, {size_text(size)}")


def _shown(choices: Sequence[Choice], root: Path) -> Shown:
    """Return every package with its bytes, and the sums. A wheel of several targets counts once in the last sum."""
    from tourkit.fetch.wheels.collect import totals

    lines = []
    for choice in choices:
        lines += [f"{size_text(wheel.size or 0):>10}  {wheel.file}" for wheel in choice.wheels]
        lines.append(f"{choice.target}: {size_text(choice.total_bytes)} in {counted(len(choice.wheels), 'package')}")
    need = totals(choices, root)
    lines.append(
        f"{size_text(need.total_bytes)} in {counted(need.files, 'wheel')}, {size_text(need.to_fetch_bytes)} to fetch"
    )
    rows = [
        {
            "target": choice.target.machine,
            "sets": list(choice.target.sets),
            "total_bytes": choice.total_bytes,
            "packages": [
                {"name": w.name, "version": w.version, "file": w.file, "size": w.size, "sha256": w.sha256}
                for w in choice.wheels
            ],
        }
        for choice in choices
    ]
    return Shown(lines, {"targets": rows, "total_bytes": need.total_bytes, "to_fetch_bytes": need.to_fetch_bytes})


def _print(shown: Shown, as_json: bool, *, whole: Path | None = None) -> None:
    """Print what was chosen; after the collection only the sums. `whole`: the bundle that has the wheels now."""
    if as_json:
        print_json(shown.as_json)
        return
    if whole is None:
        for line in shown.lines:
            show(line)
        return
    for row in shown.as_json["targets"]:
        sets, size = "+".join(row["sets"]), size_text(row["total_bytes"])
        show(f"{whole}: {row['target']}:{sets}: {counted(len(row['packages']), 'package')}, {size}")
    show(f"Check it again where it arrives: tourkit verify {whole}")
