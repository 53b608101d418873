"""From a bundle or a weights file to a running gateway: plan for this machine, and serve what the plan places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tourkit import net
from tourkit.bundle.environment import variables
from tourkit.bundle.index import BundleAsset, Index, chat_templates_of, read_index
from tourkit.bundle.scan import check_plain
from tourkit.errors import NotSo, UsageError
from tourkit.hardware import machine_file, probe
from tourkit.hardware.machine import Gpu, Hardware
from tourkit.manifest.models import VariantId
from tourkit.net import Urls
from tourkit.planning import planner, sources
from tourkit.planning.defaults import with_defaults
from tourkit.planning.limits import UNLIMITED, Limits
from tourkit.planning.model_shape import Shape
from tourkit.planning.plan import CPU, Placement, Plan
from tourkit.planning.weights import read_weights
from tourkit.server.gateway import app
from tourkit.server.gateway.app import GatewayOptions


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to serve, where and how. `roles` () means all of them.

    `context` in tokens a sequence and `slots` in sequences at once; None leaves them to the plan. `deterministic` and
    `prompt_cache_dir` are those of Launch; they exclude each other. `port` 0 takes a free one. `machine`: the JSON file
    of the machine to plan for, None for the machine it runs on. `limits`: what the plan may use of it.
    `special_tokens_in_content`: as in Launch.
    """

    roles: tuple[str, ...] = ()
    context: int | None = None
    slots: int | None = None
    deterministic: bool = False
    prompt_cache_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    machine: Path | None = None
    limits: Limits = UNLIMITED
    special_tokens_in_content: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """What to serve. `locate` gives the file or folder for a path of the index. `name`: how messages name it."""

    index: Index
    shapes: Mapping[VariantId, Shape]
    locate: Callable[[str], Path]
    name: str


def serve_bundle(
    bundle: Path, options: ServeOptions, gateway: GatewayOptions, on_ready: Callable[[Urls, Plan], None]
) -> None:
    """Plan for this machine, and serve the plan until interrupted.

    `on_ready` gets the URLs and the plan once requests are accepted; `gateway.say` gets the notes of the plan.
    Raises UsageError (a wrong role, GPU or machine file), NotSo (no bundle, or it fills no role here) and LocalError
    (the address is not available).
    """
    _serve(source_of_bundle(bundle), options, gateway, on_ready)


def serve_weights(
    path: Path, options: ServeOptions, gateway: GatewayOptions, on_ready: Callable[[Urls, Plan], None]
) -> None:
    """Serve a GGUF file or a folder of safetensors as `serve_bundle` serves a bundle.

    Raises what `serve_bundle` raises; and LocalError when the model cannot be loaded, with the reason.
    """
    _serve(source_of_weights(path), options, replace(gateway, ends_unloaded=True), on_ready)


def source_of_bundle(bundle: Path) -> Source:
    """Return a bundle as something to serve. Raises NotSo if there is none."""
    index = read_index(bundle)
    check_plain(bundle, (file.path for file in index.files if not file.path.startswith("wheels/")))
    return Source(index, sources.shapes_of_bundle(bundle, index), bundle.joinpath, "the bundle")


def source_of_weights(path: Path) -> Source:
    """Return a GGUF file or a folder of safetensors as something to serve. Raises UsageError and LocalError."""
    weights = read_weights(path)
    return Source(weights.index, weights.shapes, lambda _: weights.path, str(path))


def placements_on(
    source: Source, options: ServeOptions, machine: Hardware, say: Callable[[str], None]
) -> tuple[Placement, ...]:
    """Plan for a machine, and return the placements with absolute paths. `say` gets the notes of the plan.

    Raises UsageError (a wrong role or GPU) and NotSo (nothing fits).
    """
    made = _plan(source, options, machine, options.roles)
    for line in (*made.notes, *made.unfilled):
        say(line)
    return _located(source, options, made, say)


def _serve(
    source: Source, options: ServeOptions, gateway: GatewayOptions, on_ready: Callable[[Urls, Plan], None]
) -> None:
    machine = _hardware(options)
    made = _plan(source, options, machine, options.roles)
    for line in (*made.notes, *made.unfilled):
        gateway.say(line)
    if options.prompt_cache_dir is not None and (why := useless_folder(made)):
        gateway.say(f"--prompt-cache-dir: {why}")
    if options.deterministic and any(not placement.launch.gpu_layers.is_none for placement in made.placements):
        gateway.say("--deterministic holds on a CPU only: on a GPU a near-tie may still fall either way")
    gateway = replace(gateway, only_gpu=has_one_gpu(machine), plan_again=partial(plan_again, source, options))
    placements = _located(source, options, made, gateway.say)
    check_preload(placements, gateway.lifetimes.preload)
    app.serve(placements, gateway, net.listen(options.host, options.port), lambda urls: on_ready(urls, made))


def check_preload(placements: Iterable[Placement], preload: tuple[str, ...] | None) -> None:
    """Raise UsageError for a name that is not served, and for two models of which only one can be loaded."""
    named = {name: each for each in placements for name in (each.launch.model, *each.roles)}
    for name in preload or ():
        if name not in named:
            raise UsageError(f"--preload {name}: it is not served here: use one of {', '.join(named)}")
    in_turn = {named[name].launch.title: name for name in preload or () if not named[name].resident}
    if len(in_turn) > 1:
        raise UsageError(f"--preload {', '.join(in_turn.values())}: they take turns: name one of them")


def useless_folder(plan: Plan) -> str:
    """Return why nothing would be saved in the folder of the prompt cache, with the fix; "" if prompts are saved."""
    if plan.prompt_cache is None:
        return "no model here runs on a stack that keeps prompts: leave it out"
    if not plan.prompt_cache.most:
        return "the models leave no RAM for the prompts that it saves: lower --context or --slots, or serve fewer roles"
    return ""


def plan_again(
    source: Source, options: ServeOptions, failed: Placement, loaded: Iterable[Placement], coming: Iterable[Placement]
) -> Placement | None:
    """Measure this machine again, and return a smaller placement of the same model; None if none fits.

    `failed` found too little memory. `loaded`: placements of other workers that have their memory already, so it is not
    measured as free. `coming`: placements for which memory must stay free.
    """
    index = replace(source.index, roles=dict.fromkeys(failed.roles, (failed.launch.model,)))
    machine = left_beside(probe.probe(), options.limits, loaded, coming)
    try:
        made = _plan(replace(source, index=index), options, machine, failed.roles)
    except (NotSo, UsageError):  # nothing fits, or the GPU that --gpu names has gone: the fallbacks are next
        return None
    [placement] = _located(source, options, made)  # what `with_defaults` says was said at the start
    device = failed.device
    if placement.device == device and _taken([placement])[device] >= _taken([failed])[device]:
        return None  # it would fail in the same way
    return replace(placement, resident=failed.resident)


def has_one_gpu(machine: Hardware) -> bool:
    """Whether exactly one GPU is visible. One that did not answer is visible too, so after a problem it is not sure."""
    return len(machine.gpus) == 1 and not machine.problems


def left_beside(
    machine: Hardware, limits: Limits, loaded: Iterable[Placement], coming: Iterable[Placement]
) -> Hardware:
    """Return the machine with the free memory that is left beside other placements.

    Both kinds of placements are those of `plan_again`. The limit on a GPU's memory counts for all workers together.
    """
    held, needed = _taken(loaded), _taken(coming)

    def left(gpu: Gpu) -> Gpu:
        free = gpu.free if limits.vram is None else min(gpu.free, limits.vram - held[gpu.id])
        return replace(gpu, free=max(0, free - needed[gpu.id]))

    ram = machine.ram if machine.ram_free is None else machine.ram_free
    return replace(machine, gpus=tuple(map(left, machine.gpus)), ram_free=max(0, ram - needed[CPU]))


def _taken(placements: Iterable[Placement]) -> Counter[str]:
    """Return the bytes that placements take together, by device."""
    taken: Counter[str] = Counter()
    for memory in (memory for placement in placements for memory in placement.memory):
        taken[memory.device] += memory.total
    return taken


def _plan(source: Source, options: ServeOptions, machine: Hardware, roles: tuple[str, ...]) -> Plan:
    return planner.plan(
        source.index,
        machine,
        roles=roles,
        context=options.context,
        slots=options.slots,
        shapes=source.shapes,
        limits=options.limits,
        given=source.name,
    )


def _located(
    source: Source, options: ServeOptions, plan: Plan, say: Callable[[str], None] = lambda line: None
) -> tuple[Placement, ...]:
    """Return the placements of a plan as workers get them. `say`: as in `with_defaults`."""
    placements = placements_at(
        source.locate,
        plan,
        deterministic=options.deterministic,
        prompt_cache_dir=options.prompt_cache_dir,
        special_tokens_in_content=options.special_tokens_in_content,
        chat_templates=chat_templates_of(source.index),
        assets=source.index.assets,
    )
    return tuple(with_defaults(placement, source.index, say) for placement in placements)


def _hardware(options: ServeOptions) -> Hardware:
    return probe.probe() if options.machine is None else machine_file.read_machine(options.machine)


def placements_at(
    locate: Callable[[str], Path],
    plan: Plan,
    *,
    deterministic: bool = False,
    prompt_cache_dir: Path | None = None,
    special_tokens_in_content: bool = False,
    chat_templates: Mapping[str, str] = MappingProxyType({}),
    assets: Iterable[BundleAsset] = (),
) -> tuple[Placement, ...]:
    """Return the placements of a plan with absolute paths. `locate` gives the file or folder for a path of the index.

    The options are those of Launch, `chat_templates` by model id. `assets`: those of the bundle, which give each launch
    its `environment`.
    """
    assets = tuple(assets)
    kept = str(prompt_cache_dir.resolve()) if prompt_cache_dir is not None else ""

    def located(placement: Placement) -> Placement:
        launch = replace(
            placement.launch,
            path=str(locate(placement.launch.path).absolute()),
            lora=tuple(str(locate(path).absolute()) for path in placement.launch.lora),
            deterministic=deterministic,
            prompt_cache_dir=kept,
            special_tokens_in_content=special_tokens_in_content,
            chat_template=chat_templates.get(placement.launch.model, ""),
            environment=variables(assets, placement.launch.stack, locate),
        )
        return replace(placement, launch=launch, fallbacks=tuple(map(located, placement.fallbacks)))

    return tuple(map(located, plan.placements))
