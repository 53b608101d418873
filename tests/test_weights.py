"""What tourkit reads of weights that are in no bundle: their name, quant, roles and files; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import rewrite, write_bert

from tourkit.errors import LocalError, UsageError
from tourkit.planning.weights import FILE_TYPES, named, quant_of_config, read_weights

TINY = Path(__file__).parent.parent / "weights" / "tiny"


@pytest.mark.parametrize(
    ("file_name", "model", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct", "Q4_1"),
        ("tiny-f16.gguf", "tiny", "F16"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M-00001-of-00002.gguf", "meta-llama-3.1-8b-instruct", "Q4_K_M"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "phi-3-mini-4k-instruct", "Q4"),
        ("gemma-2-9b-it-IQ3_XXS.gguf", "gemma-2-9b-it", "IQ3_XXS"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "qwen3-8b", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b", "MXFP4"),
        ("llama_q8_0.GGUF", "llama", "Q8_0"),
        ("my model (new).gguf", "my-model-new", None),
        ("model.gguf", "model", None),
        ("Q4_K_M.gguf", "q4_k_m", None),
        ("модель.gguf", "model", None),
    ],
)
def test_the_name_of_a_file_gives_the_model_id_and_the_quant(file_name: str, model: str, quant: str | None) -> None:
    assert named(file_name) == (model, quant)


def test_the_numbers_of_file_types_are_those_of_the_gguf_library() -> None:
    theirs = {each.value: each.name.removeprefix("MOSTLY_").removeprefix("ALL_") for each in gguf.LlamaFileType}
    shared = FILE_TYPES.keys() & theirs.keys()

    assert len(shared) > 30
    assert {number: FILE_TYPES[number] for number in shared} == {number: theirs[number] for number in shared}


@pytest.mark.parametrize(
    ("config", "quant"),
    [
        ({"dtype": "bfloat16"}, "BF16"),
        ({"torch_dtype": "float16"}, "F16"),
        ({"text_config": {"dtype": "bfloat16"}}, "BF16"),
        ({}, "F32"),
        ({"dtype": "int3"}, "unknown"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ-INT4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "GPTQ-INT8"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bnb-4bit"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                }
            },
            "W4A16",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
                }
            },
            "FP8",
        ),
    ],
)
def test_config_json_gives_the_quant_of_a_folder(config: dict[str, Any], quant: str) -> None:
    assert quant_of_config(config) == quant


def test_a_model_that_writes_text_fills_four_roles_with_the_shape_of_its_header(tiny_gguf: Path) -> None:
    found = read_weights(tiny_gguf)

    assert found.path == tiny_gguf.resolve()
    assert found.index.roles == dict.fromkeys(("brain", "fast", "tool", "graph"), ("tiny-random",))
    [model] = found.index.models
    assert (model.id, model.context) == ("tiny-random", 8192)
    assert sum(file.size for file in found.index.files) == tiny_gguf.stat().st_size
    [shape] = found.shapes.values()
    assert shape.source == "the GGUF header"


def test_a_model_that_makes_embeddings_fills_embed_only(tmp_path: Path) -> None:
    found = read_weights(write_bert(tmp_path / "bert.gguf"))

    assert list(found.index.roles) == ["embed"]


def test_the_header_gives_the_quant_when_the_name_does_not(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "named.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q5_K_M)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert read_weights(path).index.variants[0].quant == "Q5_K_M"
    assert read_weights(tiny_gguf).index.variants[0].quant == "unknown"


def test_all_parts_of_a_split_model_count(tiny_gguf: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_gguf, tmp_path / "split-Q8_0.gguf", parts=3)

    found = read_weights(first)

    assert found.path == first
    assert found.index.models[0].id == "split"
    assert sum(file.size for file in found.index.files) == sum(each.stat().st_size for each in tmp_path.iterdir())


def test_a_link_is_followed_and_gives_the_name(tiny_gguf: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_gguf, tmp_path / "split.gguf", parts=2)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "My-Model-Q4_0.gguf"
    link.symlink_to(first)

    found = read_weights(link)

    assert found.path == first
    assert (found.index.models[0].id, found.index.variants[0].quant) == ("my-model", "Q4_0")
    assert len(found.index.files) == 2


def test_links_of_the_hubs_cache_are_opened_by_their_own_names(tiny_gguf: Path, tmp_path: Path) -> None:
    """Their targets are named by hashes, so the stack would not find the other parts beside them."""
    first = rewrite(tiny_gguf, tmp_path / "split.gguf", parts=2)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, part in enumerate(sorted(tmp_path.glob("split-*"))):
        (snapshot / part.name).symlink_to(part.rename(tmp_path / (str(number) * 64)))

    found = read_weights(snapshot / first.name)

    assert found.path == snapshot / first.name
    assert len(found.index.files) == 2


def test_a_folder_of_safetensors_is_named_like_itself_or_like_its_repository_in_the_hubs_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--My-Model" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    for file in (TINY / "safetensors").iterdir():
        (snapshot / file.name).symlink_to(file)

    plain, cached = read_weights(TINY / "safetensors"), read_weights(snapshot)

    assert plain.path == TINY / "safetensors"
    assert plain.index.models[0].id == "safetensors"
    assert plain.index.variants[0].quant == "F16"
    assert plain.index.files[0].size == (TINY / "safetensors" / "model.safetensors").stat().st_size
    assert cached.index.models[0].id == "my-model"
    assert cached.shapes[next(iter(cached.shapes))].source == "config.json"


def folder(root: Path, *names: str, config: str = "{}") -> Path:
    root.mkdir()
    for name in names:
        (root / name).write_text(config if name == "config.json" else "")
    return root


def wrong_paths(tmp_path: Path, tiny: Path) -> dict[str, tuple[Path, str]]:
    """By case: a path, and what the message says besides the path."""
    text, cut, part = tmp_path / "text.gguf", tmp_path / "cut.gguf", tmp_path / "m-00002-of-00002.gguf"
    text.write_text("hello")
    cut.write_bytes(tiny.read_bytes()[:100])
    part.write_bytes(tiny.read_bytes())
    alone = tmp_path / "n-00001-of-00002.gguf"
    alone.write_bytes(tiny.read_bytes())
    adapter = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(str(adapter), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    sharded = folder(tmp_path / "sharded", "config.json")
    listing = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(listing))
    return {
        "missing": (tmp_path / "none.gguf", "no such file"),
        "no GGUF": (text, "not a GGUF file"),
        "cut in the header": (cut, "ends too early"),
        "later part": (part, "part 2 of 2: give the first part"),
        "part missing": (alone, "n-00002-of-00002.gguf: no such file"),
        "adapter": (adapter, "type 'adapter'"),
        "file of safetensors": (TINY / "safetensors" / "model.safetensors", "give its folder"),
        "bundle": (folder(tmp_path / "bundle", "bundle.json"), "--bundle"),
        "no config": (folder(tmp_path / "bare", "model.safetensors"), "no config.json"),
        "odd config": (folder(tmp_path / "odd", "config.json", "a.safetensors", config="[]"), "cannot be read"),
        "pickles": (folder(tmp_path / "pickles", "config.json", "pytorch_model.bin"), "a pickle"),
        "folder of GGUF": (folder(tmp_path / "ggufs", "config.json", "a.gguf"), "give one of them"),
        "nothing": (folder(tmp_path / "nothing"), "no .safetensors files"),
        "shard missing": (sharded, "model-00001-of-00001.safetensors: no such file"),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("missing", "no GGUF", "cut in the header", "later part", "part missing", "adapter", "file of safetensors"),
        *("bundle", "no config", "odd config", "pickles", "folder of GGUF", "nothing", "shard missing"),
    ],
)
def test_what_is_not_a_model_is_refused_in_one_line_with_the_fix(case: str, tiny_gguf: Path, tmp_path: Path) -> None:
    path, says = wrong_paths(tmp_path, tiny_gguf)[case]

    with pytest.raises((UsageError, LocalError)) as error:
        read_weights(path)

    assert says in str(error.value)
    assert "\n" not in str(error.value)
    damaged = case in ("cut in the header", "odd config")
    assert error.value.exit_code == (4 if damaged else 2)
