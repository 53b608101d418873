"""Tokenizers for the families of the catalogue, trained on a page of text, with all files of a model folder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.arch.kinds import Kind

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1000  # trained tokens, bytes included; control tokens are extra
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SUFFIX"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SUFFIX"
    r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_WHOLE_WORDS = ("llama-bpe", "lfm2", "tekken")  # kinds that take a word of the vocabulary without merges


def write(kind: Kind, folder: Path, template: str) -> int:
    """Write tokenizer.json, tokenizer_config.json and the other files of the kind. Return the number of tokens."""
    made = {"bpe": _bytes, "sentencepiece": _sentencepiece, "unigram": _unigram, "wordpiece": _wordpiece}[kind.model](
        kind, folder
    )
    special = [_added(text, kind.rstrip and text in kind.last) for text in (*kind.first, *kind.last)]
    made.add_special_tokens(special)
    made.add_tokens([_plain(text) for text in kind.text])
    _dress(made, kind)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(made, kind, template), indent=1), encoding="utf-8")
    return int(made.get_vocab_size())


def corpus() -> list[str]:
    """Return lines of text in English and Russian."""
    lines: list[str] = []
    for name in ("json_extraction", "graph_extraction"):
        text = (ROOT / "templates" / name / "documents.jsonl").read_text(encoding="utf-8")
        lines += [line for row in text.splitlines() for line in json.loads(row)["text"].splitlines()]
    return lines


# --- the kinds ------------------------------------------------------------------------------------------------------


def _bytes(kind: Kind, folder: Path) -> Any:
    """Train BPE on GPT-2's alphabet of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind.pre in _WHOLE_WORDS))
    tokenizer.pre_tokenizer = _cut(kind.pre)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = SIZE + len(kind.first)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(kind.first), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _cut(pre: str) -> Any:
    """Return the pre-tokenizer of a kind of byte-level BPE, as in its published tokenizer.json."""
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(pattern: str, behavior: str = "isolated") -> Any:
        return pre_tokenizers.Split(Regex(pattern), behavior)

    match pre:
        case "llama-bpe" | "lfm2" | "dbrx":
            return pre_tokenizers.Sequence([split(_CL100K.replace("DIGITS", "{1,3}")), byte_level])
        case "qwen2":
            return pre_tokenizers.Sequence([split(_CL100K.replace("DIGITS", "")), byte_level])
        case "qwen35":
            return pre_tokenizers.Sequence([split(_QWEN_35), byte_level])
        case "gpt-4o":
            pattern = _O200K.replace("SUFFIX", _ENGLISH).replace("DIGITS", "{1,3}")
            return pre_tokenizers.Sequence([split(pattern), byte_level])
        case "tekken":
            return pre_tokenizers.Sequence([split(_O200K.replace("SUFFIX", "").replace("DIGITS", "")), byte_level])
        case "smollm":
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            return pre_tokenizers.Sequence(steps)
        case "bloom":
            return pre_tokenizers.Sequence([split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), byte_level])
        case "falcon":
            steps = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            return pre_tokenizers.Sequence([*steps, split("[0-9][0-9][0-9]")])
        case _:
            return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _sentencepiece(kind: Kind, folder: Path) -> Any:
    """Train BPE with SentencePiece; text without a piece becomes bytes. Also write tokenizer.model."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    model = _trained(kind, "bpe", byte_fallback=True)
    (folder / "tokenizer.model").write_bytes(model.serialized_model_proto())
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    tokenizer = Tokenizer(models.BPE(vocab, list(_merges(vocab)), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", _SPACE)]
    bytes_ = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind.prefix_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), *spaces])
        tokenizer.decoder = decoders.Sequence([*bytes_, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = normalizers.Sequence(spaces)
        tokenizer.decoder = decoders.Sequence(bytes_)
    return tokenizer


def _unigram(kind: Kind, folder: Path) -> Any:
    """Train XLM-RoBERTa's kind: fairseq's first tokens replace SentencePiece's. Also write its model file."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = _trained(kind, "unigram")
    (folder / "sentencepiece.bpe.model").write_bytes(model.serialized_model_proto())
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(3, model.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram([*((text, 0.0) for text in kind.first), *pieces], 3, False))
    charsmap = _normalizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    from tokenizers import decoders

    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _wordpiece(kind: Kind, folder: Path) -> Any:
    """Train BERT's kind, lower-case. Also write vocab.txt."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=list(kind.first), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    return tokenizer


def _trained(kind: Kind, model_type: str, **more: Any) -> Any:
    """Train a SentencePiece model with the `first` control tokens of the kind."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    first = list(kind.first) if model_type == "bpe" else ["<unk>", "<s>", "</s>"]
    ids = {"unk_id": first.index("<unk>"), "bos_id": first.index(kind.bos or ""), "eos_id": -1, "pad_id": -1}
    names = {"bos_piece": kind.bos, "unk_piece": "<unk>"}
    ends = next(text for text in first if text in ("</s>", "<|endoftext|>", "<eos>"))
    ids["eos_id"], names["eos_piece"] = first.index(ends), ends
    if "<pad>" in first:
        ids["pad_id"], names["pad_piece"] = first.index("<pad>"), "<pad>"
    rest = [text for text in first if text not in names.values()]
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        model_type=model_type,
        vocab_size=SIZE + len(first),
        user_defined_symbols=rest,
        add_dummy_prefix=kind.prefix_space,
        remove_extra_whitespaces=model_type != "bpe",
        normalization_rule_name="identity" if model_type == "bpe" else "nmt_nfkc",
        minloglevel=2,
        **ids,
        **names,
        **more,
    )
    return SentencePieceProcessor(model_proto=written.getvalue())


def _merges(vocab: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield merges in the order of the pieces they make. This is the order of SentencePiece's scores."""
    for piece, _ in sorted(vocab.items(), key=lambda item: item[1]):
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        if piece.startswith(("<", "[")) and len(piece) > 2:  # a byte or a control token
            continue
        yield from sorted(
            (pair for pair in pairs if set(pair) <= vocab.keys()), key=lambda p: (vocab[p[0]], vocab[p[1]])
        )


def _normalizer(model: Any) -> bytes:
    """Return the table that a SentencePiece model uses to change characters."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.serialized_model_proto())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


# --- parts of all kinds ---------------------------------------------------------------------------------------------


def _added(text: str, rstrip: bool) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, normalized=False, special=True, rstrip=rstrip)


def _plain(text: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, normalized=True, special=False)


def _dress(tokenizer: Any, kind: Kind) -> None:
    """Set the control tokens that are put around every text."""
    from tokenizers import processors

    if kind.model in ("wordpiece", "unigram"):
        start, end = ("[CLS]", "[SEP]") if kind.model == "wordpiece" else ("<s>", "</s>")
        tokens = [(text, tokenizer.token_to_id(text)) for text in (start, end)]
        # As the published tokenizers of BERT and of XLM-RoBERTa.
        pair = "$A [SEP] $B:1 [SEP]:1" if kind.model == "wordpiece" else "$A </s> </s> $B </s>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}", pair=f"{start} {pair}", special_tokens=tokens
        )
        return
    before = f"{kind.bos} " if kind.adds_bos and kind.bos else ""
    after = f" {kind.eos}" if kind.adds_eos and kind.eos else ""
    if before or after:
        around = [text.strip() for text in (before, after) if text]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}",
            pair=f"{before}$A{after} {before}$B{after}",
            special_tokens=[(text, tokenizer.token_to_id(text)) for text in around],
        )


def _config(tokenizer: Any, kind: Kind, template: str) -> dict[str, Any]:
    """Return tokenizer_config.json as published folders have it."""
    added = {
        str(id_): {
            "content": token.content,
            "lstrip": False,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": False,
            "special": token.special,
        }
        for id_, token in tokenizer.get_added_tokens_decoder().items()
    }
    found: dict[str, Any] = {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "tokenizer_class": kind.tokenizer_class,
    }
    named = {"bos_token": kind.bos, "eos_token": kind.eos, "unk_token": kind.unk, "pad_token": kind.pad}
    found |= {name: text for name, text in named.items() if text is not None}
    if kind.extra:
        found["extra_special_tokens"] = list(kind.extra)
    if kind.model == "sentencepiece":
        found |= {"add_bos_token": kind.adds_bos, "add_eos_token": kind.adds_eos, "legacy": True}
    if kind.model == "wordpiece":
        found |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "do_lower_case": True}
    if kind.model == "unigram":
        found |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return found | ({"chat_template": template} if template else {})
