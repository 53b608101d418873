"""A GGUF model with its llama.cpp context: batches, KV cache and embeddings. It checks bounds and return codes.

The engine does the scheduling. Nothing here starts a thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.backends.llama_cpp.library import reason
from tourkit.backends.llama_cpp.model import LAST_POOLING, RANK_POOLING, LlamaModel
from tourkit.backends.llama_cpp.sampling import LlamaSampler
from tourkit.backends.out_of_memory import is_out_of_memory
from tourkit.engine.sampling import NumpySampler
from tourkit.errors import EngineError, LocalError, UsageError
from tourkit.launch import ALL_LAYERS, GpuLayers

if TYPE_CHECKING:
    import numpy as np

    from tourkit.engine.runner import Sampler
    from tourkit.generation import SamplingParams

_DECODE_MEANING = {2: "aborted", -1: "invalid batch", -2: "could not allocate", -3: "compute failed"}
_CACHE_TYPES = ("f16", "q8_0")
_ADDRESS_OF = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_STATE_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: of a hybrid model, the recurrent part without KV cells
_INDEXED = ("qwen4exp", "glm5-next")  # hybrid models with a third cache beside cells and state
_RUN = 256  # most cells that are moved at once
_EMBEDDING_SLOTS = 32  # texts in a call of an embedding model; they need no cells between calls


class LlamaRunner(LlamaModel):
    """One GGUF model and one llama.cpp context. Not thread-safe: one thread decodes.

    `context`: tokens a sequence. `n_ctx`: cells of the KV cache; by default `context * slots`.
    `unified`: all slots share these cells; if False, each slot has its own part of them.
    `cache_type`: f16, or q8_0 for about half the memory. `flash_attention`: None uses it if the device can.
    The other keywords are those of LlamaModel.
    Raises LocalError if the library or a file cannot be loaded or the context cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int = 4,
        context: int | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        threads: int | None = None,
        unified: bool = True,
        cache_type: str = "f16",
        flash_attention: bool | None = None,
        gpu_layers: GpuLayers = ALL_LAYERS,
        lora: Sequence[Path] = (),
    ) -> None:
        if cache_type not in _CACHE_TYPES:
            raise UsageError(f"KV cache type {cache_type!r}: choose from {', '.join(_CACHE_TYPES)}")
        super().__init__(path, gpu_layers=gpu_layers, lora=lora)
        lib = self._lib
        self.context = min(context or self.n_ctx_train, self.n_ctx_train)
        self.n_slots = _EMBEDDING_SLOTS if self.embeds else slots
        self._window = int(lib.llama_model_n_swa(self._model))  # of the layers with a sliding window; 0 without them
        self.longest_run = 0
        moves_cells = self.partial_kv or self._has_separable_state()
        if unified and moves_cells and not self.embeds and slots < int(lib.llama_max_parallel_sequences()):
            self.longest_run = min(_RUN, self._window or _RUN)
        self.checkpoints = self.longest_run > 0 and self.is_hybrid
        self._n_sequences = self.n_slots + bool(self.longest_run)  # one sequence more: see read_cells
        self.n_batch = max(n_batch, self._n_sequences)  # llama.cpp ends the process otherwise
        self.cache_type = "f16" if self.embeds else cache_type  # nothing is kept between calls
        cells = n_ctx or self.context * slots
        # What these models return needs the last token only.
        self._splits_texts = self.pooling in (LAST_POOLING, RANK_POOLING) and self.causal
        if self.embeds:
            cells, unified = max(self.context, self.n_batch), True
            self.n_batch = self.n_batch if self._splits_texts else cells
        self._context = self._make_context(cells, threads, unified, flash_attention)
        self._apply_adapters()
        self._memory = lib.llama_get_memory(self._context)  # None for encoders
        if self._memory is None and not self.embeds:
            self._refuse("an encoder without pooling")
        self.n_ctx = int(lib.llama_n_ctx(self._context))
        self.context = min(self.context, int(lib.llama_n_ctx_seq(self._context)))
        self.one_pool = unified and not self.embeds
        self.prompts_apart = self.one_pool and not self.on_gpu
        # The library's own binding would make a pointer object at every call, which is slow.
        self._logits_address = _ADDRESS_OF(ctypes.cast(lib.llama_get_logits, ctypes.c_void_p).value or 0)
        self._batch = batch = lib.llama_batch_init(self.n_batch, 0, 1)
        # ctypes makes a new object whenever a pointer is read from a struct, so the pointers are read only once.
        self._tokens_in, self._positions_in, self._wanted_in = batch.token, batch.pos, batch.logits
        self._slots_in = [batch.seq_id[i] for i in range(self.n_batch)]
        for i in range(self.n_batch):
            batch.n_seq_id[i] = 1
        self._wanted: list[int] = []  # rows of the batch that need logits
        self._outputs: dict[int, int] = {}  # row of the last decode → index of its logits
        self._logits: np.ndarray | None = None  # of the last decode, shape (outputs, n_vocab); None until they are used
        self._room: tuple[int, np.ndarray | None] = 0, None  # last address of the logits, and the largest view of them
        self._no_state = self._read(self.n_slots, _STATE_ONLY) if self.checkpoints else bytearray()

    def _has_separable_state(self) -> bool:
        """Whether this is a hybrid model whose fixed state can be read and written without its KV cells.

        With a sliding window llama.cpp adds cells to what it calls the state. With an index of cells it must know which
        cells are shared.
        """
        name = self.metadata("general.architecture")
        return self.is_hybrid and not self._window and name not in _INDEXED

    def _make_context(self, n_ctx: int, threads: int | None, unified: bool, flash_attention: bool | None) -> Any:
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        # One ubatch a decode: if the KV cache has no room for a batch, no part of it is computed.
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = self._n_sequences
        params.kv_unified = unified
        params.swa_full = True  # sliding-window models must keep whole prefixes, so that slots can share them
        params.no_perf = True
        params.embeddings = self.embeds
        params.pooling_type = self.pooling
        if self.cache_type == "q8_0":
            params.type_k = params.type_v = lib.GGML_TYPE_Q8_0
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)  # LLAMA_FLASH_ATTN_TYPE_ENABLED or _DISABLED
        if threads is not None:
            params.n_threads = params.n_threads_batch = threads
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            why = reason()
            self._free()
            fix = "use the f16 cache"
            if self.cache_type == "f16" or is_out_of_memory(why):
                fix = "lower --context"
            raise LocalError(
                f"{self.path}: cannot make a context of {n_ctx} tokens with a {self.cache_type} cache ({why}): {fix}"
            )
        return context

    def _apply_adapters(self) -> None:
        count = len(self._adapters)
        if count:
            adapters = (self._lib.llama_adapter_lora_p_ctypes * count)(*self._adapters)
            self._lib.llama_set_adapters_lora(self._context, adapters, count, (ctypes.c_float * count)(*[1.0] * count))

    # --- batch and KV cache -------------------------------------------------------------------------------------

    def add(self, token: int, pos: int, slot: int, *, logits: bool) -> int | None:
        i = int(self._batch.n_tokens)
        if i >= self.n_batch:  # llama.cpp would write past its arrays
            raise EngineError(f"the batch holds {self.n_batch} tokens, but the scheduler added more")
        if not 0 <= slot < self.n_slots or not 0 <= token < self.n_vocab:
            raise EngineError(f"slot {slot} or token {token} is out of range")
        self._tokens_in[i] = token
        self._positions_in[i] = pos
        self._slots_in[i][0] = slot
        self._wanted_in[i] = logits
        self._batch.n_tokens = i + 1
        if not logits:
            return None
        self._wanted.append(i)
        return i

    def decode(self) -> bool:
        run = self._lib.llama_encode if self._memory is None else self._lib.llama_decode
        code = run(self._context, self._batch)
        self._batch.n_tokens = 0
        self._outputs, self._wanted, self._logits = {row: at for at, row in enumerate(self._wanted)}, [], None
        if code not in (0, 1):
            raise EngineError(f"llama_decode: {_DECODE_MEANING.get(code, 'fatal error')} (code {code})")
        return bool(code == 0)

    def logits(self, row: int) -> np.ndarray:
        at = self._outputs.get(row)
        if at is None:
            raise EngineError(f"row {row} has no logits")
        if self._logits is None:
            self._logits = self._all_logits()
        found: np.ndarray = self._logits[at]
        return found

    def _all_logits(self) -> np.ndarray:
        """Return a view of all logits of the last decode. llama.cpp stores them in the order of the batch.

        Making a view takes as long as drawing a token. So the last view is used again: the logits mostly have the same
        address, in memory that only grows.
        """
        address = self._logits_address(self._context)
        if not address:
            raise EngineError("the last decode gave no logits")
        known, view = self._room
        if view is None or address != known or len(self._outputs) > len(view):
            import numpy as np

            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            view = np.ctypeslib.as_array(pointer, shape=(len(self._outputs), self.n_vocab))
            self._room = address, view
        return view

    def share(self, source: int, target: int, length: int) -> bool:
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return self._check_window(target, length)

    def truncate(self, slot: int, length: int) -> bool:
        if self._lib.llama_memory_seq_rm(self._memory, slot, length, -1):
            return self._check_window(slot, length)
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return False

    def _check_window(self, slot: int, length: int) -> bool:
        """Return whether a slot has all cells that the token after `length` attends to. If not, empty the slot.

        Layers with a sliding window lose cells: llama.cpp uses those outside a sequence's window for other sequences.
        They are needed again if the sequence is cut.
        """
        if self._window and length and not self._is_there(slot, max(0, length - self._window + 1)):
            self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
            return False
        return True

    def _is_there(self, slot: int, start: int) -> bool:
        """Return whether all layers have the cells of a slot from `start` on."""
        return bool(0 <= self._lib.llama_memory_seq_pos_min(self._memory, slot) <= start)

    def sampler(self, params: SamplingParams, seed: int, *, constrained: bool = False) -> Sampler:
        """Return the faster sampler. Both draw the same tokens.

        llama.cpp's is faster if it cuts the candidates first (bench/sampling.py), unless there is a grammar: numpy's
        does without most masks then.
        """
        if params.temperature > 0 and (params.top_k > 0 or params.min_p > 0) and not constrained:
            return LlamaSampler(self._lib, self._context, params, seed, self.n_vocab)
        return NumpySampler(self.logits, params, seed)

    # --- embeddings -----------------------------------------------------------------------------------------------

    @property
    def n_embd(self) -> int:
        """How many numbers an embedding has."""
        return int(self._lib.llama_model_n_embd_out(self._model))

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the embeddings of tokenized texts: float32, shape (len(texts), n_embd), each of length 1.

        At most n_slots texts with n_batch tokens together; a single text may have `context` tokens. Raises EngineError.
        """
        import numpy as np

        vectors = self.pooled(texts, self.n_embd)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return vectors

    def pooled(self, texts: Sequence[Sequence[int]], width: int) -> np.ndarray:
        """Return what the pooling makes of each text: float32, shape (len(texts), width). The limits of `embed` hold.

        Raises EngineError.
        """
        import numpy as np

        self._lib.llama_memory_clear(self._memory, False)
        for slot, tokens in enumerate(texts):
            for pos, token in enumerate(tokens):
                if self._batch.n_tokens == self.n_batch and len(texts) == 1 and self._splits_texts:
                    self._embed_batch()
                self.add(token, pos, slot, logits=True)
        self._embed_batch()
        vectors = np.empty((len(texts), width), dtype=np.float32)
        for slot in range(len(texts)):
            pointer = self._lib.llama_get_embeddings_seq(self._context, slot)
            if not pointer:
                raise EngineError(f"text {slot} of the batch has no embedding")
            vectors[slot] = np.ctypeslib.as_array(pointer, shape=(width,))
        return vectors

    def _embed_batch(self) -> None:
        if not self.decode():
            raise EngineError("the context has no room for a text that should fit")

    # --- state ----------------------------------------------------------------------------------------------------

    def read_cells(self, slot: int, start: int, end: int) -> bytearray:
        """Return the cells [start, end) of a slot. A spare sequence takes part in them, and its state is read."""
        if self._window and not self._is_there(slot, start):
            return bytearray()
        spare = self.n_slots
        self._lib.llama_memory_seq_cp(self._memory, slot, spare, start, end)
        # llama.cpp copies the fixed state too, which is often larger than the cells. It is put aside again.
        alone = not self.checkpoints or self._write(spare, self._no_state, _STATE_ONLY)
        data = self._read(spare) if alone else bytearray()
        self._lib.llama_memory_seq_rm(self._memory, spare, -1, -1)
        return data

    def write_cells(self, slot: int, data: bytearray, start: int, end: int) -> bool:
        spare = self.n_slots
        written = self._write(spare, data)
        if written:
            self._lib.llama_memory_seq_cp(self._memory, spare, slot, start, end)
        self._lib.llama_memory_seq_rm(self._memory, spare, -1, -1)
        return written

    def read_state(self, slot: int) -> bytearray:
        return self._read(slot, _STATE_ONLY)

    def write_state(self, slot: int, data: bytearray) -> bool:
        return self._write(slot, data, _STATE_ONLY)

    def _read(self, sequence: int, flags: int = 0) -> bytearray:
        """Return what llama.cpp keeps of a sequence; empty if it cannot be read."""
        lib = self._lib
        size = int(lib.llama_state_seq_get_size_ext(self._context, sequence, flags))
        data = bytearray(size)
        target = (ctypes.c_uint8 * size).from_buffer(data)
        read = lib.llama_state_seq_get_data_ext(self._context, target, size, sequence, flags)
        return data if read == size else bytearray()

    def _write(self, sequence: int, data: bytearray, flags: int = 0) -> bool:
        """Replace what llama.cpp keeps of a sequence. Return False if there is no room."""
        source = (ctypes.c_uint8 * len(data)).from_buffer(data)
        return bool(self._lib.llama_state_seq_set_data_ext(self._context, source, len(data), sequence, flags))

    def close(self) -> None:
        if self._context is None:
            return
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._context = None
        self._free()
