"""LoRA adapters in a set: a role names them, their base comes with them, they are pinned, and serve applies them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openai
import pytest
from faulty_hub import FaultyHub
from gguf_files import write_lora
from serving import serving

from tourkit.bundle import verify
from tourkit.bundle.build import build_index
from tourkit.bundle.index import (
    BundleModel,
    BundleVariant,
    parse_index,
    read_index,
    render_index,
    write_index,
)
from tourkit.errors import ManifestError, UsageError
from tourkit.fetch import prefetch
from tourkit.fetch.hub import Hub
from tourkit.manifest import manifest
from tourkit.manifest.models import VariantId
from tourkit.manifest.resolve import resolve

FILES = {"base-Q4_K_M.gguf": b"weights" * 100, "lora-F16.gguf": b"deltas" * 10}


def model(id_: str, file: str, quant: str, *, repo: str = "me/repo", adapts: str = "", form: str = "gguf") -> str:
    """A [models.*] table with one variant of one file."""
    lines = [f"[models.{id_}]", f'repo = "{repo}"', 'license = "mit"', "context = 4096"]
    lines += [f'adapts = "{adapts}"'] if adapts else []
    lines += [f"[[models.{id_}.variants]]", f'format = "{form}"', f'quant = "{quant}"', f'repo = "{repo}"']
    return "\n".join([*lines, 'revision = "main"', f'files = ["{file}"]', ""])


BASE = model("base", "base-Q4_K_M.gguf", "Q4_K_M")
LORA = model("with-lora", "lora-F16.gguf", "LORA-F16", adapts="base")


def written(folder: Path, *tables: str, role: str = "with-lora", top: str = "") -> Path:
    path = folder / "set.toml"
    path.write_text("\n".join(["schema = 1", 'name = "set"', top, "[roles]", f'graph = ["{role}"]', *tables]))
    return path


def test_an_adapter_brings_its_base_along(tmp_path: Path) -> None:
    made = manifest.load(written(tmp_path, BASE, LORA))

    assert list(made.models) == ["with-lora", "base"]
    assert made.models["with-lora"].adapts == "base"
    assert made.roles == {"graph": ("with-lora",)}


def test_the_pages_example_of_an_adapter_is_one(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "manifest.md"
    example = next(text for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL) if "adapts" in text)
    path = tmp_path / "set.toml"
    path.write_text(f'schema = 1\nname = "set"\n{example}')

    assert [model.adapts for model in manifest.load(path).models.values()] == [None, "phi-3-mini-4k-instruct"]


def test_a_base_may_come_from_the_catalogue(tmp_path: Path) -> None:
    lora = model("with-lora", "lora-F16.gguf", "LORA-F16", adapts="phi-3-mini-4k-instruct")

    made = manifest.load(written(tmp_path, lora))

    assert set(made.models) == {"with-lora", "phi-3-mini-4k-instruct"}


def test_filters_by_quant_are_for_the_base_and_leave_the_adapter(tmp_path: Path) -> None:
    made = manifest.load(written(tmp_path, BASE, LORA, top='quants = ["Q4_K_M"]\nformats = ["gguf"]'))

    assert set(made.models) == {"base", "with-lora"}


@pytest.mark.parametrize(
    ("tables", "top", "problem"),
    [
        ([LORA], "", r"models\.with-lora\.adapts: unknown model 'base': "),
        ([BASE, LORA, model("third", "x.gguf", "F16", adapts="with-lora")], "", "no role names this model"),
        ([LORA, model("base", "base.gguf", "Q4", adapts="root"), model("root", "r.gguf", "Q4")], "", "adapter itself"),
        ([BASE, LORA.replace('format = "gguf"', 'format = "safetensors"')], "", "one variant, of format gguf"),
        ([BASE, LORA + LORA[LORA.index("[[") :].replace("F16", "F32")], "", "one variant, of format gguf"),
        ([BASE.replace('"gguf"', '"safetensors"'), LORA], "", r"roles\.graph: .*leave no variant of with-lora"),
        ([BASE, LORA.replace('adapts = "base"', "adapts = 5")], "", r"adapts: 5 is refused"),
    ],
    ids=["unknown base", "no role", "adapter of an adapter", "format", "two variants", "base without gguf", "type"],
)
def test_what_is_no_adapter_is_refused_with_the_key_and_the_fix(
    tmp_path: Path, tables: list[str], top: str, problem: str
) -> None:
    with pytest.raises(ManifestError, match=problem) as refused:
        manifest.load(written(tmp_path, *tables, top=top))

    assert "\n" not in str(refused.value)


@pytest.mark.starts
def test_both_are_locked_fetched_and_told_of_in_the_bundle(tmp_path: Path) -> None:
    with FaultyHub(FILES) as server:
        made = manifest.load(written(tmp_path, *(table.replace("me/repo", server.repo) for table in (BASE, LORA))))
        hub = Hub(server.url)
        pinned = resolve(made, hub).lock
        index = prefetch.prefetch(made, pinned, tmp_path / "bundle", hub, roles=["graph"])

    assert [(variant.model, variant.quant) for variant in pinned.variants] == [
        ("base", "Q4_K_M"),
        ("with-lora", "LORA-F16"),
    ]
    assert {model.id: model.adapts for model in index.models} == {"base": None, "with-lora": "base"}
    assert read_index(tmp_path / "bundle") == index
    assert verify.verify(tmp_path / "bundle").ok


def test_an_index_without_adapters_is_written_as_before(tmp_path: Path) -> None:
    """Bundles from before there were adapters are still valid: this tourkit writes the same bytes."""
    models = [BundleModel("base", "me/repo", "mit", 4096, None, None)]
    written = render_index(build_index(tmp_path, "set", {"graph": ["base"]}, models, []))

    assert "adapts" not in json.loads(written)["models"][0]
    assert parse_index(written, "bundle.json").models == tuple(models)


def adapted_bundle(root: Path, gguf: Path) -> Path:
    """Serve the tiny random model in the role tool, and the same with an adapter in the role graph."""
    for id_, quant in (("tiny-random", "F16"), ("tiny-lora", "LORA-F16")):
        (root / VariantId(id_, quant).folder).mkdir(parents=True)
    (root / VariantId("tiny-random", "F16").folder / "tiny-random.gguf").write_bytes(gguf.read_bytes())
    write_lora(root / VariantId("tiny-lora", "LORA-F16").folder / "a-lora.gguf", gguf)
    models = [
        BundleModel("tiny-random", "tourkit/tiny-random", "apache-2.0", 8192, None, False),
        BundleModel("tiny-lora", "tourkit/tiny-lora", "apache-2.0", 8192, None, False, "tiny-random"),
    ]
    variants = [
        BundleVariant("tiny-random", "F16", "gguf", "tourkit/tiny-random", "main", "1" * 40),
        BundleVariant("tiny-lora", "LORA-F16", "gguf", "tourkit/tiny-lora", "main", "1" * 40),
    ]
    roles = {"tool": ["tiny-random"], "graph": ["tiny-lora"]}
    write_index(root, build_index(root, "tests", roles, models, variants))
    return root


@pytest.mark.starts
def test_a_served_adapter_answers_under_its_own_name_and_the_base_under_its_own(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    root = adapted_bundle(tmp_path / "bundle", tiny_gguf)
    with (
        serving(root, tmp_path / "log", "--offline", "--context", "512") as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        replies = [
            client.completions.with_raw_response.create(model=name, prompt="the name", max_tokens=30, temperature=0)
            for name in ("tool", "graph", "tiny-random", "tiny-lora")
        ]

    texts = [reply.parse().choices[0].text for reply in replies]
    names = [reply.headers["x-tourkit-model"] for reply in replies]
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert names[:2] == ["tiny-random F16 llama_cpp", "tiny-lora F16 llama_cpp"]


def test_a_base_that_is_not_in_the_index_is_refused(tmp_path: Path) -> None:
    models = [BundleModel("with-lora", "me/repo", "mit", 4096, None, None, "base")]
    index = build_index(tmp_path, "set", {"graph": ["with-lora"]}, models, [])

    with pytest.raises(UsageError, match="adapts 'base', which is not among the models"):
        write_index(tmp_path, index)
