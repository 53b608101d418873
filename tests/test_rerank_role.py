"""The roles `embed` and `rerank` in sets, in plans and in what `serve` loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from described_index import index
from gguf_files import write_bert

from tourkit.backends import transformers
from tourkit.bundle.index import Index
from tourkit.errors import LocalError, NotSo
from tourkit.hardware.machine import Hardware, InstalledStack
from tourkit.launch import Launch
from tourkit.manifest import manifest
from tourkit.manifest.models import Arch, Model, Variant
from tourkit.planning.model_shape import Shape, of_file, of_model
from tourkit.planning.plan import Plan
from tourkit.planning.planner import plan
from tourkit.planning.weights import read_weights
from tourkit.server.gateway.launch import ServeOptions, Source, placements_on

GIB = 2**30
WRITER = Shape((512,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64)
READER = Shape((0,) * 4, (0,) * 4, 64, 256, 1000, 512, "a test", embeds=True)
ARCH = Arch(n_layers=32, n_heads=16, n_kv_heads=4, head_dim=256, hidden_size=2560, vocab_size=248_320)
SET = {"tool": ("writer",), "embed": ("reader",), "rerank": ("scorer",)}


def model(*roles: str, architecture: str = "qwen3", arch: Arch = ARCH) -> Model:
    variants = (Variant("gguf", "Q4_K_M", "me/m", "main", ("*.gguf",)),)
    return Model(
        *("m", "me/m", "mit", 32_768, None, None, None, arch, "", variants), architecture=architecture, roles=roles
    )


def offered(roles: dict[str, tuple[str, ...]] = SET) -> Index:
    return index(roles, {id_: {"Q8_0": 1} for ids in roles.values() for id_ in ids})


def planned(bundle: Index, *stacks: str) -> Plan:
    machine = Hardware(4, 16 * GIB, stacks=tuple(map(InstalledStack, stacks)))
    shapes = {each.id: WRITER if each.model == "writer" else READER for each in bundle.variants}
    return plan(bundle, machine, shapes=shapes)


# --- in sets and plans ----------------------------------------------------------------------------------------------


def test_a_set_may_name_a_model_for_reranking(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    variant = 'format = "gguf"\nquant = "Q8_0"\nrepo = "me/m"\nrevision = "main"\nfiles = ["*"]\n'
    about = 'repo = "me/m"\nlicense = "mit"\ncontext = 512\nroles = ["rerank"]\n'
    path.write_text(
        f'schema = 1\nname = "set"\n[roles]\nrerank = ["m"]\n[models.m]\n{about}[[models.m.variants]]\n{variant}'
    )

    made = manifest.load(path)

    assert made.roles == {"rerank": ("m",)}
    assert made.models["m"].roles == ("rerank",)


def test_a_plan_has_memory_for_the_reranker() -> None:
    made = planned(offered(), "llama_cpp")

    assert [placement.roles for placement in made.placements] == [("tool",), ("embed",), ("rerank",)]
    assert all(placement.memory[0].total > GIB for placement in made.placements)


@pytest.mark.parametrize("role", ["embed", "rerank"])
def test_without_torch_the_gguf_fills_the_role_and_safetensors_say_what_they_need(role: str) -> None:
    both = index({role: ("reader",)}, {"reader": {"Q8_0": 1, "BF16": 2}})

    without = planned(both, "llama_cpp")

    assert without.placements[0].launch.stack == "llama_cpp"
    assert {each.quant: each.reason for each in without.passed_over} == {
        "BF16": "needs vllm or transformers; not installed; makes embeddings, which needs llama_cpp or transformers"
    }
    assert planned(both, "llama_cpp", "transformers").placements[0].launch.stack == "llama_cpp"


# --- the shape of such models ---------------------------------------------------------------------------------------


def test_the_catalogues_roles_tell_a_reader_from_a_writer() -> None:
    kinds = {roles: of_model(model(*roles)) for roles in [("tool", "fast"), ("embed",), ("rerank",), ()]}

    assert {roles: (shape.embeds, shape.reranks) for roles, shape in kinds.items() if shape is not None} == {
        ("tool", "fast"): (False, False),
        ("embed",): (True, False),
        ("rerank",): (True, True),
        (): (False, False),
    }


def test_an_encoder_of_the_catalogue_has_no_kv_cache() -> None:
    encoder, decoder = of_model(model("rerank", architecture="xlm-roberta")), of_model(model("rerank"))

    assert encoder is not None
    assert decoder is not None
    assert not any(encoder.kv)
    assert all(decoder.kv)


@pytest.mark.parametrize(
    ("pooling", "role"), [(gguf.PoolingType.RANK, "rerank"), (gguf.PoolingType.MEAN, "embed")], ids=["rank", "mean"]
)
def test_a_gguf_file_fills_the_role_that_its_pooling_says(pooling: gguf.PoolingType, role: str, tmp_path: Path) -> None:
    path = write_bert(tmp_path / "m.gguf", pooling=pooling)
    found = of_file(path)

    assert found is not None
    assert found.reranks is (role == "rerank")
    assert list(read_weights(path).index.roles) == [role]


def test_a_gguf_file_with_labels_of_a_classifier_is_a_reranker_even_if_it_states_no_pooling(tmp_path: Path) -> None:
    """As llama.cpp's converter writes bge-reranker-v2-m3."""
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "bert")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_causal_attention(False)
    writer.add_classifier_output_labels(["LABEL_0"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    found = of_file(tmp_path / "m.gguf")

    assert found is not None
    assert (found.embeds, found.reranks, any(found.kv)) == (True, True, False)


# --- serving --------------------------------------------------------------------------------------------------------


def served(roles: dict[str, tuple[str, ...]], *only: str) -> list[tuple[str, ...]]:
    """Return the roles of the models that `serve` loads."""
    bundle = offered(roles)
    shapes = {each.id: WRITER if each.model == "writer" else READER for each in bundle.variants}
    machine = Hardware(4, 16 * GIB, stacks=(InstalledStack("llama_cpp"),))
    source = Source(bundle, shapes, Path, "the bundle")
    made = placements_on(source, ServeOptions(roles=only), machine, lambda line: None)
    return [placement.roles for placement in made]


def test_serve_serves_the_reranker_beside_the_other_roles() -> None:
    assert served(SET) == [("tool",), ("embed",), ("rerank",)]


def test_serve_takes_a_reranker_alone() -> None:
    assert served({"rerank": ("scorer",)}) == [("rerank",)]
    assert served(SET, "rerank") == [("rerank",)]


def test_a_model_that_writes_text_may_fill_the_role_besides_its_others() -> None:
    assert served({"tool": ("writer",), "rerank": ("writer",)}) == [("tool", "rerank")]


def test_safetensors_of_a_reranker_with_an_unknown_prompt_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}'
    )
    (tmp_path / "model.safetensors").write_bytes(b"{}".rjust(10, b"\0"))

    with pytest.raises(LocalError, match="a reranker of the type qwen3, whose prompt is not known here"):
        transformers.load(Launch("m", "transformers", str(tmp_path), 1, 512, 1))


def test_other_stacks_do_not_load_a_reranker() -> None:
    """vLLM and ONNX Runtime GenAI generate text only."""
    shape = replace(READER, reranks=True)
    scorer = index({"rerank": ("scorer",)}, {"scorer": {"BF16": 1}})
    machine = Hardware(4, 16 * GIB, stacks=(InstalledStack("vllm"), InstalledStack("onnx")))

    with pytest.raises(NotSo, match="gives scores, which needs llama_cpp or transformers"):
        plan(scorer, machine, shapes=dict.fromkeys((each.id for each in scorer.variants), shape))
