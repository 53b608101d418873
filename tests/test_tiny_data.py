"""The tiny model's data: training never draws held-out parts, and the answers match the text."""

import json
from random import Random

import jsonschema
import pytest

from tools.tiny import arithmetic, documents, fields, graphs, names, prompts, schemas, tasks
from tools.tiny.documents import Split
from tools.tiny.names import HELD, TRAIN

TRAINED = [tasks.sample(1, index) for index in range(1200)]
SPLITS = {
    "names": Split(names=HELD),
    "lines": Split(names=HELD, lines=HELD),
    "schemas": Split(names=HELD, schemas=HELD),
    "keys": Split(names=HELD, keys=HELD),
}


def held_out(split: Split, count: int = 150) -> list[tasks.Sample]:
    rng = Random("test")
    return [tasks.json_sample(rng, split, lang=tasks.pick_lang(rng)) for _ in range(count)]


def asked(sample: tasks.Sample) -> set[tuple[str, tuple[str, ...]]]:
    """Return the kinds and keys of every schema of a sample."""
    if "keys" in sample.about:
        return {(sample.about["kind"], tuple(sample.about["keys"]))}
    return set(sample.about.get("schemas", ()))


def test_the_same_seed_gives_the_same_samples() -> None:
    again = [tasks.sample(1, index) for index in range(200)]
    assert [sample.messages for sample in again] == [sample.messages for sample in TRAINED[:200]]
    assert [tasks.sample(2, index).messages for index in range(20)] != [sample.messages for sample in TRAINED[:20]]


def test_a_held_out_name_is_never_drawn_for_training() -> None:
    trained = {name for sample in TRAINED for name in sample.about["names"]}
    held = {name for sample in held_out(SPLITS["names"]) for name in sample.about["names"]}
    assert trained
    assert held
    assert not trained & held
    assert all(names.in_split(name, TRAIN) for name in trained)
    assert all(names.in_split(name, HELD) for name in held)


def test_a_held_out_sentence_is_never_used_in_training() -> None:
    trained = {line for sample in TRAINED for line in sample.about["lines"]}
    held = {line for sample in held_out(SPLITS["lines"]) for line in sample.about["lines"]}
    assert trained
    assert held
    assert not trained & held


def test_a_held_out_schema_is_never_asked_in_training() -> None:
    def identities(samples: list[tasks.Sample]) -> set[str]:
        return {schemas.schema_id(kind, list(keys)) for sample in samples for kind, keys in asked(sample)}

    trained, held = identities(TRAINED), identities(held_out(SPLITS["schemas"]))
    assert trained
    assert held
    assert not trained & held
    assert all(schemas.schema_split(identity) == TRAIN for identity in trained)
    assert all(schemas.schema_split(identity) == HELD for identity in held)


def test_a_held_out_key_is_never_used_in_training() -> None:
    trained = {key for sample in TRAINED for _, keys in asked(sample) for key in keys}
    held = {key for sample in held_out(SPLITS["keys"]) for key in sample.about["keys"]}
    assert held
    assert not trained & held


def test_no_key_is_both_in_training_and_held_out() -> None:
    for kind, parts in fields.KINDS.items():
        kept = {key for field in parts for key in field.keys}
        away = {key for field in parts for key in field.held_keys}
        assert away
        assert not kept & away, kind


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_every_group_of_sentences_has_some_of_both_splits(lang: str) -> None:
    module = documents.LANGUAGES[lang]
    groups = [group for kind in module.LINES.values() for group in kind.values()]
    groups += [module.DISTRACTORS, *graphs.LINES[lang].values(), *arithmetic._ONE[lang].values()]
    for lines in groups:
        assert documents.variants(lines, TRAIN)
        assert documents.variants(lines, HELD), lines


@pytest.mark.parametrize("lang", ["en", "ru"])
@pytest.mark.parametrize("kind", sorted(fields.KINDS))
def test_every_field_can_be_said(kind: str, lang: str) -> None:
    """A field has its own sentences, or it is in every opening sentence."""
    groups = documents.LANGUAGES[lang].LINES[kind]
    for field in fields.KINDS[kind]:
        if field.type.startswith("enum:"):
            assert all(f"{field.name}={value}" in groups for value in field.type[5:].split(","))
        elif field.type == "bool":
            assert f"{field.name}=true" in groups
        elif field.name not in groups:
            assert all(f"{{{field.name}}}" in line for line in groups["opening"]), field.name


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_answers_follow_their_schemas_in_its_order(name: str) -> None:
    for sample in held_out(SPLITS[name], 80):
        assert sample.schema is not None
        jsonschema.Draft202012Validator.check_schema(sample.schema)
        jsonschema.validate(sample.gold, sample.schema)
        assert list(sample.gold) == list(sample.schema["properties"])


def test_training_answers_are_json_as_the_engine_writes_it() -> None:
    for sample in TRAINED:
        answers = [m["content"] for m in sample.messages if m["role"] == "assistant"]
        assert answers
        assert all(tasks.dumps(json.loads(answer)) == answer for answer in answers)


def test_every_sentence_named_as_evidence_holds_the_value() -> None:
    for sample in [s for s in TRAINED if s.task == "json"]:
        doc = sample.about["document"]
        for name, place in doc.evidence.items():
            value = doc.facts[name]
            if isinstance(value, str) and name in {f.name for f in fields.KINDS[doc.kind] if f.type in names._MAKERS}:
                assert value in doc.sentences[place]
            assert doc.sentences[place] in doc.text


def test_what_no_sentence_says_is_null_or_an_empty_list() -> None:
    for sample in [s for s in TRAINED if s.task == "json"]:
        doc = sample.about["document"]
        assert all(doc.facts[name] in (None, []) for name in doc.facts if name not in doc.evidence)


def test_the_nodes_and_edges_of_a_graph_stand_in_its_text() -> None:
    for sample in [s for s in TRAINED if s.task == "graph"]:
        names = {node["name"] for node in sample.gold["nodes"]}
        assert all(name in sample.about["text"] for name in names)
        assert all({edge["from"], edge["to"]} <= names for edge in sample.gold["edges"])


def test_the_answer_about_relations_follows_its_schema_in_its_order_and_says_every_edge() -> None:
    template = prompts.template("graph_extraction")
    for sample in [s for s in TRAINED if s.task == "graph"]:
        answer = json.loads(sample.messages[-1]["content"])
        jsonschema.validate(answer, sample.schema)
        assert template.edges_of(answer) == [
            {"from": edge["from"], "to": edge["to"], "label": edge["label"]} for edge in sample.gold["edges"]
        ]
        assert sample.schema is not None
        order = list(sample.schema["properties"])
        assert list(answer) == sorted(answer, key=order.index)


def test_a_cited_sentence_is_one_of_the_document() -> None:
    for sample in [s for s in TRAINED if s.task == "cite"]:
        numbered = sample.messages[1]["content"].split("\n")
        source = sample.gold["source"]
        assert (source is None) == (sample.gold["answer"] is None)
        assert source is None or numbered[source - 1].startswith(f"[{source}] ")


def test_the_reasoning_of_a_problem_comes_to_its_answer() -> None:
    for index in range(300):
        task = arithmetic.problem(Random(index), "en" if index % 2 else "ru", TRAIN)
        for step in task.reasoning.removesuffix(".").split(". "):
            left, right = step.split(" = ")
            a, sign, b = left.split()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(right)
        assert task.reasoning.endswith(f"= {task.answer}.")
        assert 0 <= task.answer <= 81 + 12


def test_broken_json_is_repaired_by_its_answer() -> None:
    repairs = [sample for sample in TRAINED if sample.task == "repair"]
    spoilt = 0
    for sample in repairs:
        try:
            spoilt += json.loads(sample.messages[1]["content"]) != sample.gold
        except json.JSONDecodeError:
            spoilt += 1
    assert spoilt > len(repairs) / 2


def test_prompts_are_those_of_the_shipped_templates() -> None:
    template = prompts.template("json_extraction")
    sample = held_out(SPLITS["names"], 1)[0]
    system = template.SYSTEM.replace("{schema}", json.dumps(sample.schema, ensure_ascii=False))
    assert sample.messages[0]["content"] == system
    assert sample.messages[1]["content"] == template.USER.replace("{text}", sample.about["text"])


def test_the_prompt_text_is_what_the_chat_template_renders() -> None:
    from tourkit.backends.chat_template import ChatTemplate

    messages = TRAINED[0].messages
    assert ChatTemplate(prompts.CHAT_TEMPLATE, {}).render(messages) == prompts.render(messages)
    text = "".join(piece for piece, _ in tasks.pieces(messages))
    assert text + "<|start|>assistant\n" == prompts.render(messages)
