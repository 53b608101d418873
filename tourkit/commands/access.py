"""The options of `serve` that say who may send requests, and what they mean together."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tourkit.commands.output import note
from tourkit.errors import LocalError, UsageError

if TYPE_CHECKING:
    from tourkit.server.gateway.access import AccessRules

_VARIABLE = "TOURKIT_API_KEY"
_HOST_NAME = re.compile(r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9_])?\.?")
_ORIGIN = re.compile(r"\*|null|[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#\s]+/?")
_Command = Callable[..., Any]


def access_options(command: _Command) -> _Command:
    """Add the options. The command gets `access`: a function from --host to the rules. It raises UsageError."""

    @functools.wraps(command)
    def with_access(
        *args: Any,
        api_key: str | None,
        api_key_file: Path | None,
        no_key: bool,
        allow_hosts: tuple[str, ...],
        cors: tuple[str, ...],
        **more: Any,
    ) -> Any:
        def access(host: str) -> AccessRules:
            keys = _keys(api_key, api_key_file, no_key=no_key)
            rules = _rules(host, keys, allow_hosts, cors, no_key=no_key)
            if api_key is not None:
                note(
                    f"--api-key: other users of this machine see the key with `ps`: use --api-key-file or ${_VARIABLE}"
                )
            if not (keys or _is_this_machine(host)):
                note(f"--no-key: every machine that reaches {host} can use this server")
            return rules

        return command(*args, access=access, **more)

    for option in (
        click.option(
            "--cors",
            multiple=True,
            metavar="ORIGIN",
            help="Let web pages of this origin (https://HOST:PORT) send requests; * for every page; may be repeated.",
        ),
        click.option(
            "--allow-host",
            "allow_hosts",
            multiple=True,
            metavar="NAME",
            help="A host name by which clients reach this server, besides its addresses; may be repeated.",
        ),
        click.option("--no-key", is_flag=True, help="Ask for no key, also on an address that other machines reach."),
        click.option("--api-key", metavar="K", help="Ask clients for this key. `ps` shows it: rather use a file."),
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Ask clients for a key: one on each line of this file.  [default: $TOURKIT_API_KEY]",
        ),
    ):
        with_access = option(with_access)
    return with_access


def _keys(option: str | None, file: Path | None, *, no_key: bool) -> tuple[str, ...]:
    """Return the keys that are given, by an option or else by the variable. Raises UsageError, LocalError."""
    options = (("--api-key", option), ("--api-key-file", file), ("--no-key", no_key or None))
    given = [name for name, value in options if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them")
    if no_key:
        return ()
    if option is not None:
        return (_checked(option, "--api-key"),)
    if file is not None:
        lines = [line.strip() for line in _text(file).splitlines()]
        keys = tuple(_checked(line, f"--api-key-file {file}") for line in lines if line)
        if not keys:
            raise UsageError(f"--api-key-file {file}: no key in it: write a key on a line of its own")
        return keys
    variable = os.environ.get(_VARIABLE)
    return () if variable is None else (_checked(variable, f"${_VARIABLE}"),)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise LocalError(f"--api-key-file {file}: cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"--api-key-file {file}: not UTF-8 text: write a key on a line of its own") from exc


def _checked(key: str, source: str) -> str:
    """Return a key without spaces around it. The message of a wrong one does not show it."""
    key = key.strip()
    if not key:
        raise UsageError(f"{source}: the key is empty, so everybody would have it: give a key, or leave it out")
    if not key.isprintable():
        raise UsageError(f"{source}: the key has characters that an HTTP header cannot hold: use letters and digits")
    return key


def _rules(
    host: str, keys: tuple[str, ...], allow_hosts: tuple[str, ...], cors: tuple[str, ...], *, no_key: bool
) -> AccessRules:
    from tourkit.server.gateway.access import AccessRules

    for name in allow_hosts:
        if not _HOST_NAME.fullmatch(name):
            raise UsageError(f"--allow-host {name!r}: give a host name alone, such as venue.example")
    for origin in cors:
        if not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--cors {origin!r}: give an origin such as https://venue.example:3000, or *")
    if not (keys or no_key or _is_this_machine(host)):
        raise UsageError(
            f"--host {host}: other machines can reach it: give a key with ${_VARIABLE} or --api-key-file, "
            "or let everybody in with --no-key"
        )
    return AccessRules(keys, allow_hosts, cors)


def _is_this_machine(host: str) -> bool:
    """Whether only this machine reaches the address. No name but localhost is known to be one."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False
