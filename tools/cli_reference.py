"""Write docs/cli.md from the commands' own --help: `python tools/cli_reference.py docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from tourkit.cli import cli

_HEAD = """\
# The command line

Written by `make docs` from the commands' own help; a test keeps the two the same.

Exit codes: 0 done; 1 the thing asked about is not so (damage found, nothing fits); 2 wrong usage or a bad manifest;
3 the network or the hub failed; 4 local trouble (disk full, no permission, a missing library). An error is one line
on stderr: what, where, and the mend; `tourkit --debug COMMAND` shows where it came from.
"""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Every command below and including this one: its path and its help text."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.commands[name]
            yield from commands(child, click.Context(child, info_name=name, parent=context))


def render() -> str:
    """The whole page."""
    settings = cli.context_settings | {"terminal_width": 100, "max_content_width": 100}
    context = click.Context(cli, info_name="tourkit", **settings)
    sections = [f"## {path}\n\n```\n{text}\n```\n" for path, text in commands(cli, context)]
    return "\n".join([_HEAD, *sections])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
