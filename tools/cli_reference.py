"""Write docs/cli.md from the commands' own --help: `python tools/cli_reference.py docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tourkit.cli import cli

_HEAD = """\
# The command line

`make docs` writes this page from the help of the commands; a test checks that both agree.

Exit codes: 0 done; 1 the answer is no (damage found, nothing fits); 2 wrong usage or a bad manifest; 3 the network or
the hub failed; 4 a local problem (disk full, no permission, a missing library). An error is one line on stderr: what,
where, and the fix. `tourkit --debug COMMAND` also shows where in the code it came from.
"""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the path and the help text of this command and of every command below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.commands[name]
            yield from commands(child, click.Context(child, info_name=name, parent=context))


def render() -> str:
    """Return the whole page."""
    settings = cli.context_settings | {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(cli, info_name="tourkit", **settings)
    sections = [f"## {path}\n\n```\n{text}\n```\n" for path, text in commands(cli, context)]
    return "\n".join([_HEAD, *sections])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
