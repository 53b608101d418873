"""The command line: the group of commands, and the only place where an error becomes a line and an exit code."""

from __future__ import annotations

import signal
import sys
import threading

import click

from tourkit import __version__
from tourkit.commands import checks, pipelines, serving, sets, supply, wheels
from tourkit.commands.output import note, print_json
from tourkit.errors import TourkitError

_LOCAL_FAULT, _INTERRUPTED = 4, 130
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_HELP)
@click.version_option(__version__, prog_name="tourkit")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Pin, prefetch, verify and serve open LLMs for a competition without a network.

    \b
    Before, connected:   tourkit prefetch cpu-16gb-2026 --to /media/usb/bundle
    On site, offline:    tourkit serve --bundle /media/usb/bundle --offline
    A model of your own: tourkit serve model.gguf
    To see it all work:  tourkit demo
    """


for command in (
    *(supply.models, sets.sets, supply.lock, supply.prefetch, wheels.wheels, supply.verify, supply.mirror),
    *(serving.plan, serving.serve, serving.demo),
    *(checks.doctor, checks.rehearse),
    *(pipelines.templates, pipelines.run),
):
    cli.add_command(command)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code. An error is printed as one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    _end_at_hang_up()
    try:
        return int(cli.main(args=arguments, prog_name="tourkit", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return exc.exit_code
    except Exception as exc:  # the process boundary: every error ends as one line
        if "--debug" in arguments:
            raise
        message, code = _explain(exc)
        note(f"tourkit: {message}")
        if isinstance(exc, TourkitError) and exc.details:
            _show_details(message, exc.details, as_json="--json" in arguments)
        return code


def _end_at_hang_up() -> None:
    """Let a closed terminal end a command as Ctrl-C does, so that it removes its temporary folders."""
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    in_main = threading.current_thread() is threading.main_thread()
    if hang_up is not None and in_main and signal.getsignal(hang_up) is signal.SIG_DFL:
        signal.signal(hang_up, signal.default_int_handler)


def _show_details(message: str, details: tuple[str, ...], *, as_json: bool) -> None:
    """List every problem below the line of the error; with `as_json` on stdout too, for scripts."""
    for detail in details:
        note(f"  {detail}")
    if as_json:
        print_json({"error": message, "problems": list(details)})


def _explain(exc: Exception) -> tuple[str, int]:
    """Return the line to print, and the exit code."""
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
