"""The peak bandwidth of the memory of GPUs, as their maker states it."""

from __future__ import annotations

import re

from tourkit.hardware.machine import Gpu

# Bytes a second, by what CUDA's name of the GPU contains. Source: NVIDIA A100 Tensor Core GPU datasheet
# (nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf).
_PEAKS = {
    "A100-SXM4-80GB": 2_039_000_000_000,
    "A100 80GB PCIe": 1_935_000_000_000,
    "A100-SXM4-40GB": 1_555_000_000_000,
    "A100-PCIE-40GB": 1_555_000_000_000,
}
_CARD = re.compile(r"(\d+)GB")
_SLICE = re.compile(r"MIG \d+g\.(\d+)gb")


def bandwidth(gpu: Gpu) -> int | None:
    """Return bytes a second: what the machine file states, else the peak of the GPU; None if it is not known.

    A MIG slice has as large a part of the bandwidth as of the memory: "a GPU memory slice is roughly one eighth of the
    total GPU memory resources, including both capacity and bandwidth" (NVIDIA's MIG User Guide, Concepts).
    """
    if gpu.bandwidth is not None:
        return gpu.bandwidth
    found = next(((name, peak) for name, peak in _PEAKS.items() if name in gpu.name), None)
    if found is None:
        return None
    name, peak = found
    part, whole = _SLICE.search(gpu.name), _CARD.search(name)
    if part is None or whole is None:
        return None if gpu.mig else peak
    return peak * int(part[1]) // int(whole[1])
