"""GGUF through llama-cpp-python's low-level API: the C boundary, with bounds and return codes checked here.

Loads a model, tokenizes, decodes batches and samples. Scheduling is the engine's; nothing here starts a thread.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.engine.chat_template import ChatTemplate
from tourkit.engine.constraint import GrammarCompiler, Matcher
from tourkit.engine.engine import BatchEngine
from tourkit.engine.types import (
    Emit,
    Enforced,
    EngineInfo,
    EngineStats,
    Request,
    SamplingParams,
    Submission,
)
from tourkit.errors import EngineError, LocalError, RequestError

if TYPE_CHECKING:
    import numpy as np

    from tourkit.backends.base import LoadSpec

_DECODE_MEANING = {2: "aborted", -1: "invalid batch", -2: "could not allocate", -3: "compute failed"}
_PENALTY_WINDOW = 1 << 16  # tokens: OpenAI's penalties look at the whole answer
_SPM_VOCAB = 1  # LLAMA_VOCAB_TYPE_SPM: SentencePiece, where text naturally starts with a space

_log_tail: deque[str] = deque(maxlen=20)
_log_callback: Any = None


def _import_llama() -> Any:
    """The low-level module, with llama.cpp's log kept in memory instead of on stderr. Raises LocalError."""
    global _log_callback
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as exc:
        raise LocalError(
            f"llama-cpp-python does not import ({exc}): install tourkit[llama], or from the bundle with install.sh"
        ) from exc
    if _log_callback is None:

        def keep(_level: int, text: bytes, _data: object) -> None:
            _log_tail.append(text.decode(errors="replace").rstrip())

        _log_callback = llama_cpp.llama_log_callback(keep)
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def _reason() -> str:
    """The last line in which llama.cpp said what went wrong."""
    lines = [line for line in _log_tail if line and line != "."]
    wrong = [line for line in lines if "error" in line.lower() or "fail" in line.lower() or "invalid" in line.lower()]
    return (wrong or lines or ["llama.cpp gave no reason"])[-1]


class LlamaRunner:
    """One GGUF model and one llama.cpp context with unified KV cache. Not thread-safe: one thread decodes.

    `max_len` is in tokens a sequence; the KV cache holds `max_len * slots` cells unless `n_ctx` says otherwise.
    Raises LocalError when the library or the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int = 4,
        max_len: int | None = None,
        n_ctx: int | None = None,
        n_batch: int = 512,
        threads: int | None = None,
        gpu_layers: int | None = None,
    ) -> None:
        self._lib = lib = _import_llama()
        self._model = self._load_model(path, gpu_layers)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self._model))
        self.max_len = min(max_len or self.n_ctx_train, self.n_ctx_train)
        self.n_slots = slots
        self.n_batch = n_batch
        self._context = self._make_context(path, n_ctx or self.max_len * slots, threads)
        self.n_ctx = int(lib.llama_n_ctx(self._context))
        self.max_len = min(self.max_len, self.n_ctx)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(n_batch, 0, 1)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.eog = frozenset(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, t))
        self.partial_kv = not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model))
        self._pieces: dict[int, bytes] = {}
        bos, eos = lib.llama_vocab_bos(self._vocab), lib.llama_vocab_eos(self._vocab)
        self.special_tokens = {  # as chat templates call them; empty where the model has none
            name: self._render(token, special=True).decode() if token >= 0 else ""
            for name, token in (("bos_token", bos), ("eos_token", eos))
        }

    def _load_model(self, path: Path, gpu_layers: int | None) -> Any:
        lib = self._lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers is not None else -1 if lib.llama_supports_gpu_offload() else 0
        if not path.is_file():
            raise LocalError(f"{path}: no such file: run `tourkit verify` on the bundle")
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise LocalError(f"{path}: llama.cpp cannot load it ({_reason()}): run `tourkit verify` on the bundle")
        return model

    def _make_context(self, path: Path, n_ctx: int, threads: int | None) -> Any:
        lib = self._lib
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self.n_batch  # one ubatch a decode: "no room" leaves nothing half done
        params.n_seq_max = self.n_slots
        params.kv_unified = True
        params.swa_full = True  # sliding-window models keep whole prefixes, so that slots can share them
        params.no_perf = True
        if threads is not None:
            params.n_threads = params.n_threads_batch = threads
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            lib.llama_model_free(self._model)
            raise LocalError(f"{path}: no context of {n_ctx} tokens ({_reason()}): ask for fewer with --context")
        return context

    # --- text ---------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The Jinja source the GGUF carries, if any."""
        raw = self._lib.llama_model_chat_template(self._model, None)
        return raw.decode() if raw else None

    @property
    def adds_bos(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    @property
    def starts_with_space(self) -> bool:
        """True for SentencePiece vocabularies, whose answers naturally begin with a space."""
        return int(self._lib.llama_vocab_type(self._vocab)) == _SPM_VOCAB

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        while True:
            tokens = (self._lib.llama_token * room)()
            n = self._lib.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            room = -n

    def piece(self, token: int) -> bytes:
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._render(token, special=False)
        return found

    def _render(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = int(self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special))
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def grammar_tokenizer(self) -> Any:
        """llguidance's view of this vocabulary; about a second for 128k tokens, so made once."""
        import llguidance.llamacpp

        with warnings.catch_warnings():  # llguidance 1.9 calls a function that llama-cpp-python 0.3.36 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            return llguidance.llamacpp.lltokenizer_from_vocab(self._vocab, eos_token=sorted(self.eog))

    # --- batch and KV cache -------------------------------------------------------------------------------------

    def add(self, token: int, pos: int, slot: int, *, logits: bool) -> int | None:
        batch, i = self._batch, self._batch.n_tokens
        if i >= self.n_batch:  # llama.cpp would write past its arrays
            raise EngineError(f"the batch holds {self.n_batch} tokens, the scheduler asked for more")
        if not 0 <= slot < self.n_slots or not 0 <= token < self.n_vocab:
            raise EngineError(f"slot {slot} or token {token} is out of range")
        batch.token[i] = token
        batch.pos[i] = pos
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = slot
        batch.logits[i] = logits
        batch.n_tokens = i + 1
        return i if logits else None

    def decode(self) -> bool:
        code = self._lib.llama_decode(self._context, self._batch)
        self._batch.n_tokens = 0
        if code not in (0, 1):
            raise EngineError(f"llama_decode: {_DECODE_MEANING.get(code, 'fatal error')} (code {code})")
        return bool(code == 0)

    def logits(self, row: int) -> np.ndarray:
        import numpy as np

        pointer = self._lib.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise EngineError(f"row {row} has no logits")
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def share(self, source: int, target: int, length: int) -> None:
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def truncate(self, slot: int, length: int) -> bool:
        if self._lib.llama_memory_seq_rm(self._memory, slot, length, -1):
            return True
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return False

    def sampler(self, params: SamplingParams, seed: int) -> LlamaSampler:
        return LlamaSampler(self._lib, self._context, params, seed, self.n_vocab)

    def close(self) -> None:
        if self._model is None:
            return
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
        self._model = self._context = None


class LlamaSampler:
    """llama.cpp's sampler chain of one sequence, in llama.cpp's own order: bias, penalties, top-k, top-p, min-p,
    temperature."""

    def __init__(self, lib: Any, context: Any, params: SamplingParams, seed: int, n_vocab: int) -> None:
        self._lib, self._context, self._n_vocab = lib, context, n_vocab
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in self._links(params, seed):
            lib.llama_sampler_chain_add(self._chain, link)

    def _links(self, params: SamplingParams, seed: int) -> list[Any]:
        lib, links = self._lib, []
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            links.append(lib.llama_sampler_init_logit_bias(self._n_vocab, len(biases), biases))
        if params.frequency_penalty or params.presence_penalty:
            penalties = (params.frequency_penalty, params.presence_penalty)
            links.append(lib.llama_sampler_init_penalties(self._n_vocab, _PENALTY_WINDOW, 1.0, *penalties))
        if params.temperature <= 0:
            return [*links, lib.llama_sampler_init_greedy()]
        if params.top_k > 0:
            links.append(lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            links.append(lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            links.append(lib.llama_sampler_init_min_p(params.min_p, 1))
        links.append(lib.llama_sampler_init_temp(params.temperature))
        links.append(lib.llama_sampler_init_dist(seed))
        return links

    def sample(self, row: int) -> int:
        return int(self._lib.llama_sampler_sample(self._chain, self._context, row))

    def accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None


class LlamaEngine:
    """The Engine of GGUF variants: chat template, tokens and grammar here, batching in engine.BatchEngine."""

    def __init__(self, runner: LlamaRunner, *, max_waiting: int = 256, speculate: bool = True) -> None:
        self._runner = runner
        source = runner.chat_template
        self._template = ChatTemplate(source, runner.special_tokens) if source else None
        self._grammars: GrammarCompiler | None = None
        self._grammars_lock = threading.Lock()
        self._batches = BatchEngine(
            runner, max_waiting=max_waiting, strip_leading_space=runner.starts_with_space, speculate=speculate
        )

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("llama_cpp", self._runner.max_len, self._runner.n_slots, self._runner.n_vocab)

    def submit(self, request: Request, emit: Emit) -> Submission:
        tokens = self._prompt_tokens(request)
        room = self._runner.max_len - len(tokens)
        wanted = request.params.max_tokens
        if room < 1 or (wanted is not None and wanted > room):
            raise RequestError(
                f"{len(tokens)} prompt tokens and {wanted or 1} to generate do not fit a context of "
                f"{self._runner.max_len}: shorten the prompt, lower max_tokens, or serve with a larger --context",
                param="messages" if room < 1 else "max_tokens",
                code="context_length_exceeded",
            )
        self._check_bias(request.params)
        matchers = [self._matcher(request) for _ in range(request.n)]
        submission = self._batches.submit(tokens, request.params, wanted or room, emit, matchers)
        first = matchers[0]
        enforced = Enforced(first.level, first.dropped) if first is not None else Enforced()
        return Submission(submission, len(tokens), enforced)

    def abort(self, submission_id: int) -> None:
        self._batches.abort(submission_id)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self._runner.tokenize(text, add_special=add_special, parse_special=False)

    def detokenize(self, tokens: list[int]) -> str:
        for token in tokens:
            if token >= self._runner.n_vocab:
                raise RequestError(f"token {token}: this model has {self._runner.n_vocab}", param="tokens")
        return b"".join(self._runner.piece(token) for token in tokens).decode(errors="replace")

    def stats(self) -> EngineStats:
        return self._batches.stats()

    def close(self) -> None:
        self._batches.close()

    def _check_bias(self, params: SamplingParams) -> None:
        for token, _ in params.logit_bias:
            if token >= self._runner.n_vocab:
                raise RequestError(
                    f"logit_bias names token {token}: this model has {self._runner.n_vocab}", param="logit_bias"
                )

    def _prompt_tokens(self, request: Request) -> list[int]:
        if request.prompt is not None:
            return self._runner.tokenize(request.prompt, add_special=True, parse_special=False)
        if self._template is None:
            raise RequestError(
                "this model carries no chat template: use /v1/completions with a plain prompt", param="messages"
            )
        text = self._template.render(request.messages or ())
        bos = self._runner.special_tokens["bos_token"]
        add_bos = self._runner.adds_bos and not (bos and text.startswith(bos))
        return self._runner.tokenize(text, add_special=add_bos, parse_special=True)

    def _matcher(self, request: Request) -> Matcher | None:
        if request.constraint is None:
            return None
        with self._grammars_lock:  # made on first use: a second or so for a large vocabulary
            if self._grammars is None:
                runner = self._runner
                self._grammars = GrammarCompiler(
                    runner.grammar_tokenizer(),
                    runner.n_vocab,
                    runner.eog,
                    runner.piece,
                    lambda text: len(runner.tokenize(text, add_special=False, parse_special=False)),
                    leading_space=runner.starts_with_space,
                )
        return self._grammars.matcher(request.constraint, tight=request.tight)


def load(spec: LoadSpec) -> LlamaEngine:
    """Load a GGUF file and start its engine. Raises LocalError."""
    runner = LlamaRunner(
        Path(spec.path), slots=spec.slots, max_len=spec.max_len, threads=spec.threads, gpu_layers=spec.gpu_layers
    )
    return LlamaEngine(runner)
