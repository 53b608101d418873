"""The vocabulary of a model folder. The tests make tokenizers of every supported kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tourkit.backends.vocabulary import Vocabulary, byte_alphabet
from tourkit.errors import LocalError

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed here: make test-onnx")

TEXTS = ["", "the name and the date", "Счёт № 42 на сумму 1 200,50 ₽", "emoji 🙂", "a\x00b", " x\n\n  y"]
SPECIAL = ["<s>", "</s>", "<|im_end|>"]


def added(text: str, **how: bool) -> Any:
    return tokenizers.AddedToken(text, normalized=False, **how)


def byte_level() -> Any:
    """Make a tokenizer of GPT-2's kind: every byte is a character of a special alphabet."""
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {char: i for i, char in enumerate(sorted(byte_alphabet().values()))}
    vocab["th"], vocab["the"] = 256, 257
    made = tokenizers.Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([added(text, special=True) for text in SPECIAL])
    made.add_tokens([added("<tool>"), added("    ")])
    return made


def sentencepiece() -> Any:
    """Make a tokenizer of Llama 2's kind: U+2581 is a space and precedes each text; unknown characters are bytes."""
    from tokenizers import decoders, models, normalizers, processors

    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    for text in ["\u2581", *"thenamdi", "th", "the", "\u2581the"]:
        vocab[text] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([added(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return made


def folder(path: Path, tokenizer: Any, **files: dict[str, Any]) -> Path:
    """Make a model folder with tokenizer.json and other JSON files, given by name without `.json`."""
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def read(path: Path, n_vocab: int = 300) -> Vocabulary:
    return Vocabulary(path, n_vocab)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_bytes_of_the_tokens_are_the_text(make: Any, text: str, tmp_path: Path) -> None:
    vocabulary = read(folder(tmp_path, make()))
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    spelt = b"".join(vocabulary.piece(token) for token in tokens).decode()

    assert spelt == (f" {text}" if vocabulary.starts_with_space and text else text)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_grammar_sees_the_same_bytes_for_every_token(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    vocabulary = read(folder(tmp_path, make(), config={"eos_token_id": 2}))
    grammar = vocabulary.grammar_tokenizer()
    # Byte 255 occurs in no text, so llguidance marks control tokens with it.
    texts = [token for token in range(vocabulary.n_known) if vocabulary.piece(token) not in (b"", b"\xff")]

    assert len(texts) > 250
    assert [grammar.decode_bytes([token]) for token in texts] == [vocabulary.piece(token) for token in texts]
    assert grammar.vocab_size == 300


def test_control_tokens_are_read_in_templates_only_and_have_no_text(tmp_path: Path) -> None:
    vocabulary = read(folder(tmp_path, byte_level()))
    plain, parsed = (vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=how) for how in (False, True))

    assert len(plain) == len("<|im_end|>")
    assert len(parsed) == 1
    assert vocabulary.piece(parsed[0]) == b""


def test_added_tokens_that_are_text_keep_theirs(tmp_path: Path) -> None:
    vocabulary = read(folder(tmp_path, byte_level()))
    tokens = vocabulary.tokenize("<tool>    ", add_special=False, parse_special=False)

    assert [vocabulary.piece(token) for token in tokens] == [b"<tool>", b"    "]


def test_tokens_that_only_the_configuration_adds_are_known(tmp_path: Path) -> None:
    more = {"added_tokens_decoder": {"263": {"content": "<|end|>", "special": True, "normalized": False}}}
    vocabulary = read(folder(tmp_path, byte_level(), tokenizer_config=more))

    assert vocabulary.tokenize("<|end|>", add_special=False, parse_special=True) == [263]
    assert 263 in vocabulary.eog


def test_padding_of_the_weights_is_no_token(tmp_path: Path) -> None:
    vocabulary = read(folder(tmp_path, byte_level()), n_vocab=512)

    assert vocabulary.n_known == 263
    assert vocabulary.piece(511) == b""


def test_an_added_token_past_the_weights_is_left_out(tmp_path: Path) -> None:
    """Some fine-tunes add a padding token to the tokenizer but not to the weights."""
    vocabulary = read(folder(tmp_path, byte_level()), n_vocab=262)

    assert vocabulary.n_known == 262


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="do not belong together"):
        read(folder(tmp_path, byte_level()), n_vocab=100)


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config": {"eos_token_id": [259, 5]}}, {259, 5, 260}),
        ({"config": {"eos_token_id": 7}}, {7, 260}),
        ({"genai_config": {"model": {"eos_token_id": [8]}}}, {8, 260}),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}}, {259, 260}),
        ({}, {260}),
    ],
)
def test_what_ends_an_answer_comes_from_every_file_and_from_well_known_names(
    files: dict[str, Any], ends: set[int], tmp_path: Path
) -> None:
    """258 to 260 are <s>, </s> and <|im_end|>. <|im_end|> always ends an answer."""
    assert read(folder(tmp_path, byte_level(), **files)).eog == ends


@pytest.mark.parametrize("name", ["<reponame>", "<|repo_name|>", "<|file_sep|>", "<|fim_pad|>"])
def test_a_token_between_the_files_of_a_repository_ends_an_answer_as_in_llama_cpp(name: str, tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([added(name, special=True)])

    assert tokenizer.token_to_id(name) in read(folder(tmp_path, tokenizer), n_vocab=264).eog


@pytest.mark.parametrize(
    ("make", "config", "first"),
    [
        (sentencepiece, {"bos_token": "<s>"}, [1]),  # its post-processor says so
        (sentencepiece, {"bos_token": "<s>", "add_bos_token": False}, []),
        (byte_level, {"bos_token": "<s>"}, []),
        (byte_level, {"bos_token": "<s>", "add_bos_token": True}, [258]),
    ],
)
def test_prompts_begin_as_the_configuration_says(make: Any, config: Any, first: list[int], tmp_path: Path) -> None:
    vocabulary = read(folder(tmp_path, make(), tokenizer_config=config))
    bare, dressed = (vocabulary.tokenize("the", add_special=how, parse_special=False) for how in (False, True))

    assert dressed == first + bare
    assert vocabulary.adds_bos == bool(first)
    assert vocabulary.special_tokens["bos_token"] == "<s>"


def test_special_tokens_may_be_named_by_id_alone(tmp_path: Path) -> None:
    vocabulary = read(folder(tmp_path, byte_level(), config={"bos_token_id": 258, "eos_token_id": [259]}))

    assert vocabulary.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_the_chat_template_is_found_where_it_is(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "from a list"}]
    found = []
    found.append(read(folder(tmp_path, byte_level())).chat_template)
    found.append(read(folder(tmp_path, byte_level(), tokenizer_config={"chat_template": several})).chat_template)
    found.append(read(folder(tmp_path, byte_level(), chat_template={"chat_template": "of its own"})).chat_template)
    (tmp_path / "chat_template.jinja").write_text("plain")
    found.append(read(tmp_path).chat_template)

    assert found == [None, "from a list", "of its own", "plain"]


def test_a_tokenizer_saved_with_truncation_cuts_nothing(tmp_path: Path) -> None:
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=8)

    assert len(read(folder(tmp_path, made)).tokenize("xyz" * 10, add_special=False, parse_special=False)) == 30


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_tokenizer_that_is_no_good_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(LocalError, match="tokenizer"):
        read(tmp_path)


def test_a_kind_of_tokenizer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    from tokenizers import models

    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))

    with pytest.raises(LocalError, match="unsupported kind of tokenizer"):
        read(folder(tmp_path, made))


@pytest.mark.parametrize(("more", "ends"), [(["<|end|>"], True), (["<|end|>", "<|return|>", "<|call|>"], False)])
def test_in_gpt_oss_an_answer_goes_on_after_the_end_of_a_message(more: list[str], ends: bool, tmp_path: Path) -> None:
    """As in llama.cpp: where all three are tokens, the thinking is a message of its own."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens([added(text, special=True) for text in more])

    eog = read(folder(tmp_path, tokenizer), n_vocab=270).eog

    assert (tokenizer.token_to_id("<|end|>") in eog) is ends
