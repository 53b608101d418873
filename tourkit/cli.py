"""The command line: arguments in, text out. Every command calls into one module; errors are printed here, once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tourkit import __version__
from tourkit.errors import LocalError, NotSo, TourkitError, UsageError
from tourkit.progress import Progress, counted, size_text

if TYPE_CHECKING:
    from tourkit.lock import Lock
    from tourkit.manifest import Manifest

_LOCAL_FAULT, _INTERRUPTED = 4, 130
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
roles_option = click.option("--role", "roles", multiple=True, metavar="R", help="Only this role; may be repeated.")


def bundle_option(command: _Command) -> _Command:
    """--bundle DIR, which falls back to $TOURKIT_BUNDLE, then ./bundle."""
    option = click.option(
        "--bundle",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: os.environ.get("TOURKIT_BUNDLE") or "bundle",
        show_default="$TOURKIT_BUNDLE, then ./bundle",
        help="The bundle folder.",
    )
    return option(command)


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="tourkit")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error came from.")
def cli() -> None:
    """Pin, prefetch, verify and serve open LLMs for a competition without a network.

    \b
    Before, connected:   tourkit prefetch tour-20gb --to /media/usb/bundle
    On site, offline:    tourkit serve --bundle /media/usb/bundle --offline
    To see it all work:  tourkit demo
    """


# --- the catalogue and the lock ----------------------------------------------------------------------------------


@cli.command()
@click.option("--license", "license_", metavar="TEXT", help="Only licences whose name contains this.")
@click.option("--stack", metavar="S", help="Only models with a variant for this stack.")
@json_option
def models(license_: str | None, stack: str | None, as_json: bool) -> None:
    """List the models tourkit knows.

    \b
    Example: tourkit models --stack llama_cpp
    """
    from tourkit import manifest, prefetch

    if stack is not None and stack not in prefetch.STACKS:
        raise UsageError(f"--stack {stack!r}: there are {', '.join(prefetch.STACKS)}")
    formats = {prefetch.STACKS[stack]} if stack else set(manifest.FORMATS)
    found = [
        model
        for model in manifest.catalogue().values()
        if (license_ or "").lower() in model.license.lower() and any(v.format in formats for v in model.variants)
    ]
    if as_json:
        rows = [
            {"id": m.id, "repo": m.repo, "license": m.license, "gated": m.gated, "context": m.context}
            | {"variants": [{"quant": v.quant, "format": v.format, "repo": v.repo} for v in m.variants]}
            for m in found
        ]
        _print_json(rows)
        return
    for model in found:
        gated = ", gated" if model.gated else ""
        click.echo(f"{model.id}  {model.repo}  {model.license}{gated}, {model.context} tokens")
        click.echo(f"    {', '.join(f'{variant.quant} ({variant.format})' for variant in model.variants)}")


@cli.command()
@click.argument("manifest_ref", metavar="MANIFEST")
def lock(manifest_ref: str) -> None:
    """Resolve a manifest against the hub and pin it: commit, size and SHA-256 of every file.

    MANIFEST is a TOML file, or the name of a built-in set. The lock is written beside it. The hub is $HF_ENDPOINT;
    gated repositories use your token ($HF_TOKEN, or the one `hf auth login` stored).

    \b
    Example: tourkit lock manifests/tour-20gb.toml
    """
    from tourkit import lock as locks
    from tourkit import manifest as manifests
    from tourkit.hub import Hub

    manifest = manifests.load(manifest_ref)
    path = locks.path_of(manifest.path)
    old = locks.read(path) if path.exists() else None
    new = locks.resolve(manifest, Hub(), progress=_note, known=old)
    locks.write(path, new)
    for line in locks.changes(old, new):
        click.echo(line)
    size = sum(file.size or 0 for variant in new.variants for file in variant.files)
    click.echo(f"{path}: {counted(len(new.variants), 'variant')}, {size_text(size)}")


def _load_locked(manifest_ref: str) -> tuple[Manifest, Lock]:
    """A manifest and its lock, which must exist and be of this manifest."""
    from tourkit import lock as locks
    from tourkit import manifest as manifests

    manifest = manifests.load(manifest_ref)
    path = locks.path_of(manifest.path)
    if not path.exists():
        raise UsageError(f"{path}: there is no lock yet: run `tourkit lock {manifest_ref}`")
    found = locks.read(path)
    locks.check_current(manifest, found)
    return manifest, found


# --- the bundle ---------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("manifest_ref", metavar="MANIFEST")
@click.option(
    "--to", "root", required=True, type=click.Path(path_type=Path, file_okay=False), help="The bundle folder."
)
@roles_option
@click.option("--stack", "stacks", multiple=True, metavar="S", help="Only variants for this stack; may be repeated.")
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Transfers at once.")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched, and fetch nothing.")
@json_option
def prefetch(
    manifest_ref: str,
    root: Path,
    roles: tuple[str, ...],
    stacks: tuple[str, ...],
    jobs: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Mirror what a lock names into a bundle: resumable, hashed while it streams, never half-written.

    Run it again after anything went wrong: it goes on at the byte where it stopped.

    \b
    Examples: tourkit prefetch tour-20gb --to /media/usb/bundle --stack llama_cpp
              tourkit prefetch tour-20gb --to /media/usb/bundle --dry-run
    """
    from tourkit import prefetch as fetching
    from tourkit.hub import Hub

    manifest, locked = _load_locked(manifest_ref)
    if dry_run:
        _show_prefetch_plan(fetching.plan(manifest, locked, root, roles=roles, stacks=stacks), as_json)
        return
    progress = _PrefetchProgress()
    with progress.bar:
        index = fetching.prefetch(
            manifest, locked, root, Hub(), roles=roles, stacks=stacks, jobs=jobs, progress=progress
        )
    size = sum(file.size for file in index.files)
    click.echo(f"{root}: whole: {counted(len(index.files), 'file')}, {size_text(size)}")
    click.echo(f"Check it again where it arrives: tourkit verify {root}")


class _PrefetchProgress:
    """What prefetch reports, onto the terminal."""

    def __init__(self) -> None:
        self.bar = Progress("prefetch")

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        self.bar.total = total_bytes
        self.bar.note(f"{size_text(total_bytes)} in all, {size_text(to_fetch)} to fetch")

    def on_bytes(self, n: int, kind: str) -> None:
        self.bar.advance(n)

    def on_note(self, text: str) -> None:
        self.bar.note(text)


def _show_prefetch_plan(plan: Any, as_json: bool) -> None:
    rows = [
        {"path": wanted.dest, "repo": wanted.variant.repo, "commit": wanted.variant.commit, "size": wanted.file.size}
        for wanted in plan.files
    ]
    if as_json:
        _print_json({"files": rows, "total_bytes": plan.total_bytes, "to_fetch_bytes": plan.to_fetch_bytes})
        return
    for row in rows:
        click.echo(f"{size_text(row['size']):>10}  {row['path']}")
    total = f"{size_text(plan.total_bytes)} in {counted(len(rows), 'file')}"
    click.echo(f"{total}, {size_text(plan.to_fetch_bytes)} to fetch")


@cli.command()
@click.argument("root", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--quick", is_flag=True, help="Presence and sizes only; a flipped bit goes unnoticed.")
@json_option
def verify(root: Path, quick: bool, as_json: bool) -> None:
    """Check every byte of a bundle, without a network: missing, damaged and extra files.

    \b
    Example: tourkit verify /media/usb/bundle
    """
    from tourkit import bundle

    with Progress("verify") as bar:
        if not quick:
            bar.total = sum(file.size for file in _known_files(root))
        report = bundle.verify(root, quick=quick, progress=bar.advance)
    if as_json:
        kinds = {kind: list(getattr(report, kind)) for kind in ("missing", "damaged", "extra")}
        _print_json(kinds | {"checked_files": report.checked_files, "checked_bytes": report.checked_bytes})
    else:
        for problem in report.problems:
            click.echo(f"{problem.kind}: {problem.path}" + (f" ({problem.detail})" if problem.detail else ""))
    if not report.ok:
        broken = report.missing or report.damaged
        mend = "run `tourkit prefetch` again" if broken else "delete what does not belong there"
        raise NotSo(f"{root}: {counted(len(report.problems), 'file is', 'files are')} not as indexed: {mend}")
    if not as_json:
        how = "present, of the right size" if quick else f"right, {size_text(report.checked_bytes)} read"
        click.echo(f"{root}: {counted(report.checked_files, 'file')} {how}")


def _known_files(root: Path) -> tuple[Any, ...]:
    """The files of the index, for the progress total alone: verify itself says what is wrong with the index."""
    from tourkit import bundle

    try:
        return bundle.read_index(root).files
    except TourkitError:
        return ()


@cli.command()
@click.argument("root", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--host", default="0.0.0.0", show_default=True, help="Address to listen on; the default is the whole LAN."
)
@click.option("--port", default=8090, show_default=True, help="Port; 0 takes a free one.")
def mirror(root: Path, host: str, port: int) -> None:
    """Serve a bundle as a Hugging Face-compatible hub, so that one machine can feed a closed room.

    \b
    Example: tourkit mirror /media/usb/bundle
             on the others: HF_ENDPOINT=http://ORGANISER:8090 tourkit prefetch tour-20gb --to bundle
    """
    from tourkit import mirror as mirroring

    def ready(url: str) -> None:
        click.echo(f"mirror of {root} at {url}  (on the clients: HF_ENDPOINT={url})")

    mirroring.serve(root, host, port, ready)


# --- serving ------------------------------------------------------------------------------------------------------


@cli.command()
@bundle_option
@roles_option
@click.option("--context", type=click.IntRange(64), metavar="N", help="Tokens a sequence.")
@click.option("--slots", type=click.IntRange(1, 256), metavar="N", help="Sequences at once in each worker.")
@json_option
def plan(bundle: Path, roles: tuple[str, ...], context: int | None, slots: int | None, as_json: bool) -> None:
    """Show which variant each role gets on this machine, and why others were passed over.

    \b
    Example: tourkit plan --bundle /media/usb/bundle
    """
    from dataclasses import asdict

    from tourkit import bundle as bundles
    from tourkit import hardware
    from tourkit import plan as planning

    made = planning.plan(bundles.read_index(bundle), hardware.probe(), roles=roles, context=context, slots=slots)
    if as_json:
        _print_json(asdict(made))
        return
    for placement in made.placements:
        click.echo(
            f"{'+'.join(placement.roles)}: {placement.model} {placement.quant} on {placement.stack}, "
            f"{size_text(placement.size)}, {placement.slots} slots of {placement.context} tokens"
        )
    for note in made.notes:
        click.echo(note)


@cli.command()
@bundle_option
@click.option("--offline", is_flag=True, help="Refuse every connection that is not loopback or a client's own.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@roles_option
@click.option("--context", type=click.IntRange(64), metavar="N", help="Tokens a sequence.")
@click.option("--slots", type=click.IntRange(1, 256), metavar="N", help="Sequences at once in each worker.")
@click.option("--api-key", envvar="TOURKIT_API_KEY", metavar="K", help="Ask clients for this key.")
def serve(
    bundle: Path,
    offline: bool,
    host: str,
    port: int,
    roles: tuple[str, ...],
    context: int | None,
    slots: int | None,
    api_key: str | None,
) -> None:
    """Serve the roles of a bundle through an OpenAI-compatible API.

    \b
    Example: tourkit serve --bundle /media/usb/bundle --offline
             curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
               -d '{"model": "tool", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    if offline:
        from tourkit import offline as guard

        guard.engage()
    from tourkit import bundle as bundles
    from tourkit import hardware
    from tourkit import plan as planning
    from tourkit.server import gateway

    index = bundles.read_index(bundle)
    made = planning.plan(index, hardware.probe(), roles=roles, context=context, slots=slots)
    for note in made.notes:
        click.echo(note, err=True)

    def ready(url: str) -> None:
        for placement in made.placements:
            click.echo(f"{', '.join(placement.roles)}: {placement.model} {placement.quant} on {placement.stack}")
        click.echo(f"tourkit serves at {url}/v1" + (" (offline)" if offline else ""))

    options = gateway.GatewayOptions(offline=offline, api_key=api_key, say=_note)
    gateway.serve(gateway.launches(bundle, made), options, gateway.bind(host, port), ready)


# --- templates ----------------------------------------------------------------------------------------------------


@cli.group()
def templates() -> None:
    """Pipelines made to be copied into a solution."""


@templates.command("list")
@json_option
def list_templates(as_json: bool) -> None:
    """List the templates.

    \b
    Example: tourkit templates list
    """
    from tourkit.pipelines import templates as shelf

    found = shelf.available()
    if as_json:
        _print_json([{"name": each.name, "summary": each.summary, "role": each.role} for each in found])
        return
    for each in found:
        click.echo(f"{each.name:20} {each.summary}")


@templates.command("show")
@click.argument("name")
def show_template(name: str) -> None:
    """Print what a template does and how to adapt it.

    \b
    Example: tourkit templates show json_extraction
    """
    from tourkit.pipelines import templates as shelf

    click.echo(shelf.readme(name))


@templates.command("copy")
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path, file_okay=False))
@click.option("--standalone", is_flag=True, help="Copy the client too, so that it runs without tourkit installed.")
@click.option("--force", is_flag=True, help="Overwrite files of the same name.")
def copy_template(name: str, dest: Path, standalone: bool, force: bool) -> None:
    """Copy a template into a folder of your solution.

    \b
    Example: tourkit templates copy json_extraction solution/extract --standalone
    """
    from tourkit.pipelines import templates as shelf

    for path in shelf.copy(name, dest, standalone=standalone, force=force):
        click.echo(path)


@cli.command()
@click.argument("name")
@click.option("--input", "input_path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL in.")
@click.option(
    "--output", "output_path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL out."
)
@click.option("--url", envvar="TOURKIT_URL", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--model", "model", default=None, metavar="ROLE", help="Role or model id, instead of the template's own.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Documents at once.")
@click.option("--resume", is_flag=True, help="Go on where an earlier run was cut short.")
@click.option("--force", is_flag=True, help="Overwrite the output of an earlier run.")
@click.option("--deadline", metavar="TIME", help="Stop by then, such as 25m or 90s; the rest become records too.")
def run(
    name: str,
    input_path: Path,
    output_path: Path,
    url: str,
    model: str | None,
    concurrency: int,
    resume: bool,
    force: bool,
    deadline: str | None,
) -> None:
    """Run a template over a file of documents: one line in, one line out, order kept, failures recorded.

    NAME is a built-in template, or the path of a copied one.

    \b
    Example: tourkit run json_extraction --input docs.jsonl --output out.jsonl
    """
    from tourkit.client import Client, ClientError
    from tourkit.pipelines import batch

    deadline_s = _seconds(deadline)
    template = batch.load_template(name)
    try:
        client = Client(url, model=model)
        client.models()
    except ClientError as exc:
        raise LocalError(str(exc)) from exc
    with Progress(template.name, unit="documents") as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.advance(done - bar.done)

        summary = batch.run_batch(
            name,
            input_path,
            output_path,
            client=client,
            concurrency=concurrency,
            resume=resume,
            force=force,
            deadline_s=deadline_s,
            on_progress=on_progress,
        )
    if summary.failed:
        raise NotSo(f"{output_path}: {summary}")
    click.echo(f"{output_path}: {summary}")


def _seconds(text: str | None) -> float | None:
    """A length of time such as 90s, 25m or 1.5h in seconds. Raises UsageError."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    factor = {"s": 1, "m": 60, "h": 3600}.get(unit)
    try:
        seconds = float(number) * factor if factor else float(text)
    except ValueError:
        raise UsageError(f"--deadline {text!r} is no length of time: write 90s, 25m or 1.5h") from None
    if seconds <= 0:
        raise UsageError(f"--deadline {text!r} is over already: give a length of time from now")
    return seconds


@cli.command()
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave the bundle and results here.")
@click.option("--documents", type=click.IntRange(1), default=6, show_default=True, help="Documents a template.")
def demo(keep: Path | None, documents: int) -> None:
    """The whole trip on a tiny model: mirror, lock, prefetch, verify, serve offline, three templates.

    \b
    Example: tourkit demo --keep demo
    """
    from tourkit import demo as trip

    trip.run(click.echo, keep=keep, documents=documents)


# --- errors -------------------------------------------------------------------------------------------------------


def _note(text: str) -> None:
    click.echo(text, err=True)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def main(argv: list[str] | None = None) -> int:
    """Run a command; the only place where an error becomes a line on stderr and an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return int(cli.main(args=arguments, prog_name="tourkit", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return exc.exit_code
    except Exception as exc:  # the process boundary: whatever it is ends as one line
        if "--debug" in arguments:
            raise
        message, code = _explain(exc)
        click.echo(f"tourkit: {message}", err=True)
        return code


def _explain(exc: Exception) -> tuple[str, int]:
    """One line for people, and the exit code."""
    if isinstance(exc, TourkitError):
        return " ".join(str(exc).split()), exc.exit_code
    if isinstance(exc, click.ClickException):
        context = getattr(exc, "ctx", None)
        where = f": see `{context.command_path} --help`" if context is not None else ""
        return f"{exc.format_message().rstrip('.')}{where}", exc.exit_code
    if isinstance(exc, click.Abort):
        return "interrupted", _INTERRUPTED
    if isinstance(exc, OSError):
        where = f"{exc.filename}: " if exc.filename else ""
        return f"{where}{exc.strerror or exc}", _LOCAL_FAULT
    return f"a fault of tourkit itself: {exc!r}: `tourkit --debug …` shows where", _LOCAL_FAULT


if __name__ == "__main__":
    sys.exit(main())
