"""Options and output functions that several commands share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tourkit.errors import Interrupted
from tourkit.isolation.guard import GUARDS
from tourkit.progress import Progress
from tourkit.terminal import visible, visible_json
from tourkit.units import parse_seconds, parse_size, size_text

if TYPE_CHECKING:
    _IntParam = click.ParamType[int]
    _FloatParam = click.ParamType[float]
else:  # older clicks have no type parameter
    _IntParam = _FloatParam = click.ParamType

_Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
roles_option = click.option("--role", "roles", multiple=True, metavar="R", help="Only this role; may be repeated.")

guard_option = click.option(
    "--guard",
    type=click.Choice(GUARDS),
    help="Force this guard; without it the strongest that the system allows (docs/offline.md).",
)


def bundle_option(command: _Command) -> _Command:
    """Add --bundle DIR, which falls back to $TOURKIT_BUNDLE, then ./bundle."""
    option = click.option(
        "--bundle",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: os.environ.get("TOURKIT_BUNDLE") or "bundle",
        show_default="$TOURKIT_BUNDLE, then ./bundle",
        help="The bundle folder.",
    )
    return option(command)


def gpu_options(command: _Command) -> _Command:
    """Add --machine FILE, --reserve SIZE and --gpu ID: the machine to plan for, and what to use of its GPUs."""
    for option in (
        click.option("--gpu", default="", metavar="ID", help="Use only this GPU: its number from 0, or its id."),
        click.option(
            "--reserve",
            type=SIZE,
            default=0,
            metavar="SIZE",
            help="Keep this much GPU memory free for your own program; RAM if there is no GPU.",
        ),
        click.option(
            "--machine",
            "machine_path",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Plan for the machine in this JSON file, which `tourkit doctor --json` writes on it.",
        ),
    ):
        command = option(command)
    return command


def is_given(option: str) -> bool:
    """Whether the option of the running command is on the command line, and not a default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def show(line: str) -> None:
    """Print a line of the result on stdout. Control characters in it are made visible."""
    click.echo(visible(line))


def show_text(text: str) -> None:
    """Print several lines of the result on stdout. Other control characters than newlines are made visible."""
    for line in text.split("\n"):
        show(line)


def note(line: str) -> None:
    """Print a line on stderr, beside the result of the command. Control characters in it are made visible."""
    click.echo(visible(line), err=True)


@contextmanager
def resumable(again: str) -> Iterator[None]:
    """Turn Ctrl-C into a line that says how to go on: `again`. Raises Interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {again}") from None


def print_json(value: Any) -> None:
    """Print JSON on stdout. Control characters are escaped as JSON does it, so it stays valid and means the same."""
    click.echo(visible_json(json.dumps(value, ensure_ascii=False, indent=2)))


class BarListener:
    """A FetchListener that shows a progress bar."""

    def __init__(self, label: str = "prefetch") -> None:
        self.bar = Progress(label)

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        self.bar.begin(total_bytes)
        self.bar.note(f"{size_text(total_bytes)} in all, {size_text(to_fetch)} to fetch")

    def on_bytes(self, n: int, kind: str) -> None:
        self.bar.advance(n)

    def on_again(self, n: int) -> None:
        self.bar.advance(-n)

    def on_note(self, text: str) -> None:
        self.bar.note(text)


class SizeType(_IntParam):
    """The option type of a size with its unit: 20GiB, 512MiB, 24GB; G means GiB, as in GPU names. Gives bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


SIZE = SizeType()


class TimeType(_FloatParam):
    """The option type of a length of time: 90s, 25m, 1.5h, 30. Gives seconds, of at least 0."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_seconds(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)
        if not 0 <= seconds < math.inf:
            self.fail(f"{value!r} is no time to wait: give 0 or more", param, ctx)
        return seconds


TIME = TimeType()
