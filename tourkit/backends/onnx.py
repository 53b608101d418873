"""ONNX models through onnxruntime-genai. Each slot has a Generator that gives logits; our engine does the rest.

Each Generator has its own cells, so the prompt is computed again for each of the `n` samples. The library's batching
fails under grammars. Its sampling has no penalties, bias or log probabilities.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.backends.launch_checks import refuse_foreign
from tourkit.backends.runner_engine import RunnerEngine, start
from tourkit.backends.slot_runner import Part, SlotRunner
from tourkit.backends.vocabulary import Vocabulary, read_json
from tourkit.errors import EngineError, LocalError, one_line
from tourkit.launch import ALL_LAYERS, GpuLayers
from tourkit.offline import ENVIRONMENT

if TYPE_CHECKING:
    import numpy as np

    from tourkit.launch import Launch

# Request fields that a Generator does not support; tourkit serves them itself.
EMULATED = (
    *("n", "stop", "logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "min_p"),
    *("json_object", "choice"),
)
_LOGITS = 1 << 24  # most numbers of logits in a call: the graph gives logits for every token of a prompt
_MOST_TOKENS = 512  # in a batch
_FIRST_TOKENS = 32  # in a call, before its time is known
_SECONDS = 1.0  # of a call: the library holds Python's lock until it returns, and no beat of the worker gets through


def _import_genai() -> Any:
    """Import onnxruntime-genai with its telemetry off. Raises LocalError."""
    os.environ.update({name: ENVIRONMENT[name] for name in ("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK")})
    try:
        import onnxruntime_genai
    except (ImportError, OSError) as exc:
        raise LocalError(f"onnxruntime-genai cannot be imported ({exc}): install tourkit[onnx]") from exc
    onnxruntime_genai.set_log_options(enabled=False)
    return onnxruntime_genai


class CallSize:
    """How many tokens a call may have, so that it takes about a second. `most`: never more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.tokens = min(_FIRST_TOKENS, most)

    def took(self, tokens: int, seconds: float) -> None:
        """Learn from a call. Calls of fewer tokens say little: they are slower for each token."""
        if tokens >= self.tokens:
            fitting = int(self.tokens * _SECONDS / max(seconds, 1e-6))
            self.tokens = max(1, min(fitting, 4 * self.tokens, self._most))


class OnnxRunner(SlotRunner):
    """One ONNX model with one Generator for each slot. Each has room for `context` tokens. Raises LocalError."""

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
        self._call_size = CallSize(self.n_batch)

    def _load(self, threads: int | None, gpu_layers: GpuLayers) -> Any:
        try:
            config = self._genai.Config(str(self._folder))
            if self._window:  # a layer must keep cells before its window too: without them no cells can be dropped
                window = self._window | {"cache_slack": self._max_len}
                config.overlay(json.dumps({"model": {"decoder": {"sliding_window": window}}}))
            if threads is not None:
                options = {"intra_op_num_threads": threads}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            if gpu_layers.is_none:
                config.clear_providers()
            return self._genai.Model(config)
        except Exception as exc:  # the library raises RuntimeError and its own exceptions
            raise LocalError(f"{self._folder}: onnxruntime-genai cannot load it: {one_line(str(exc))}") from exc

    def _try_out(self) -> tuple[int, bool, bool]:
        """Run the model once to learn how it behaves.

        Return how many logits a token has, whether cells can be dropped, and whether each token of a call has logits.
        """
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
        except Exception:  # noqa: BLE001 - models with sliding windows or recurrent states fail here
            rewinds = False
        return int(both.shape[-1]), rewinds, every_row

    def _generator(self) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self._max_len, batch_size=1, num_beams=1)
        return self._genai.Generator(self._model, params)

    def forward(self, parts: list[Part]) -> np.ndarray | None:
        import numpy as np

        rows = [row for part in parts for row in self._one(part)]
        return np.concatenate(rows) if rows else np.empty((0, self.n_vocab), dtype=np.float32)

    def _one(self, part: Part) -> list[np.ndarray]:
        """Run the tokens of one slot, in calls of about a second. Return the wanted rows of logits, a block a call."""
        found, start = [], 0
        one_by_one = len(part.wanted) > 1 and not self.every_row  # only the last token of a call has logits
        while start < len(part.tokens):
            tokens = part.tokens[start : start + (1 if one_by_one else self._call_size.tokens)]
            wanted = [at - start for at in part.wanted if start <= at < start + len(tokens)]
            begin = time.monotonic()
            rows = self._call(self._generators[part.slot], tokens, wanted)
            self._call_size.took(len(tokens), time.monotonic() - begin)
            if rows is not None:
                found.append(rows)
            start += len(tokens)
        return found

    def _call(self, generator: Any, tokens: list[int], wanted: list[int]) -> np.ndarray | None:
        """Run tokens. Return the logits of the wanted ones, None if none is wanted. Raises EngineError."""
        import numpy as np

        try:
            generator.append_tokens(np.array(tokens, dtype=np.int32))
            if not wanted:
                return None
            logits = generator.get_output("logits")[0]  # shape (tokens, n_vocab), or only the row of the last token
        except Exception as exc:
            raise EngineError(f"onnxruntime-genai: {one_line(str(exc))}") from exc
        skipped = len(tokens) - len(logits)
        return np.array(logits[[at - skipped for at in wanted]], dtype=np.float32)

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
    """Return the folder of genai_config.json, at `path` or below it. Raises LocalError unless there is exactly one."""
    start = path.parent if path.is_file() else path
    found = sorted(file.parent for file in start.rglob("genai_config.json"))
    if len(found) != 1:
        raise LocalError(
            f"{start}: found {len(found) or 'no'} genai_config.json: an ONNX variant is one folder that "
            "onnxruntime-genai's builder wrote"
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
    # Each guessed token needs logits, to be checked.
    return start(runner, launch, emulated=EMULATED, speculate=runner.every_row)
