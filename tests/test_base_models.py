"""A base model only continues texts. A role that answers chats refuses it, as early as it can be known."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from faulty_hub import COMMIT, FaultyHub, manifest_toml

from tourkit.bundle.index import INDEX
from tourkit.errors import ManifestError
from tourkit.fetch import prefetch
from tourkit.fetch.chat_templates import check_templates
from tourkit.fetch.hub import Hub
from tourkit.headers.chat_template import folder_has_template, gguf_has_template
from tourkit.manifest import manifest
from tourkit.manifest.lock import LockedVariant
from tourkit.manifest.models import CHAT_ROLES, PinnedFile, Source
from tourkit.manifest.resolve import resolve

TEMPLATE = "{{ messages }}"
FIX = "name its chat or instruct version, or give the model a `chat_template`"


def written(folder: Path, *lines: str, role: str = "tool", form: str = "gguf") -> Path:
    """A set with one model of its own, which has these lines more."""
    path = folder / "set.toml"
    model = ["[models.plain]", 'repo = "me/plain"', 'license = "mit"', "context = 4096", *lines]
    variant = ["[[models.plain.variants]]", f'format = "{form}"', 'quant = "Q8_0"', 'repo = "me/plain"']
    head = ["schema = 1", 'name = "set"', "[roles]", f'{role} = ["plain"]']
    path.write_text("\n".join([*head, *model, *variant, 'revision = "main"', 'files = ["*"]']))
    return path


def header(path: Path, template: str = "") -> Path:
    """Write a GGUF without tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    if template:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# --- where the manifest says so -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", CHAT_ROLES)
def test_a_chat_role_refuses_a_model_that_the_manifest_calls_a_base_model(role: str, tmp_path: Path) -> None:
    path = written(tmp_path, "base = true", role=role)

    with pytest.raises(ManifestError) as refused:
        manifest.load(path)

    assert str(refused.value) == f"{path}: roles.{role}[0]: plain is a base model, which answers no chats: {FIX}"


@pytest.mark.parametrize("role", ["embed", "rerank"])
def test_a_role_without_chats_takes_a_base_model(role: str, tmp_path: Path) -> None:
    assert manifest.load(written(tmp_path, "base = true", role=role)).models["plain"].base


def test_a_chat_template_in_the_manifest_makes_a_base_model_answer_chats(tmp_path: Path) -> None:
    assert manifest.load(written(tmp_path, "base = true", f'chat_template = "{TEMPLATE}"')).models["plain"].base


def test_a_lora_adapter_over_a_base_model_needs_a_chat_template_too(tmp_path: Path) -> None:
    path = written(tmp_path, "base = true", role="embed")
    adapter = "\n".join(["[models.lora]", 'adapts = "plain"', 'repo = "me/lora"', 'license = "mit"', "context = 4096"])
    variant = '[[models.lora.variants]]\nformat = "gguf"\nquant = "LORA"\nrepo = "me/lora"\nrevision = "main"\n'
    text = path.read_text().replace('embed = ["plain"]', 'tool = ["lora"]')
    path.write_text(f'{text}\n{adapter}\n{variant}files = ["*"]\n')

    with pytest.raises(ManifestError, match=r"roles\.tool\[0\]: plain is a base model"):
        manifest.load(path)


# --- where the files say so -----------------------------------------------------------------------------------------


def test_the_header_of_a_gguf_says_whether_it_has_a_chat_template(tmp_path: Path) -> None:
    assert gguf_has_template(header(tmp_path / "chat.gguf", TEMPLATE)) is True
    assert gguf_has_template(header(tmp_path / "base.gguf")) is False


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({"tokenizer_config.json": {"chat_template": TEMPLATE}}, True),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": TEMPLATE}}, True),
        ({"tokenizer_config.json": {}, "chat_template.jinja": TEMPLATE}, True),
        ({"tokenizer_config.json": {}}, False),
        ({"tokenizer.json": {}}, None),
    ],
    ids=["in tokenizer_config.json", "in chat_template.json", "in chat_template.jinja", "nowhere", "not known"],
)
def test_the_files_beside_safetensors_say_whether_there_is_a_chat_template(
    files: dict[str, object], has: bool | None, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))

    assert folder_has_template(tmp_path) is has


def locked(root: Path, *names: str, form: str = "gguf") -> LockedVariant:
    files = tuple(
        PinnedFile(f"models/plain/Q8_0/{name}", 1, "0" * 64, Source("me/plain", COMMIT, name)) for name in names
    )
    return LockedVariant("plain", "Q8_0", form, "me/plain", "main", COMMIT, files)


def test_safetensors_without_a_chat_template_are_refused_for_a_chat_role(tmp_path: Path) -> None:
    made = manifest.load(written(tmp_path, form="safetensors"))
    variant = locked(tmp_path, "model.safetensors", "tokenizer_config.json", form="safetensors")
    folder = tmp_path / "models" / "plain" / "Q8_0"
    folder.mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text("{}")

    with pytest.raises(ManifestError) as refused:
        check_templates(made, [variant], tmp_path)

    why = "its files have no chat template, so it is a base model and cannot answer as tool"
    assert str(refused.value) == f"{made.path}: plain Q8_0: {why}: {FIX}"


def test_a_file_that_cannot_be_read_is_left_to_the_worker(tmp_path: Path) -> None:
    (tmp_path / "models" / "plain" / "Q8_0").mkdir(parents=True)
    (tmp_path / "models" / "plain" / "Q8_0" / "plain.gguf").write_bytes(b"GGUF?")

    check_templates(manifest.load(written(tmp_path)), [locked(tmp_path, "plain.gguf")], tmp_path)


@pytest.mark.parametrize(("role", "lines"), [("embed", ()), ("tool", (f'chat_template = "{TEMPLATE}"',))])
def test_weights_without_a_chat_template_are_taken_if_nothing_needs_theirs(
    role: str, lines: tuple[str, ...], tmp_path: Path
) -> None:
    header(tmp_path / "models" / "plain" / "Q8_0" / "plain.gguf")
    made = manifest.load(written(tmp_path, *lines, role=role))

    check_templates(made, [locked(tmp_path, "plain.gguf")], tmp_path)


@pytest.mark.starts
def test_prefetch_refuses_a_base_model_and_writes_no_index(tmp_path: Path) -> None:
    weights = header(tmp_path / "base-Q4_K_M.gguf").read_bytes()
    with FaultyHub({"base-Q4_K_M.gguf": weights}) as server:
        path = tmp_path / "test-set.toml"
        path.write_text(manifest_toml(server.repo, {"tool": "plain"}, {"plain": ["*"]}))
        made, hub = manifest.load(path), Hub(server.url)
        try:
            lock = resolve(made, hub).lock
            with pytest.raises(ManifestError, match="cannot answer as tool: name its chat or instruct version"):
                prefetch.prefetch(made, lock, tmp_path / "bundle", hub)
        finally:
            hub.close()

    assert not (tmp_path / "bundle" / INDEX).exists()
