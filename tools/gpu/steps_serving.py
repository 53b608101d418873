"""Step: a GPU with 20 GiB left, three models planned and served, one worker killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.gpu import random_blocks
from tools.gpu.ballast import ballast, free_memory
from tools.gpu.findings import MEMORY, Finding, check, measured, skipped
from tools.gpu.place import NO_GPU, Place, is_installed
from tools.gpu.steps_memory import MODELS, size_of
from tools.gpu.steps_speed import asked
from tourkit.bundle.index import BundleModel, BundleVariant, Index, write_index
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.manifest.models import PinnedFile, VariantId
from tourkit.planning import planner
from tourkit.planning.model_shape import Shape

LEAVE = 20 << 30  # bytes of the GPU that stay free beside the ballast
ROLES = {"brain": "8b-q8_0", "tool": "8b-q4_k", "fast": "1b-q8_0"}
_CONTEXT, _SLOTS = 2048, 2
_RESTART_SECONDS = 45.0
_KILLED = "fast"


def site(place: Place) -> Iterator[Finding]:
    """Plan three models into what the ballast leaves, serve them, kill one worker, and ask again.

    A dry run plans over a described machine, and serves tiny models on the CPU.
    """
    if place.dry:
        yield from _described()
    if not is_installed("llama_cpp"):
        yield skipped("three workers", "llama_cpp is not installed here, and no CUDA build was carried")
        return
    missing = [name for name in ROLES.values() if not place.model(name).is_file()]
    if missing:
        yield skipped("three workers", f"{', '.join(missing)} was not written")
        return
    bundle = _bundle(place)
    if place.dry:
        yield from _served(bundle, place)
        yield skipped("three workers beside a ballast", NO_GPU)
        return
    with ballast(os.environ, LEAVE) as left:
        yield measured("the ballast leaves", bytes=left)
        yield from _served(bundle, place)


def described_machine() -> Hardware:
    """Return a described machine: a GPU of 80 GiB with 20 GiB free, and llama.cpp with CUDA."""
    gpu = Gpu("GPU-described", "a described GPU", "cuda", 80 << 30, LEAVE, (9, 0))
    stack = InstalledStack("llama_cpp", "0.3.36", gpu="cuda 13.0")
    return Hardware(16, 128 << 30, gpus=(gpu,), stacks=(stack,), driver="13.0", system="linux", arch="x86_64")


def _described() -> Iterator[Finding]:
    """Plan the models in their real sizes over the described machine."""
    sizes = {name: size_of(*MODELS[name]) for name in ROLES.values()}
    shapes = {_variant(name): _shape(MODELS[name][0]) for name in ROLES.values()}
    made = planner.plan(_index(sizes), described_machine(), shapes=shapes)
    on_gpu = [role for each in made.placements if each.device != "cpu" and each.resident for role in each.roles]
    yield check("the described machine holds all three on its GPU", len(on_gpu) == len(ROLES), f"only {on_gpu}")
    yield measured("the plan over the described machine", used=made.devices[0].used, usable=made.devices[0].usable)


def _shape(shape: Any) -> Shape:
    head = shape.width // shape.heads
    kv = (2 * head * shape.kv_heads,) * shape.layers
    vocab = random_blocks.VOCAB[shape]
    return Shape(kv, (0,) * shape.layers, shape.width, shape.feed_forward, vocab, 131_072, "described", head=head)


def _variant(name: str) -> VariantId:
    return VariantId(name, MODELS[name][1])


def _index(sizes: dict[str, int]) -> Index:
    """Return the index of a bundle. Nothing is hashed: serving does not read the hashes, and they take seconds."""
    models = tuple(BundleModel(name, f"random/{name}", "none", 131_072, None, False) for name in sizes)
    variants = tuple(
        BundleVariant(name, _variant(name).quant, "gguf", f"random/{name}", "main", "1" * 40) for name in sizes
    )
    files = tuple(
        PinnedFile(f"{_variant(name).folder}/{name}.gguf", size, "0" * 64, None) for name, size in sizes.items()
    )
    return Index("gpu-check", "", "", {role: (name,) for role, name in ROLES.items()}, models, variants, files)


def _bundle(place: Place) -> Path:
    """Make a bundle of hard links to the models. Return its folder."""
    root = Path(place.work) / "bundle"
    for name in ROLES.values():
        folder = root / _variant(name).folder
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / f"{name}.gguf"
        link.unlink(missing_ok=True)
        link.hardlink_to(place.model(name))
    write_index(root, _index({name: place.model(name).stat().st_size for name in ROLES.values()}))
    return root


def _served(bundle: Path, place: Place) -> Iterator[Finding]:
    """Serve the bundle, compare its memory with the plan's, and kill a worker."""
    limits = ["--context", str(_CONTEXT), "--slots", str(_SLOTS)]
    made = _planned(bundle, limits)
    devices = [each["device"] for each in made["placements"]]
    if not place.dry:
        yield check("the plan puts all three on the GPU", "cpu" not in devices, f"{devices}; {made['notes']}")
        before = free_memory(os.environ)
    with _serving(bundle, limits) as host:
        yield check("all three roles answer", not (wrong := _silent(host)), f"{wrong}")
        if place.dry:
            yield measured("its clients", **asked(host, 2, 0, prompt=64, tokens=4))
        else:
            taken = before - free_memory(os.environ)
            yield measured("three workers together", MEMORY, predicted=made["devices"][0]["used"], measured=taken)
        yield from _killed(host)


def _planned(bundle: Path, limits: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tourkit", "plan", "--bundle", str(bundle), "--json", *limits]
    made: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return made


@contextmanager
def _serving(bundle: Path, limits: list[str]) -> Iterator[str]:
    command = [sys.executable, "-m", "tourkit", "serve", "--bundle", str(bundle), "--port", "0", "--offline", *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = process.stdout or ()
            host = next((found[1] for line in lines if (found := re.search(r"http://([\d.:]+)/v1", line))), "")
            if not host:
                raise RuntimeError(f"tourkit serve ended with {process.wait()}: see stderr")
            yield host
        finally:
            process.terminate()


def _killed(host: str) -> Iterator[Finding]:
    """Kill one worker. The others must answer at once, and it must come back by itself."""
    pid = _pid(host)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    others = [role for role in _silent(host, without=_KILLED) if role]
    yield check("the other workers answer while it is gone", not others, f"{others} did not")
    pause = threading.Event()
    while _pid(host) in (pid, 0) or _silent(host):
        if time.monotonic() - killed > _RESTART_SECONDS:
            yield check("the killed worker comes back", False, f"not within {_RESTART_SECONDS:.0f} seconds")
            return
        pause.wait(0.2)
    yield check("the killed worker comes back", True, seconds=time.monotonic() - killed)


def _pid(host: str) -> int:
    """Return the process id of the worker that will be killed; 0 while it has none."""
    workers = json.loads(_request(host, "GET", "/health")[1])["workers"].values()
    return next((each["pid"] or 0 for each in workers if _KILLED in each["roles"]), 0)


def _silent(host: str, without: str = "") -> list[str]:
    """Return the roles that do not answer a chat of four tokens."""
    wrong = []
    for role in ROLES:
        body = {"model": role, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        if role != without and _request(host, "POST", "/v1/chat/completions", body)[0] != 200:
            wrong.append(role)
    return wrong


def _request(host: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"content-type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found
