"""Commands for templates and for batch runs over files."""

from __future__ import annotations

from pathlib import Path

import click

from tourkit.commands.output import guard_option, json_option, note, print_json, resumable, show, show_text
from tourkit.errors import LocalError, NotSo, UsageError
from tourkit.progress import Progress
from tourkit.units import parse_seconds


@click.group()
def templates() -> None:
    """Pipelines to copy into a solution."""


@templates.command("list")
@json_option
def list_templates(as_json: bool) -> None:
    """List the templates with what each does.

    \b
    Example: tourkit templates list
    """
    from tourkit.pipelines import templates as shelf

    found = shelf.available()
    if as_json:
        print_json([{"name": each.name, "summary": each.summary, "role": each.role} for each in found])
        return
    for each in found:
        show(f"{each.name:20} {each.summary}")


@templates.command("show")
@click.argument("name")
def show_template(name: str) -> None:
    """Print what a template does and how to adapt it.

    \b
    Example: tourkit templates show json_extraction
    """
    from tourkit.pipelines import templates as shelf

    show_text(shelf.readme(name))


@templates.command("copy")
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path, file_okay=False))
@click.option("--standalone", is_flag=True, help="Copy the client too; the copy then runs without tourkit.")
@click.option("--force", is_flag=True, help="Overwrite files of the same name.")
def copy_template(name: str, dest: Path, standalone: bool, force: bool) -> None:
    """Copy a template into a folder of your solution.

    \b
    Example: tourkit templates copy json_extraction solution/extract --standalone
    """
    from tourkit.pipelines import templates as shelf

    for path in shelf.copy(name, dest, standalone=standalone, force=force):
        show(str(path))


@click.command()
@click.argument("name")
@click.option("--input", "input_path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL in.")
@click.option(
    "--output", "output_path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL out."
)
@click.option("--url", envvar="TOURKIT_URL", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--model", "model", default=None, metavar="ROLE", help="Role or model id, instead of the template's own.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Documents at once.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped; run failed documents again.")
@click.option("--force", is_flag=True, help="Overwrite the output of an earlier run.")
@click.option(
    "--deadline", metavar="TIME", help="Stop after this time, such as 25m or 90s; the rest become failed records."
)
@click.option(
    "--offline",
    is_flag=True,
    help="Refuse every connection but those to the server; so it is without this too if the server is offline.",
)
@guard_option
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
    offline: bool,
    guard: str | None,
) -> None:
    """Run a template over a file of documents: one output line for each input line, in the same order.

    NAME is a built-in template, or the path of a copied one. A document that fails becomes a record with the error.

    \b
    Example: tourkit run json_extraction --input docs.jsonl --output out.jsonl
    """
    from tourkit.client import Client, ClientError
    from tourkit.pipelines import batch
    from tourkit.pipelines.preflight import check_model
    from tourkit.pipelines.templates import declared_role, template_file

    deadline_s = _seconds(deadline)
    file = template_file(name)
    _guard(url, guard, asked=offline)  # before any code of the template runs
    # With a deadline the template's code runs in another process only, so that it cannot hold up this one.
    role = declared_role(file) if deadline_s is not None else batch.load_template(name).role
    try:
        client = Client(url, model=model)
        served = client.models()
    except ClientError as exc:
        raise LocalError(str(exc)) from exc
    check_model(model, role, served, client.url)
    again = "run the same command again, it resumes" if resume else "run the same command with --resume, it goes on"
    with resumable(again), Progress(file.stem, unit="documents") as bar:

        def on_progress(done: int, total: int) -> None:
            if bar.total != total:  # the first call: `done` is what an earlier run did
                bar.begin(total, done)
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
            say=note,
        )
    if summary.failed:
        raise NotSo(f"{output_path}: {summary}")
    show(f"{output_path}: {summary}")


def _guard(url: str, wish: str | None, *, asked: bool) -> None:
    """Take this process offline if `asked`, or if the server is offline. Raises UsageError and LocalError.

    A server that does not answer is no reason for an error here: the next question to it says what is wrong.
    """
    from tourkit.client import Client, ClientError
    from tourkit.pipelines.guarded import go_offline

    try:
        is_offline = asked or Client(url).health().get("offline") is True
    except ClientError:
        is_offline = False
    if is_offline:
        held = go_offline(url, wish or "")
        note(f"offline: only the server at {url} can be reached (guard: {held.name})")
    elif wish is not None:
        raise UsageError(f"--guard {wish} is for a run that is offline, and the server is not: add --offline")


def _seconds(text: str | None) -> float | None:
    """Return a length of time such as 90s, 25m or 1.5h in seconds; None for None. Raises UsageError."""
    if text is None:
        return None
    try:
        seconds = parse_seconds(text)
    except ValueError as exc:
        raise UsageError(f"--deadline {exc}") from None
    if seconds <= 0:
        raise UsageError(f"--deadline {text!r} is not after now: give a length of time above 0")
    return seconds
