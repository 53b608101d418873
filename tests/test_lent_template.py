"""Weights without a chat template get the template of the manifest, through bundle, plan and worker."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from gguf_files import rewrite
from serving import make_bundle, serving

from tourkit.bundle.index import read_index, write_index
from tourkit.manifest import manifest, models

TEMPLATE = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}### assistant:"
MESSAGES = [{"role": "user", "content": "the name and the date"}]
WRITTEN = "### user: the name and the date\n### assistant:"


@pytest.fixture(scope="module")
def bare(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its chat template."""
    return rewrite(tiny_gguf, tmp_path_factory.mktemp("bare") / "bare.gguf", without="tokenizer.chat_template")


@pytest.fixture(scope="module")
def client(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of `tourkit serve` on a bundle whose index has a template for the model."""
    folder = tmp_path_factory.mktemp("lent")
    root = make_bundle(folder / "bundle", bare)
    index = read_index(root)
    models = tuple(dataclasses.replace(model, chat_template=TEMPLATE) for model in index.models)
    write_index(root, dataclasses.replace(index, models=models))
    with (
        serving(root, folder / "log", "--offline", "--context", "512") as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


def test_a_chat_is_written_by_the_template_of_the_bundle(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="tool", messages=MESSAGES, max_tokens=8, temperature=0)
    plain = client.completions.create(model="tool", prompt=WRITTEN, max_tokens=8, temperature=0)

    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.starts
def test_without_one_chats_are_refused_with_the_mend(bare: Path, tmp_path: Path) -> None:
    root = make_bundle(tmp_path / "bundle", bare)
    with (
        serving(root, tmp_path / "log", "--offline", "--context", "512") as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match="chat_template in the manifest"),
    ):
        client.chat.completions.create(model="tool", messages=MESSAGES)


@pytest.mark.starts
def test_the_template_a_model_carries_comes_first(tiny_gguf: Path, tmp_path: Path) -> None:
    from tourkit.backends.llama_cpp import load
    from tourkit.generation import Request, SamplingParams
    from tourkit.launch import Launch

    counts = []
    for template in ("", TEMPLATE):
        spec = Launch("tiny", "llama_cpp", str(tiny_gguf), 1, 256, 1, chat_template=template)
        engine = load(spec)
        request = Request(messages=tuple(MESSAGES), params=SamplingParams(max_tokens=1))
        counts.append(engine.submit(request, lambda delta: None).n_prompt)
        engine.close()

    assert counts[0] == counts[1]


@pytest.mark.parametrize("template", ["", "{{ raise_exception('a system message first') }}"])
@pytest.mark.starts
def test_a_plain_prompt_is_held_to_a_schema_where_no_template_takes_a_question(bare: Path, template: str) -> None:
    from tourkit.backends.llama_cpp import load
    from tourkit.generation import Constraint, Delta, Request
    from tourkit.launch import Launch

    engine = load(Launch("tiny", "llama_cpp", str(bare), 1, 256, 1, chat_template=template))
    ended: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    engine.submit(
        Request(prompt="The name:", constraint=Constraint.json_schema({"const": ["a", 1]}), whole=True), ended.put
    )
    text = ended.get(timeout=60).text
    engine.close()

    assert text == '["a",1]'


@pytest.mark.starts
def test_a_template_that_begins_the_thinking_makes_a_model_think_before_its_schema(bare: Path) -> None:
    from tourkit.backends.llama_cpp import load
    from tourkit.generation import Constraint, Delta, Request, SamplingParams, Thinking
    from tourkit.launch import Launch

    thinks = TEMPLATE + "<think>\n{# </think> #}"
    engine = load(Launch("tiny", "llama_cpp", str(bare), 2, 256, 1, chat_template=thinks))
    ended: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    schema = Constraint.json_schema({"const": ["a", 1]})
    params, thinking = SamplingParams(seed=1), Thinking(budget=6)
    asked = Request(messages=tuple(MESSAGES), params=params, n=2, constraint=schema, whole=True, thinking=thinking)
    engine.submit(asked, ended.put)
    answers = [ended.get(timeout=60) for _ in range(2)]
    engine.close()

    assert {answer.text for answer in answers} == {'["a",1]'}
    assert all(0 < answer.n_reasoning <= 6 and answer.reasoning for answer in answers)


def test_a_manifest_gives_a_model_its_template(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'schema = 1\nname = "mine"\n[roles]\ntool = ["m"]\n[models.m]\nrepo = "me/m"\nlicense = "mit"\ncontext = 512\n'
        f"chat_template = '''{TEMPLATE}'''\n"
        '[[models.m.variants]]\nformat = "gguf"\nquant = "F16"\nrepo = "me/m"\nrevision = "main"\nfiles = ["m.gguf"]\n'
    )

    assert manifest.load(path).models["m"].chat_template == TEMPLATE


@pytest.mark.parametrize("model", [m for m in manifest.catalogue().values() if m.chat_template], ids=lambda m: m.id)
def test_every_template_of_the_catalogue_writes_a_question(model: models.Model) -> None:
    from tourkit.backends.chat_template import ChatTemplate

    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}] * 2
    source = ChatTemplate(model.chat_template or "", {"bos_token": "<s>", "eos_token": "</s>"})

    assert "QUESTION" in source.render(turns[:1])
    assert source.render(turns[:3]).count("QUESTION") == 2
    assert "ANSWER" in source.render(turns[:3])
    assert "BEFORE" in source.render([{"role": "system", "content": "BEFORE"}, *turns[:1]])
