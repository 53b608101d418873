"""A GGUF model loaded by llama.cpp: weights (split files and LoRA adapters too), metadata and text.

This module calls the C functions that need no context. runner.py makes the context.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tourkit.backends.control_tokens import ControlTokens, is_marker
from tourkit.backends.llama_cpp.library import import_llama, reason
from tourkit.backends.out_of_memory import is_out_of_memory
from tourkit.errors import EngineDead, LocalError
from tourkit.headers.gguf import gguf_parts
from tourkit.launch import ALL_LAYERS, GpuLayers

_UNKNOWN, _CONTROL, _USER_DEFINED, _LSTRIP, _RSTRIP = 1 << 0, 1 << 3, 1 << 4, 1 << 7, 1 << 8  # LLAMA_TOKEN_ATTR_…
_MANY = 256  # control tokens in a text: llama.cpp takes quadratic time to find them
_SHORT = 16  # characters
_SPACES = " \t\n\v\f\r"  # what a token with LSTRIP or RSTRIP takes with it
_SPM_VOCAB = 1  # LLAMA_VOCAB_TYPE_SPM: SentencePiece, whose texts normally start with a space
_UGM_VOCAB = 4  # LLAMA_VOCAB_TYPE_UGM: that of XLM-RoBERTa among encoders
_NO_POOLING = (-1, 0)  # LLAMA_POOLING_TYPE_UNSPECIFIED and _NONE: a model that writes text
LAST_POOLING, RANK_POOLING = 3, 4


def weight_files(path: Path) -> list[Path]:
    """Return the file, or all files of a split model if `path` is its first. Raises LocalError if one is missing."""
    names = gguf_parts(path.name)
    if path.name != names[0]:
        raise LocalError(f"{path}: part {names.index(path.name) + 1} of {len(names)}: give the first part")
    files = [path.with_name(name) for name in names]
    for file in files:
        if not file.is_file():
            raise LocalError(f"{file}: no such file: run `tourkit verify` on the bundle")
    return files


class LlamaModel:
    """One loaded GGUF model, without a context.

    `lora`: adapter GGUFs, applied at full scale. Raises LocalError if the library or a file cannot be loaded.
    """

    def __init__(self, path: Path, *, gpu_layers: GpuLayers = ALL_LAYERS, lora: Sequence[Path] = ()) -> None:
        self._lib = lib = import_llama()
        self.path = path
        self.lora = tuple(lora)
        self._model = self._load(path, gpu_layers)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._adapters = [self._adapter(file) for file in self.lora]  # before the context: its graph sizes need them
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self._model))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.eog = frozenset(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, t))
        self.is_hybrid = bool(lib.llama_model_is_hybrid(self._model))
        self.partial_kv = not (lib.llama_model_is_recurrent(self._model) or self.is_hybrid)
        self.shares_kv = self.partial_kv
        self.pooling = self._pooling()
        self._pieces: dict[int, bytes] = {}
        self._attributes = self._special_attributes()
        self.control_tokens = ControlTokens(self._control_ids())
        self._user_markers = ControlTokens(self._marker_ids())
        bos, eos = lib.llama_vocab_bos(self._vocab), lib.llama_vocab_eos(self._vocab)
        self.special_tokens = {  # with the names in chat templates; empty if the model has none
            name: self._render(token, special=True).decode(errors="replace") if token >= 0 else ""
            for name, token in (("bos_token", bos), ("eos_token", eos))
        }

    def _load(self, path: Path, gpu_layers: GpuLayers) -> Any:
        lib = self._lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = -1 if gpu_layers.count is None else gpu_layers.count  # -1 means all layers
        self.on_gpu = not gpu_layers.is_none and bool(lib.llama_supports_gpu_offload())
        # Read the file; do not map it. If the CPU's kernels repack weights, a mapped file stays in memory next to the
        # copy. And if a drive is pulled out, a process that has mapped a file on it dies.
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        first, *_ = weight_files(path)  # llama.cpp finds the other parts in the same folder
        model = lib.llama_model_load_from_file(str(first).encode(), params)
        if not model:
            why, fix = reason(), "free some memory, or choose a smaller quant"
            if not is_out_of_memory(why):
                fix = "compare its SHA-256 with the source (for a bundle: `tourkit verify`), or choose another model"
            raise LocalError(f"{path}: llama.cpp cannot load it ({why}): {fix}")
        return model

    def _adapter(self, path: Path) -> Any:
        lib = self._lib
        adapter = lib.llama_adapter_lora_init(self._model, str(path).encode()) if path.is_file() else None
        if not adapter:
            why = reason() if path.is_file() else "no such file"
            self._free()
            raise LocalError(f"{path}: not a LoRA adapter for {self.path.name} ({why}): use one made for this model")
        if lib.llama_adapter_get_alora_n_invocation_tokens(adapter):
            self._free()
            raise LocalError(f"{path}: activated LoRA is not supported: use a plain LoRA adapter")
        return adapter

    def _pooling(self) -> int:
        """Return the GGUF's pooling: how a text's vector is made from its tokens' vectors.

        Raises LocalError for unsupported kinds of models.
        """
        said = self.metadata(f"{self.metadata('general.architecture')}.pooling_type")
        pooling = int(said) if said else _NO_POOLING[0]
        if self._lib.llama_model_cls_label(self._model, 0) is not None:
            pooling = RANK_POOLING  # files of the first rerankers state no pooling
        if self._lib.llama_model_has_encoder(self._model) and self._lib.llama_model_has_decoder(self._model):
            self._refuse("an encoder-decoder model")
        return pooling

    def _refuse(self, what: str) -> None:
        self._free()
        raise LocalError(f"{self.path}: {what} is not supported: choose another model")

    @property
    def embeds(self) -> bool:
        """True for an embedding model or a reranker, False for a model that writes text."""
        return self.pooling not in _NO_POOLING

    @property
    def reranks(self) -> bool:
        """True if the model has a head that gives scores."""
        return self.pooling == RANK_POOLING

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the scores that the head of a reranker gives; "" for a name that the file does not state."""
        names = (
            self._lib.llama_model_cls_label(self._model, i) for i in range(self._lib.llama_model_n_cls_out(self._model))
        )
        return tuple(name.decode(errors="replace") if name else "" for name in names)

    @property
    def causal(self) -> bool:
        """False if every token also sees the tokens after it, as in BERT."""
        return self.metadata(f"{self.metadata('general.architecture')}.attention.causal") != "false"

    def metadata(self, key: str) -> str | None:
        """Return a value of the GGUF's metadata as text; None if it is missing."""
        size = 256
        buffer = ctypes.create_string_buffer(size)
        n = int(self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size))
        return buffer.value.decode(errors="replace") if n >= 0 else None

    def _free(self) -> None:
        if self._model is not None:
            self._lib.llama_model_free(self._model)  # this frees its adapters too
            self._model = None

    # --- text ---------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the GGUF's chat template; None if it has none. Raises LocalError if it is not UTF-8."""
        raw = self._lib.llama_model_chat_template(self._model, None)
        try:
            return raw.decode() if raw else None
        except UnicodeDecodeError as exc:
            raise LocalError(
                f"{self.path}: its chat template is not UTF-8 text: compare its SHA-256 with the source, or choose "
                "another model"
            ) from exc

    @property
    def rerank_template(self) -> str:
        """The prompt of a reranker, with {query} and {document} in it; "" if it has none. Raises LocalError."""
        raw = self._lib.llama_model_chat_template(self._model, b"rerank")
        try:
            return raw.decode() if raw else ""
        except UnicodeDecodeError as exc:
            raise LocalError(f"{self.path}: its prompt for reranking is not UTF-8 text: choose another model") from exc

    @property
    def around_pair(self) -> tuple[list[int], list[int], list[int]]:
        """The tokens before the first of two texts, between them, and after the second one."""
        around = self._tokens("", add_special=True, parse_special=False)
        n_before = 1 if around and self.adds_bos else 0
        before, after = around[:n_before], around[n_before:]
        lib, vocab = self._lib, self._vocab
        has_two = lib.llama_vocab_get_add_eos(vocab) and lib.llama_vocab_get_add_sep(vocab)
        if not has_two and int(lib.llama_vocab_type(vocab)) != _UGM_VOCAB:
            return before, after, after
        separator = int(lib.llama_vocab_sep(vocab))
        return before, [*after, separator if separator >= 0 else int(lib.llama_vocab_eos(vocab))], after

    @property
    def adds_bos(self) -> bool:
        return bool(self._lib.llama_vocab_get_add_bos(self._vocab))

    @property
    def starts_with_space(self) -> bool:
        """True for SentencePiece vocabularies: their answers normally begin with a space."""
        return int(self._lib.llama_vocab_type(self._vocab)) == _SPM_VOCAB

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if self._model is None:
            raise EngineDead("the model is closed")
        if parse_special and self.control_tokens.count(text, _MANY):
            return self.tokenize_parts(self.control_tokens.parts(text, ""), add_special=add_special)
        return self._tokens(text, add_special=add_special, parse_special=parse_special)

    def _tokens(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        room = len(raw) + 16
        while True:
            tokens = (self._lib.llama_token * room)()
            n = self._lib.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            room = -n

    def tokenize_parts(self, parts: Sequence[str | int], *, add_special: bool) -> list[int]:
        """Return the tokens of texts and control tokens in order, as `tokenize` does with `parse_special`.

        Control tokens that a text spells are text.
        """
        around = self._tokens("", add_special=add_special, parse_special=False)
        n_before = 1 if around and self.adds_bos else 0
        tokens = around[:n_before]
        known: dict[str, list[int]] = {}  # short texts come again and again between control tokens
        for i, part in enumerate(parts):
            if isinstance(part, int):
                tokens.append(part)
                continue
            before, after = parts[i - 1] if i else None, parts[i + 1] if i + 1 < len(parts) else None
            if isinstance(before, int) and self._attributes.get(before, 0) & _RSTRIP:
                part = part.lstrip(_SPACES)
            if isinstance(after, int) and self._attributes.get(after, 0) & _LSTRIP:
                part = part.rstrip(_SPACES)
            for text in self._user_markers.cut(part):  # llama.cpp finds these in every text
                found = known.get(text)
                if found is None:
                    found = self._tokens(text, add_special=False, parse_special=False)
                    if len(text) <= _SHORT:
                        known[text] = found
                tokens += found
        return tokens + around[n_before:]

    @cached_property
    def longest_piece(self) -> int:
        """Bytes of the longest token, control tokens included. The first call takes up to a second."""
        return max(len(self._render(token, special=True)) for token in range(self.n_vocab))

    def _special_attributes(self) -> dict[int, int]:
        """Return the attributes of the tokens that llama.cpp looks for in texts, by their ids."""
        special = _UNKNOWN | _CONTROL | _USER_DEFINED
        get, vocab = self._lib.llama_vocab_get_attr, self._vocab
        return {token: found for token in range(self.n_vocab) if (found := int(get(vocab, token))) & special}

    def _control_ids(self) -> dict[str, int]:
        """Return the ids of the control tokens by their texts, and of added tokens that look like them."""
        return self._marker_ids() | self._spelt(_UNKNOWN | _CONTROL)

    def _marker_ids(self) -> dict[str, int]:
        return {text: token for text, token in self._spelt(_USER_DEFINED).items() if is_marker(text)}

    def _spelt(self, attributes: int) -> dict[str, int]:
        """Return the tokens with one of these attributes by the texts that they are found by."""
        texts = {
            token: bytes(self._lib.llama_vocab_get_text(self._vocab, token)).decode(errors="replace")
            for token, found in self._attributes.items()
            if found & attributes and not (attributes == _USER_DEFINED and found & (_UNKNOWN | _CONTROL))
        }
        return {text: token for token, text in texts.items()}

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
        """Make llguidance's tokenizer of this vocabulary. It takes about a second for 128k tokens: call it once."""
        import llguidance.llamacpp

        with warnings.catch_warnings():  # llguidance 1.9 calls a function that llama-cpp-python 0.3.36 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            return llguidance.llamacpp.lltokenizer_from_vocab(self._vocab, eos_token=sorted(self.eog))
