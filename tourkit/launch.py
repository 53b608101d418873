"""What a worker loads and with which settings. Planning decides it, the gateway sends it, a backend reads it."""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.defaults import RoleDefaults


@dataclass(frozen=True, slots=True)
class GpuLayers:
    """How many layers of a model are on the GPU. `count`: None for all layers, if the stack can use a GPU."""

    count: int | None = None

    @property
    def is_all(self) -> bool:
        return self.count is None

    @property
    def is_none(self) -> bool:
        return self.count == 0

    @property
    def is_part(self) -> bool:
        return not self.is_all and not self.is_none

    def share(self, layers: int) -> float:
        """Return the part of a model of `layers` layers that is on the GPU, from 0 to 1."""
        return 1.0 if self.count is None else min(1.0, self.count / max(1, layers))


ALL_LAYERS = GpuLayers()
NO_LAYERS = GpuLayers(0)


@dataclass(frozen=True, slots=True)
class Launch:
    """One variant on one stack. `path`: the (first) weight file, or the folder. `context`: tokens per sequence.

    `flash_attention`: None for yes if the device can. `lora`: adapter files to apply. `deterministic`: the same request
    gets the same text, whatever other requests run. `prompt_cache`: bytes of host RAM for KV cells of earlier prompts,
    0 for none, None for the engine's default. `prompt_cache_dir`: folder that keeps such cells on disk too, also for
    the next start; "" for none. `chat_template`: Jinja source for weights that have none, "" for none. `capability`:
    the CUDA compute capability of its GPU, None if it is on no CUDA GPU. `environment`: name and value of each variable
    that tells a library of the stack where a side asset is. `special_tokens_in_content`: a control token that a message
    spells is the control token; otherwise it is text. `defaults`: a row for each of its roles that has one, and a row
    for its other names; read them with `defaults_of`.
    """

    model: str
    stack: str
    path: str
    slots: int
    context: int
    threads: int
    quant: str = ""
    gpu_layers: GpuLayers = ALL_LAYERS
    cache_type: str = "f16"  # of the KV cache: f16 or q8_0
    flash_attention: bool | None = None
    lora: tuple[str, ...] = ()
    deterministic: bool = False
    prompt_cache: int | None = None
    prompt_cache_dir: str = ""
    chat_template: str = ""
    capability: tuple[int, int] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    special_tokens_in_content: bool = False
    defaults: tuple[RoleDefaults, ...] = ()

    @property
    def title(self) -> str:
        """Model, quant and stack. Replies name with it what answered."""
        return f"{self.model} {self.quant} {self.stack}"
