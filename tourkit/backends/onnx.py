"""ONNX models through onnxruntime-genai: one Generator a slot gives logits, our engine does the rest.

A Generator has cells of its own, so a prompt is computed once for each of `n` samples; batching within the library
fails under grammars, and its own sampling has no penalties, bias or log probabilities.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.backends.launch_checks import refuse_foreign
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.backends.slot_runner import Part, SlotRunner
from tourkit.backends.vocabulary import Vocabulary, read_json
from tourkit.errors import EngineError, LocalError, one_line
from tourkit.launch import ALL_LAYERS, GpuLayers
from tourkit.offline import ENVIRONMENT

if TYPE_CHECKING:
    import numpy as np

    from tourkit.launch import Launch

# What a Generator cannot do by itself, request by request.
EMULATED = (
    *("n", "stop", "logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "min_p"),
    *("json_object", "choice"),
)
_LOGITS = 1 << 24  # numbers a call at most: the graph gives logits for every token of a prompt, wanted or not
_MOST_TOKENS = 512  # a call


def _import_genai() -> Any:
    """onnxruntime-genai with its telemetry off. Raises LocalError."""
    os.environ.update({name: ENVIRONMENT[name] for name in ("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK")})
    try:
        import onnxruntime_genai
    except (ImportError, OSError) as exc:
        raise LocalError(f"onnxruntime-genai does not import ({exc}): install tourkit[onnx]") from exc
    onnxruntime_genai.set_log_options(enabled=False)
    return onnxruntime_genai


class OnnxRunner(SlotRunner):
    """One ONNX model with a Generator a slot, each with room for `context` tokens. Raises LocalError."""

    def __init__(
        self, folder: Path, *, slots: int, context: int, threads: int | None = None, gpu_layers: GpuLayers = ALL_LAYERS
    ) -> None:
        self._genai = _import_genai()
        self._folder = folder
        about = read_json(folder / "genai_config.json").get("model", {})
        self._max_len = min(context, int(about.get("context_length", context)))
        self._window: dict[str, Any] = about.get("decoder", {}).get("sliding_window") or {}
        self._model = self._load(threads, gpu_layers)
        n_vocab, rewinds, self.every_row = self._try_out()
        self._generators: list[Any] = [self._generator() for _ in range(slots)]
        super().__init__(
            Vocabulary(folder, n_vocab),
            slots=slots,
            context=self._max_len,
            n_batch=max(16, min(_MOST_TOKENS, _LOGITS // n_vocab)),
            partial_kv=rewinds,
            shares_kv=False,
        )

    def _load(self, threads: int | None, gpu_layers: GpuLayers) -> Any:
        try:
            config = self._genai.Config(str(self._folder))
            if self._window:  # a layer keeps what its window has left behind too: without it nothing can be dropped
                window = self._window | {"cache_slack": self._max_len}
                config.overlay(json.dumps({"model": {"decoder": {"sliding_window": window}}}))
            if threads is not None:
                options = {"intra_op_num_threads": threads}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            if gpu_layers.is_none:
                config.clear_providers()
            return self._genai.Model(config)
        except Exception as exc:  # the library raises RuntimeError and its own kinds alike
            raise LocalError(f"{self._folder}: onnxruntime-genai cannot load it: {one_line(str(exc))}") from exc

    def _try_out(self) -> tuple[int, bool, bool]:
        """How many logits a token gets, whether cells can be dropped, and whether each token of a call has logits."""
        import numpy as np

        try:
            generator = self._generator()
            generator.append_tokens(np.array([1, 2], dtype=np.int32))
            both = np.array(generator.get_output("logits"), dtype=np.float32)
            every_row = both.shape[1] == 2
        except Exception as exc:
            raise LocalError(f"{self._folder}: onnxruntime-genai cannot run it: {one_line(str(exc))}") from exc
        try:
            generator.rewind_to(1)
            generator.append_tokens(np.array([2], dtype=np.int32))
            again = np.array(generator.get_output("logits"), dtype=np.float32)
            rewinds = bool(np.allclose(again[0, -1], both[0, -1], rtol=0.01, atol=0.01))
        except Exception:  # noqa: BLE001 - sliding windows and recurrent states say so by failing
            rewinds = False
        return int(both.shape[-1]), rewinds, every_row

    def _generator(self) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._max_len, batch_size=1, num_beams=1)
        return self._genai.Generator(self._model, params)

    def forward(self, parts: list[Part]) -> np.ndarray | None:
        import numpy as np

        rows = [self._one(part) for part in parts]
        return np.concatenate(rows) if rows else np.empty((0, self.n_vocab), dtype=np.float32)

    def _one(self, part: Part) -> np.ndarray:
        """Run one slot's tokens; the logits wanted of them."""
        import numpy as np

        generator = self._generators[part.slot]
        try:
            generator.append_tokens(np.array(part.tokens, dtype=np.int32))
            logits = generator.get_output("logits")[0]  # (tokens, n_vocab), or the last one's only
        except Exception as exc:
            raise EngineError(f"onnxruntime-genai: {one_line(str(exc))}") from exc
        skipped = len(part.tokens) - len(logits)
        return np.array(logits[[at - skipped for at in part.wanted]], dtype=np.float32)

    def copy_cells(self, source: int, target: int, length: int) -> None:
        raise EngineError("a Generator's cells cannot be shared")

    def drop_cells(self, slot: int, length: int) -> None:
        if length == 0 and not self.partial_kv:
            self._generators[slot] = self._generator()
        else:
            self._generators[slot].rewind_to(length)

    def close(self) -> None:
        self._generators = []
        self._model = None


def _folder(path: Path) -> Path:
    """The folder of genai_config.json, at `path` or below it. Raises LocalError unless there is just one."""
    start = path.parent if path.is_file() else path
    found = sorted(file.parent for file in start.rglob("genai_config.json"))
    if len(found) != 1:
        raise LocalError(
            f"{start}: {len(found) or 'no'} genai_config.json: an ONNX variant is one folder as onnxruntime-genai's "
            "builder writes it"
        )
    return found[0]


def load(launch: Launch) -> RunnerEngine:
    """Load a folder that onnxruntime-genai's builder wrote, and start its engine. Raises LocalError."""
    refuse_foreign(launch)
    runner = OnnxRunner(
        _folder(Path(launch.path)),
        slots=launch.slots,
        context=launch.context,
        threads=launch.threads,
        gpu_layers=launch.gpu_layers,
    )
    # Guesses are checked by the logits of each of their tokens.
    return RunnerEngine(
        runner,
        "onnx",
        emulated=EMULATED,
        speculate=runner.every_row,
        chat_template=launch.chat_template,
    )
