"""The kinds of tokenizers of the catalogue's families. Plain data: for a new kind, add a row."""

from __future__ import annotations

from dataclasses import dataclass

_SPACES = tuple(" " * n for n in range(8, 1, -1))  # GPT-NeoX and Phi-2 have these tokens for code


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer. `pre`: llama.cpp's name for how text is split before merging.

    `first`, `last`: control tokens before and after the trained ones. `text`: added tokens that are plain text.
    `extra`: control tokens that tokenizer_config.json lists as such.
    """

    model: str  # "bpe" of bytes, "sentencepiece" BPE with bytes, "unigram", "wordpiece"
    bos: str | None
    eos: str | None
    tokenizer_class: str
    pre: str = ""
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    adds_bos: bool = False
    adds_eos: bool = False
    prefix_space: bool = True  # sentencepiece only: a space before every text
    rstrip: bool = False  # added tokens include the space after them
    unk: str | None = None
    pad: str | None = None


_LLAMA = ("<unk>", "<s>", "</s>")
_YI = ("<unk>", "<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>")
_MISTRAL = (*_LLAMA, "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_GEMMA_UNUSED = ("<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99)))
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", *_GEMMA_UNUSED, "<start_of_turn>", "<end_of_turn>")  # ids 106 and 107
_TURNS = ("<|turn>", "<turn|>")
_GEMMA_4 = ("<pad>", "<eos>", "<bos>", "<unk>", *_GEMMA_UNUSED, *_TURNS)
_PHI_3 = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")
_LLAMA_3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HARMONY = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>")
_TEKKEN = (*_MISTRAL, "<|im_start|>", "<|im_end|>")
_LFM = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GRANITE = ("<|pad|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
_PHI_4 = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_FALCON = (">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>SUMMARY<<", "<|endoftext|>")
_XLM = ("<s>", "<pad>", "</s>", "<unk>")

KINDS = {
    "llama": Kind("sentencepiece", "<s>", "</s>", "LlamaTokenizer", first=_LLAMA, adds_bos=True, unk="<unk>"),
    "yi": Kind(
        "sentencepiece", "<|startoftext|>", "<|im_end|>", "LlamaTokenizer", first=(*_YI, "<|im_end|>"), unk="<unk>"
    ),
    "mistral": Kind("sentencepiece", "<s>", "</s>", "LlamaTokenizer", first=_MISTRAL, adds_bos=True, unk="<unk>"),
    "gemma": Kind(
        *("sentencepiece", "<bos>", "<eos>", "GemmaTokenizer"),
        first=_GEMMA, adds_bos=True, prefix_space=False, unk="<unk>", pad="<pad>",
    ),
    "gemma-4": Kind(
        *("sentencepiece", "<bos>", "<eos>", "GemmaTokenizer"),
        first=_GEMMA_4, extra=_TURNS, adds_bos=True, prefix_space=False, unk="<unk>", pad="<pad>",
    ),
    "embeddinggemma": Kind(
        *("sentencepiece", "<bos>", "<eos>", "GemmaTokenizer"),
        first=_GEMMA, adds_bos=True, adds_eos=True, prefix_space=False, unk="<unk>", pad="<pad>",
    ),
    "phi-3": Kind(
        *("sentencepiece", "<s>", "<|endoftext|>", "LlamaTokenizer"),
        first=_LLAMA, last=_PHI_3, rstrip=True, unk="<unk>", pad="<|endoftext|>",
    ),
    "internlm2": Kind(
        *("sentencepiece", "<s>", "</s>", "LlamaTokenizer"),
        first=(*_LLAMA, "<|im_end|>", "<|im_start|>"), adds_bos=True, unk="<unk>",
    ),
    "llama-3": Kind(
        "bpe", "<|begin_of_text|>", "<|eot_id|>", "PreTrainedTokenizerFast", "llama-bpe", last=_LLAMA_3, adds_bos=True
    ),
    "qwen2": Kind("bpe", None, "<|im_end|>", "Qwen2Tokenizer", "qwen2", last=_CHATML, pad="<|endoftext|>"),
    "qwen3-reranker": Kind(
        *("bpe", None, "<|im_end|>", "Qwen2Tokenizer", "qwen2"), last=_CHATML, text=("yes", "no"), pad="<|endoftext|>"
    ),
    "qwen35": Kind("bpe", None, "<|im_end|>", "Qwen2Tokenizer", "qwen35", last=_CHATML, pad="<|endoftext|>"),
    "qwen3-embedding": Kind(
        *("bpe", None, "<|endoftext|>", "Qwen2Tokenizer", "qwen2"), last=_CHATML, adds_eos=True, pad="<|endoftext|>"
    ),
    "harmony": Kind(
        *("bpe", "<|startoftext|>", "<|return|>", "PreTrainedTokenizerFast", "gpt-4o"),
        last=_HARMONY, pad="<|endoftext|>",
    ),
    "o200k": Kind(
        *("bpe", "<|endoftext|>", "<|end|>", "GPT2Tokenizer", "gpt-4o"), last=_PHI_4, pad="<|endoftext|>"
    ),
    "tekken": Kind(
        *("bpe", "<s>", "</s>", "PreTrainedTokenizerFast", "tekken"), first=_TEKKEN, adds_bos=True, unk="<unk>"
    ),
    "lfm2": Kind(
        *("bpe", "<|startoftext|>", "<|im_end|>", "PreTrainedTokenizerFast", "lfm2"),
        first=_LFM, adds_bos=True, pad="<|pad|>",
    ),
    "granite": Kind(
        *("bpe", "<|end_of_text|>", "<|end_of_text|>", "GPT2Tokenizer", "dbrx"), last=_GRANITE, pad="<|pad|>"
    ),
    "smollm": Kind(
        *("bpe", "<|im_start|>", "<|im_end|>", "GPT2Tokenizer", "smollm"),
        first=_CHATML, unk="<|endoftext|>", pad="<|im_end|>",
    ),
    "phi-2": Kind(
        "bpe", "<|endoftext|>", "<|endoftext|>", "CodeGenTokenizer", "phi-2", last=("<|endoftext|>",), text=_SPACES
    ),
    "falcon": Kind("bpe", None, "<|endoftext|>", "PreTrainedTokenizerFast", "falcon", first=_FALCON),
    "neox": Kind(
        *("bpe", "<|endoftext|>", "<|endoftext|>", "GPTNeoXTokenizer", "mpt"),
        first=("<|endoftext|>", "<|padding|>"), text=_SPACES,
    ),
    "olmo": Kind(
        *("bpe", None, "<|endoftext|>", "GPTNeoXTokenizer", "olmo"),
        last=("<|endoftext|>", "<|padding|>"), text=_SPACES, pad="<|padding|>",
    ),
    "bloom": Kind(
        *("bpe", "<s>", "</s>", "BloomTokenizer", "bloom"),
        first=("<unk>", "<s>", "</s>", "<pad>"), unk="<unk>", pad="<pad>",
    ),
    "opt": Kind(
        *("bpe", "</s>", "</s>", "GPT2Tokenizer", "gpt-2"),
        first=("<s>", "<pad>", "</s>", "<unk>"), adds_bos=True, unk="<unk>", pad="<pad>",
    ),
    "bert": Kind(
        *("wordpiece", None, None, "BertTokenizer", "bert-bge"),
        first=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), unk="[UNK]", pad="[PAD]",
    ),
    "xlm-roberta": Kind(
        *("unigram", "<s>", "</s>", "XLMRobertaTokenizer"), first=_XLM, last=("<mask>",), unk="<unk>", pad="<pad>"
    ),
}  # fmt: skip
