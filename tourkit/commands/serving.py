"""On site: what fills each role here, the server, and the demo of it all."""

from __future__ import annotations

from pathlib import Path

import click

from tourkit.commands.output import bundle_option, json_option, note, print_json, roles_option
from tourkit.progress import size_text


@click.command()
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
        print_json(asdict(made))
        return
    for placement in made.placements:
        click.echo(
            f"{'+'.join(placement.roles)}: {placement.model} {placement.quant} on {placement.stack}, "
            f"{size_text(placement.size)}, {placement.slots} slots of {placement.context} tokens"
        )
    for passed_over in made.notes:
        click.echo(passed_over)


@click.command()
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
    for passed_over in made.notes:
        note(passed_over)

    def ready(url: str) -> None:
        for placement in made.placements:
            click.echo(f"{', '.join(placement.roles)}: {placement.model} {placement.quant} on {placement.stack}")
        click.echo(f"tourkit serves at {url}/v1" + (" (offline)" if offline else ""))

    options = gateway.GatewayOptions(offline=offline, api_key=api_key, say=note)
    gateway.serve(gateway.launches(bundle, made), options, gateway.bind(host, port), ready)


@click.command()
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave the bundle and results here.")
@click.option("--documents", type=click.IntRange(1), default=6, show_default=True, help="Documents a template.")
def demo(keep: Path | None, documents: int) -> None:
    """The whole trip on a tiny model: mirror, lock, prefetch, verify, serve offline, three templates.

    \b
    Example: tourkit demo --keep demo
    """
    from tourkit import demo as trip

    trip.run(click.echo, keep=keep, documents=documents)
