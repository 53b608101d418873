"""What the user lets a plan use of a machine: which GPU, how much of its memory, and what stays free. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tourkit.errors import UsageError
from tourkit.hardware.machine import Gpu, Hardware


@dataclass(frozen=True, slots=True)
class Limits:
    """The user's limits.

    `vram`: the most bytes to use of each GPU, None for all, 0 for no GPU. `reserve`: bytes that stay free for the
    user's own program, on each GPU that is used, or in RAM if there is none. `gpu`: the only GPU to use, by its number
    or its id; "" for all. `prompt_cache`: bytes of RAM for earlier prompts of all models together; None for a share of
    what is left.
    """

    vram: int | None = None
    reserve: int = 0
    gpu: str = ""
    prompt_cache: int | None = None

    def of_gpu(self, usable: int) -> int:
        """Return how many of the `usable` bytes of a GPU a plan may use."""
        left = max(0, usable - self.reserve)
        return left if self.vram is None else min(left, self.vram)


UNLIMITED = Limits()


def allowed(hardware: Hardware, limits: Limits) -> Hardware:
    """Return the machine with only the GPUs that the limits allow. Raises UsageError for a GPU that is not there."""
    if limits.gpu:
        hardware = replace(hardware, gpus=(_chosen(hardware.gpus, limits.gpu),))
    return replace(hardware, gpus=()) if limits.vram == 0 else hardware


def _chosen(gpus: tuple[Gpu, ...], asked: str) -> Gpu:
    for number, gpu in enumerate(gpus):
        if asked in (str(number), gpu.id):
            return gpu
    if not gpus:
        raise UsageError(f"--gpu {asked}: this machine has no GPU: leave the option out")
    listed = ", ".join(f"{number} ({gpu.id}, {gpu.name})" for number, gpu in enumerate(gpus))
    raise UsageError(f"--gpu {asked}: no such GPU: choose one of {listed}")
