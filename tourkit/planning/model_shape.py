"""The numbers of a model that decide how much memory it takes.

They come from the header of a GGUF file or from config.json (tourkit/headers/ reads both), from the catalogue, or from
a guess from the file size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

from tourkit.errors import LocalError
from tourkit.headers.config import folder_config
from tourkit.headers.gguf import gguf_header, is_gguf
from tourkit.manifest.models import Arch, Model
from tourkit.planning import experts, recurrent
from tourkit.planning.experts import NOTHING, Sparse

GUESSED = "the file's size alone"  # a shape's source
_POOLINGS = (1, 2, 3, 4)  # mean, first token, last token, rank: all except "none"
_RANK = 4
_LABELS = "classifier.output_labels"  # only in the header of a model with a head that gives scores
_ENCODERS = ("bert", "xlm-roberta")  # model types whose tokens attend to the whole text: they make embeddings
# Model types of which a reranker reads a query and a document as two texts, with special tokens around them.
CROSS_ENCODERS = (
    *("bert", "xlm-roberta", "roberta", "camembert", "modernbert", "deberta-v2"),
    *("distilbert", "electra", "mpnet", "albert"),
)
_RERANK = "rerank"  # the role
_STATE_BYTES = 4  # per value of a recurrent state: llama.cpp keeps them in 32 bits
_GUESSED_KV_PER_PARAM = 1 / 20_000  # values per token; Phi-3 mini, which keeps many, has 1/19,400


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of one model.

    `kv`: for each layer, how many values (keys and values) one token adds to the KV cache. `windows`: how many tokens
    back each layer attends, 0 for all. `context`: tokens, 0 if unknown. `source`: where the numbers come from.
    `embeds`: the model makes embeddings or scores, and reads a text in one call. `reranks`: it makes scores. `state`:
    bytes of the recurrent states of one sequence, whatever its length. `sparse`: weights that not every token reads.
    `queries`: values of the queries of all heads of a layer, 0 if unknown.
    """

    kv: tuple[int, ...]
    windows: tuple[int, ...]
    width: int
    feed_forward: int
    vocab: int
    context: int
    source: str
    head: int = 0  # divides the size of every key and value; a quantised cache needs a multiple of 32; 0 if unknown
    experts_used: int = 1
    embeds: bool = False
    state: int = 0
    reranks: bool = False
    sparse: Sparse = NOTHING
    queries: int = 0

    @property
    def layers(self) -> int:
        return len(self.kv)


def of_file(path: Path) -> Shape | None:
    """Return the shape from the header of a weight file, or from its folder's config.json; None if neither has it.

    None too for a header that is refused. The worker refuses it by the same checks before it loads the file.
    """
    try:
        if path.is_file() and is_gguf(path):
            return _of_gguf(gguf_header(path))
        return _of_config(folder_config(path if path.is_dir() else path.parent))
    except (OSError, LocalError, ValueError, KeyError):  # truncated or unusual: the worker says what is wrong
        return None


def of_model(model: Model) -> Shape | None:
    """Return the shape that a model's catalogue file states; None if it states no numbers."""
    if model.arch is None:
        return None
    shape = of_arch(model.arch, model.context)
    kv = (0,) * shape.layers if model.architecture in _ENCODERS else shape.kv
    return replace(shape, kv=kv, embeds=model.only_reads, reranks=model.roles == (_RERANK,))


def of_arch(arch: Arch, context: int) -> Shape:
    """Return the shape of the catalogue's numbers.

    The catalogue has no feed-forward width: four times the model's width is assumed, an upper bound. It does not say
    which layers of a hybrid model have a KV cache: they are spread evenly, as in Qwen3.5.
    """
    layers, attending = arch.n_layers, arch.attention_layers or arch.n_layers
    each = 2 * arch.n_kv_heads * arch.head_dim
    return Shape(
        kv=tuple(each * ((i + 1) * attending // layers - i * attending // layers) for i in range(layers)),
        windows=(0,) * layers,
        width=arch.hidden_size,
        feed_forward=4 * arch.hidden_size,
        vocab=arch.vocab_size,
        context=context,
        source="the catalogue",
        head=arch.head_dim,
        state=_STATE_BYTES * (arch.state_values or 0),
        queries=arch.n_heads * arch.head_dim,
    )


def of_size(size: int, bits: int, context: int) -> Shape:
    """Guess the shape from `size` bytes of weights of `bits` each, on the large side: 32 layers like those of Phi-3."""
    params = size * 8 // max(bits, 2)
    kv = max(1, int(params * _GUESSED_KV_PER_PARAM / 32))
    width = int((params / 32 / 12) ** 0.5)  # a layer has about 12 x width x width weights
    return Shape((kv,) * 32, (0,) * 32, width, 4 * width, 128_000, context, GUESSED)


def _of_gguf(header: dict[str, Any]) -> Shape:
    name = header["general.architecture"]

    def number(key: str, default: int = 0) -> int:
        return _largest(header.get(f"{name}.{key}", default))

    layers, width, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    if not layers or not width:
        raise ValueError(f"the header of a {name} has no block_count or no embedding_length")
    head = width // heads if heads else 0
    key, value = number("attention.key_length", head), number("attention.value_length", head)
    key_near, value_near = number("attention.key_length_swa", key), number("attention.value_length_swa", value)
    near = header.get(f"{name}.attention.sliding_window_pattern")  # Gemma 4's layers with a window have smaller heads
    near = near if isinstance(near, list) and len(near) == layers else [False] * layers
    sizes = [key_near + value_near if each else key + value for each in near]
    kv_heads = _per_layer(header.get(f"{name}.attention.head_count_kv", heads), layers)
    kept = layers - number("attention.shared_kv_layers")  # the last layers read the cells of earlier ones
    states = recurrent.of_gguf(header, kv_heads)
    reranks = number("pooling_type") == _RANK or f"{name}.{_LABELS}" in header
    if header.get(f"{name}.attention.causal") is False:
        kv_heads = [0] * layers  # an embedder reads its text in one call and has no KV cache
    return Shape(
        kv=states.cached(
            [n * size if i < kept else 0 for i, (n, size) in enumerate(zip(kv_heads, sizes, strict=True))]
        ),
        windows=(0,) * layers,  # our backend keeps whole prefixes in every layer, so that slots can share them
        width=width,
        feed_forward=number("feed_forward_length", 4 * width),
        vocab=number("vocab_size") or int(header.get("tokenizer.ggml.tokens", 0)),
        context=number("context_length"),
        source="the GGUF header",
        head=gcd(key, value, key_near, value_near),
        experts_used=max(1, number("expert_used_count", 1)),
        embeds=reranks or number("pooling_type") in _POOLINGS,
        state=_STATE_BYTES * states.total,
        reranks=reranks,
        sparse=experts.of_gguf(header),
        queries=heads * key,
    )


def _of_config(config: dict[str, Any]) -> Shape:
    """Return the shape from Hugging Face's config.json. Model families use different names for the same numbers."""
    config = config.get("text_config") or config

    def number(*names: str, default: int = 0) -> int:
        return next((_largest(config[name]) for name in names if config.get(name)), default)

    layers = number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    width = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", "n_heads")
    if not layers or not width or not heads:
        raise ValueError("config.json has no number of layers, width or heads")
    kv_heads = number("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon's first design
    kv_heads = _largest((config.get("attn_config") or {}).get("kv_n_heads") or kv_heads)  # MPT
    head = number("head_dim", default=width // heads)
    reranks = reranks_by(config)
    embeds = reranks or embeds_by(config)
    states = recurrent.of_config(config, layers)
    return Shape(
        kv=states.cached((0,) * layers if embeds else _config_cache(config, layers, kv_heads, head)),
        windows=_windows(config, layers),
        width=width,
        feed_forward=number("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * width),
        vocab=number("vocab_size"),
        context=number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        source="config.json",
        head=head,
        experts_used=max(1, number("num_experts_per_tok", default=1)),
        embeds=embeds,
        state=_STATE_BYTES * states.total,
        reranks=reranks,
        sparse=experts.of_config(config, layers),
        queries=heads * head,
    )


def _config_cache(config: dict[str, Any], layers: int, kv_heads: int, head: int) -> list[int]:
    """Return the values that one token adds to the cache of each layer, if the layer attends.

    Gemma 4 has larger heads, and fewer of them, in layers without a window. Its last layers read earlier cells.
    """
    kept = layers - _largest(config.get("num_kv_shared_layers") or 0)
    whole = _largest(config.get("global_head_dim") or head)
    whole_heads = _largest(config.get("num_global_key_value_heads") or kv_heads)
    near = [bool(window) for window in _windows(config, layers)]
    sizes = [2 * (kv_heads * head if each else whole_heads * whole) for each in near]
    return [size if layer < kept else 0 for layer, size in enumerate(sizes)]


def embeds_by(config: dict[str, Any]) -> bool:
    """Return whether a config.json describes an encoder, which makes embeddings and generates no text."""
    return config.get("model_type") in _ENCODERS and not config.get("is_decoder")


def reranks_by(config: dict[str, Any]) -> bool:
    """Return whether a config.json describes a model with a head that gives scores."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _windows(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Return how many tokens back each layer attends, 0 for all."""
    window = _largest(config.get("sliding_window") or 0)
    if not window or config.get("use_sliding_window") is False:
        return (0,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if config.get("model_type") == "gemma2":  # old files have no layer_types: layers 0, 2, 4… have the window
        return tuple(window if layer % 2 == 0 else 0 for layer in range(layers))
    return (window,) * layers


def _largest(value: Any) -> int:
    """Return a number, or the largest number of a list with one for each layer."""
    return max((int(each) for each in value), default=0) if isinstance(value, list) else int(value)


def _per_layer(value: Any, layers: int) -> list[int]:
    each = [int(item) for item in value] if isinstance(value, list) else [int(value)] * layers
    if len(each) != layers:
        raise ValueError("head_count_kv does not have one value per layer")
    return each
