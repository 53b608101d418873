"""The options of `serve` that say when models are loaded and unloaded, and how the server stops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from tourkit.commands.output import TIME
from tourkit.errors import UsageError

_NOTHING = "none"
_Command = Callable[..., Any]


def lifecycle_options(command: _Command) -> _Command:
    """Add --preload, --idle-timeout and --drain. The command gets `lifetimes`, of the type Lifetimes."""

    @functools.wraps(command)
    def with_lifetimes(
        *args: Any, preload: tuple[str, ...], idle_timeout: float | None, drain: float, **more: Any
    ) -> Any:
        from tourkit.server.gateway.lifecycle import Lifetimes

        if _NOTHING in preload and len(preload) > 1:
            raise UsageError(f"--preload {_NOTHING} loads nothing at the start: leave it out, or the other --preload")
        names = () if preload == (_NOTHING,) else preload or None
        return command(*args, lifetimes=Lifetimes(names, idle_timeout or None, drain), **more)

    for option in (
        click.option(
            "--drain",
            type=TIME,
            default="30s",
            show_default=True,
            metavar="TIME",
            help="After SIGTERM, let running answers end for this long.",
        ),
        click.option(
            "--idle-timeout",
            type=TIME,
            metavar="TIME",
            help="Unload a model after this long without a request (10m); its next request loads it. 0: never.",
        ),
        click.option(
            "--preload",
            multiple=True,
            metavar="R",
            help="Load only this role or model id at the start, the others for their first request; may be repeated. "
            f"`{_NOTHING}` loads nothing. Without it all models that fit are loaded.",
        ),
    ):
        with_lifetimes = option(with_lifetimes)
    return with_lifetimes
