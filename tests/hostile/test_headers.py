"""Headers of weights as a stranger may write them: one line that names file and key, before anything is built."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from hostile.files import CONFIG, gguf, model_keys, mutations, nested, refusal, safetensors
from hostile.processes import with_peak
from tourkit import backends
from tourkit.backends.vllm.weights import folder_of
from tourkit.errors import LocalError
from tourkit.headers.bounds import FIX
from tourkit.headers.check import check_weights
from tourkit.launch import Launch
from tourkit.planning.model_shape import of_file
from tourkit.planning.weights import read_weights

MIB = 1 << 20
TINY = Path(__file__).parents[2] / "weights" / "tiny"


def long_text(length: int) -> bytes:
    return struct.pack("<Q", length)


GGUF = {  # by case: the file, and what the message says
    "2**31 - 1 layers": (gguf(model_keys(llama__block_count=(4, 2**31 - 1))), "llama.block_count is 2147483647"),
    "40 million layers": (gguf(model_keys(llama__block_count=(4, 40_000_000))), "llama.block_count is 40000000"),
    "no layers": (gguf(model_keys(llama__block_count=(4, 0))), "llama.block_count is 0"),
    "layers as text": (gguf(model_keys(llama__block_count=(8, "2"))), "llama.block_count is '2', not a whole"),
    "infinite layers": (gguf(model_keys(llama__block_count=(6, float("inf")))), "llama.block_count is inf"),
    "negative heads": (gguf(model_keys(llama__attention__head_count_kv=(5, -3))), "attention.head_count_kv is -3"),
    "one negative layer": (
        gguf(model_keys(llama__attention__head_count_kv=(9, (5, [2, -2])))),
        "attention.head_count_kv[1] is -2",
    ),
    "context": (gguf(model_keys(llama__context_length=(4, 2**32 - 1))), "llama.context_length is 4294967295"),
    "vocabulary": (gguf(model_keys(llama__vocab_size=(4, 2**31))), "llama.vocab_size is 2147483648"),
    "arrays 900 deep": (gguf(model_keys(general__tags=(9, nested(900)))), "general.tags is an array of arrays"),
    "arrays 100,000 deep": (gguf(model_keys(llama__x=(9, nested(100_000)))), "an array of arrays"),
    "a huge array": (gguf(model_keys(general__tags=(9, struct.pack("<IQ", 4, 2**60)))), "general.tags, an array of"),
    "a huge text": (gguf(model_keys(general__name=(8, long_text(2**63)))), "ends too early, in general.name"),
    "a text of 2 MiB": (gguf(model_keys(general__name=(8, "x" * 2 * MIB))), "general.name is a text of 2097152 bytes"),
    "2**60 keys": (gguf(model_keys(), count=2**60), "keys, more than 65536"),
    "one key more": (gguf(model_keys(), count=20), "key 20 of 20"),
    "2**63 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors, more than"),
    "an unknown type": (gguf(model_keys(llama__x=(99, b""))), "llama.x has a value of unknown type 99"),
    "a key twice": (gguf([*model_keys(), ("general.name", 8, "other")]), "'general.name' is there twice"),
    "a token twice": (gguf(model_keys(tokenizer__ggml__tokens=(9, (8, ["a", "a"])))), "the same token twice"),
    "tokens as numbers": (
        gguf(model_keys(tokenizer__ggml__tokens=(9, (4, [1])))),
        "is not an array of values of type 8",
    ),
    "tokens as one text": (
        gguf(model_keys(tokenizer__ggml__tokens=(8, "abcd"))),
        "is not an array of values of type 8",
    ),
    "types of other tokens": (gguf(model_keys(tokenizer__ggml__token_type=(9, (5, [1])))), "1 values for 4 tokens"),
    "a template that is no UTF-8": (
        gguf(model_keys(tokenizer__chat_template=(8, long_text(2) + b"\xff\xfe"))),
        "tokenizer.chat_template is not UTF-8 text at byte 0",
    ),
    "more experts used than there": (
        gguf(model_keys(llama__expert_count=(4, 2), llama__expert_used_count=(4, 3))),
        "expert_used_count is 3, but llama.expert_count is 2",
    ),
    "an odd alignment": (gguf(model_keys(general__alignment=(4, 24))), "general.alignment is 24"),
    "an unknown pooling": (gguf(model_keys(llama__pooling_type=(4, 77))), "llama.pooling_type is 77"),
    "an escape sequence as name": (gguf(model_keys(general__architecture=(8, "\x1b[2J"))), r"is '\x1b[2J', not a name"),
    "a tensor beyond the end": (gguf(model_keys(), tuple("ab"))[:-256], "begins 128 bytes on"),
    "cut in the header": (gguf(model_keys())[:200], "ends too early, in"),
    "only the magic": (b"GGUF", "ends too early"),
    "another version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "not a GGUF file of version 2 or 3"),
}


def line(path: Path) -> str:
    """Return the one line that refuses the weights at `path`."""
    with pytest.raises(LocalError) as error:
        check_weights(path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f": {FIX}")
    return str(error.value)


@pytest.mark.parametrize("case", GGUF)
def test_a_hostile_gguf_is_refused_in_one_line_that_names_file_and_key(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content, says = GGUF[case]
    path.write_bytes(content)

    said = line(path)

    assert said.startswith(f"{path}: ")
    assert says in said


@pytest.mark.parametrize("case", ["2**31 - 1 layers", "negative heads", "arrays 900 deep", "cut in the header"])
def test_a_plan_of_the_file_says_the_same_and_a_plan_of_a_bundle_guesses(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[case][0])

    with pytest.raises(LocalError) as error:
        read_weights(path)

    assert str(error.value) == line(path)
    assert of_file(path) is None


def config(**changes: Any) -> str:
    return json.dumps(CONFIG | changes)


CONFIGS = {
    "2**31 - 1 layers": (config(num_hidden_layers=2**31 - 1), "num_hidden_layers is 2147483647"),
    "10**400 layers": (config(num_hidden_layers=10**400), "num_hidden_layers is a number of more than 60 digits"),
    "negative heads": (config(num_key_value_heads=-4), "num_key_value_heads is -4"),
    "NaN": (config(num_hidden_layers=float("nan")), "num_hidden_layers is nan, not a whole number"),
    "infinity": (config(hidden_size=float("inf")), "hidden_size is inf"),
    "a number as text": (config(hidden_size="64"), "hidden_size is '64', not a whole number"),
    "a number as a list": (config(hidden_size=[64]), "hidden_size is a list of 1"),
    "true": (config(vocab_size=True), "vocab_size is True"),
    "a list with text": (config(num_attention_heads=[4, "x"]), "num_attention_heads[1] is 'x'"),
    "a list of 100,000 layers": (config(num_attention_heads=[4] * 100_000), "100000 numbers, more than 512"),
    "100,000 kinds of layers": (config(layer_types=["x"] * 100_000), "layer_types is a list of 100000"),
    "a list for text_config": (config(text_config=[1]), "text_config is a list of 1, not an object"),
    "a text for text_config": (config(text_config="x"), "text_config is 'x', not an object"),
    "layers inside text_config": (config(text_config={"n_layer": 10**9}), "text_config.n_layer is 1000000000"),
    "a list for the quantisation": (config(quantization_config=[1]), "quantization_config is a list of 1"),
    "an escape sequence as method": (
        config(quantization_config={"quant_method": "\x1b[31m"}),
        r"quantization_config.quant_method is '\x1b[31m', not a name",
    ),
    "a group that is a list": (
        config(quantization_config={"config_groups": {"a": []}}),
        "quantization_config.config_groups['a'] is a list of 0",
    ),
    "a list for attn_config": (config(attn_config=[1]), "attn_config is a list of 1"),
    "a list for the kind": (config(model_type=["llama"]), "model_type is a list of 1"),
    "a list": ("[1, 2]", "a list of 2, not a JSON object"),
    "a text": ('"config"', "'config', not a JSON object"),
    "null": ("null", "None, not a JSON object"),
    "10,000 brackets": ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
    "500 objects": ('{"a":' * 500 + "1" + "}" * 500, "nested more than 64 levels deep"),
    "5,000 digits": (f'{{"hidden_size": {"9" * 5000}}}', "too many digits"),
    "not JSON": ("{", "not JSON at line 1"),
    "empty": ("", "not JSON at line 1"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_config_is_refused_in_one_line_that_names_file_and_key(case: str, tmp_path: Path) -> None:
    content, says = CONFIGS[case]
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(safetensors(b"{}"))

    said = line(tmp_path)

    assert said.startswith(f"{tmp_path / 'config.json'}: ")
    assert says in said
    assert of_file(tmp_path) is None
    with pytest.raises(LocalError) as error:
        read_weights(tmp_path)
    assert str(error.value) == said


def test_a_number_that_python_alone_can_write_is_no_error_where_nothing_is_built_from_it(tmp_path: Path) -> None:
    """Mamba 2 has `"time_step_limit": [0.0, Infinity]`."""
    (tmp_path / "config.json").write_text(config(time_step_limit=[0.0, float("inf")], sliding_window=None))

    check_weights(tmp_path)

    assert of_file(tmp_path) is not None


def tensor(**changes: Any) -> bytes:
    return safetensors(json.dumps({"w": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} | changes}).encode())


SAFETENSORS = {
    "shorter than its length": (b"\0" * 7, "ends too early"),
    "a length of 2**64 - 1": (safetensors(b"{}", length=2**64 - 1), "length of 18446744073709551615 bytes"),
    "a length beyond the file": (safetensors(b"{}", length=1000), "length of 1000 bytes, and the file has 74"),
    "no JSON": (safetensors(b"{w}"), "not JSON at line 1"),
    "a list": (safetensors(b"[]"), "a list of 0, not a JSON object"),
    "10,000 brackets": (safetensors(b"[" * 10_000), "nested too deeply"),
    "offsets out of the file": (
        tensor(data_offsets=[0, 65]),
        "tensor 'w': data_offsets are not two positions in the 64",
    ),
    "offsets backwards": (tensor(data_offsets=[64, 0]), "tensor 'w': data_offsets"),
    "negative offsets": (tensor(data_offsets=[-1, 63]), "tensor 'w': data_offsets"),
    "a shape that does not fit": (tensor(shape=[17]), "tensor 'w': its shape does not fit its 64 bytes of F32"),
    "a negative shape": (tensor(shape=[-16]), "tensor 'w': shape is not a list of whole numbers"),
    "a shape of 100,000": (tensor(shape=[2**62] * 100_000), "tensor 'w': shape"),
    "a type that is a number": (tensor(dtype=3), "tensor 'w': dtype is 3"),
    "a tensor that is a list": (safetensors(b'{"\\u001b[2J": []}'), r"tensor '\x1b[2J' is a list of 0"),
    "metadata of numbers": (safetensors(b'{"__metadata__": {"a": 1}}'), "__metadata__ is not an object of texts"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_hostile_safetensors_file_is_refused_in_one_line_that_names_the_tensor(case: str, tmp_path: Path) -> None:
    content, says = SAFETENSORS[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")

    said = line(tmp_path)

    assert said.startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert says in said


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/shadow", "a\nb.safetensors", "model.bin", 3, None])
def test_a_list_of_shards_names_files_of_its_own_folder_only(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))

    assert "weight_map['w'] is" in line(tmp_path)
    with pytest.raises(LocalError, match="weight_map"):
        read_weights(tmp_path)


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "config", "shards"])
def test_500_changed_headers_give_an_answer_or_one_line(kind: str, tmp_path: Path) -> None:
    said = [refusal(kind, content, tmp_path) for content in mutations(kind, 20, 500)]

    assert sum(map(bool, said)) > 100
    assert all("\n" not in each and len(each) < 1000 for each in said)


LARGE = {  # a file of some megabytes that asks for much more
    "an array of 16 million values": ("gguf", gguf([("a.b", 9, struct.pack("<IQ", 0, 16 * MIB) + bytes(16 * MIB))])),
    "a million empty texts": ("gguf", gguf([("a.b", 9, struct.pack("<IQ", 8, MIB) + bytes(8 * MIB))])),
    "texts of 1 MiB": ("gguf", gguf([(f"a.{number}", 8, "x" * MIB) for number in range(30)])),
    "four million lists": ("config", b"[" + b"[]," * (4 * MIB // 3)),
    "safetensors of lists": ("safetensors", safetensors(b"[" + b"[]," * 10 * MIB)),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_large_header_takes_little_more_memory_than_its_file(case: str, tmp_path: Path) -> None:
    kind, content = LARGE[case]
    said, peak = with_peak(lambda: refusal(kind, content, tmp_path))

    assert said
    assert peak < len(content) + 200 * MIB


@pytest.mark.parametrize("stack", ["llama_cpp", "transformers", "onnx"])
def test_a_worker_checks_the_header_before_its_library_is_imported(stack: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF["2**31 - 1 layers"][0])

    with pytest.raises(LocalError, match=r"llama\.block_count is 2147483647"):
        backends.load(Launch("m", stack, str(path), slots=1, context=512, threads=1))


def test_an_adapters_header_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "lora.gguf"
    path.write_bytes(GGUF["arrays 900 deep"][0])
    weights = str(TINY / "gguf" / "tiny-f16.gguf")

    with pytest.raises(LocalError, match="array of arrays"):
        backends.load(Launch("m", "llama_cpp", weights, slots=1, context=512, threads=1, lora=(str(path),)))


def test_vllm_gets_no_folder_whose_headers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config(num_hidden_layers=10**9))

    with pytest.raises(LocalError, match="num_hidden_layers is 1000000000"):
        folder_of(Launch("m", "vllm", str(tmp_path), slots=1, context=512, threads=1))


@pytest.mark.parametrize("path", ["gguf/tiny-f16.gguf", "gguf/tiny-q8_0.gguf", "safetensors", "onnx"])
def test_weights_as_they_should_be_pass(path: str) -> None:
    check_weights(TINY / path)


def test_a_whole_tokenizer_inside_a_gguf_is_passed_over(tmp_path: Path) -> None:
    keys = [*model_keys(), ("tokenizer.huggingface.json", 8, "x" * 20 * MIB)]
    (tmp_path / "model.gguf").write_bytes(gguf(keys, ("a",)))

    check_weights(tmp_path / "model.gguf")


def test_a_number_of_bits_may_have_a_fraction(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config(quantization_config={"quant_method": "exl2", "bits": 4.65}))

    check_weights(tmp_path)


def test_a_later_part_of_a_split_model_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(gguf(model_keys()))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(gguf([("split.no", 9, nested(3))]))

    assert line(tmp_path / "m-00001-of-00002.gguf").startswith(f"{tmp_path / 'm-00002-of-00002.gguf'}: split.no")
