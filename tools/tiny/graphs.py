# ruff: noqa: E501
"""Texts that state relations, with entities and edges in the order of the text."""

from dataclasses import dataclass
from random import Random

from tools.tiny.documents import LANGUAGES, Split, Values, choose, fill, slots, variants

# label → (type of a, type of b); slot {a} is `from`, {b} is `to`
TYPES = {
    "leads": ("person", "organization"), "works_for": ("person", "organization"), "founded": ("person", "organization"),
    "owns": ("organization", "organization"), "located_in": ("organization", "place"),
    "partner_of": ("organization", "organization"), "supplies": ("organization", "organization"),
    "funds": ("organization", "organization"), "produces": ("organization", "product"),
    "takes_part_in": ("organization", "event"), "part_of": ("organization", "organization"),
}  # fmt: skip
MAKERS = {"person": "person", "organization": "org", "place": "city", "product": "product", "event": "title"}

LINES: dict[str, dict[str, list[str]]] = {
    "en": {
        "leads": ["{a} [heads|leads|runs] {b}.", "{b} is [led|headed] by {a}.", "The head of {b} is {a}.", "!At the top of {b} stands {a}."],
        "works_for": ["{a} works for {b}.", "{a} is [an engineer|a clerk|an analyst] at {b}.", "{b} employs {a}.", "!{a} earns a living at {b}."],
        "founded": ["{a} founded {b}.", "{b} was founded by {a}.", "The founder of {b} is {a}.", "!{b} was started by {a}."],
        "owns": ["{a} [owns|bought] {b}.", "{b} [belongs to|was bought by] {a}.", "The owner of {b} is {a}.", "!{b} is now the property of {a}."],
        "located_in": ["{a} is [based|located] in {b}.", "{a} has its seat in {b}.", "{a} [opened|built] a plant in {b}.", "!You find {a} in {b}."],
        "partner_of": ["{a} and {b} [work together|signed an agreement].", "{a} is a partner of {b}.", "{a} has joined forces with {b}.", "!Hand in hand, {a} and {b} share a project."],
        "supplies": ["{a} supplies {b}.", "{a} [delivers parts to|will supply] {b}.", "{b} gets its [parts|goods] from {a}.", "!{a} sends its lorries to {b}."],
        "funds": ["{a} funds {b}.", "{a} [pays for|gives money to] {b}.", "{b} is funded by {a}.", "!{b} lives on money from {a}."],
        "produces": ["{a} [makes|produces] the {b}.", "The {b} is made by {a}.", "The {b} comes from {a}.", "!Out of the works of {a} rolls the {b}."],
        "takes_part_in": ["{a} takes part in {b}.", "{a} [will be at|comes to] {b}.", "At {b} you can meet {a}.", "!A stand of {a} is booked at {b}."],
        "part_of": ["{a} is [a part|a branch] of {b}.", "{b} includes {a}.", "{a} belongs to the {b} group.", "!{a} is one limb of {b}."],
    },
    "ru": {
        "leads": ["{a} [возглавляет|ведёт] компанию {b}.", "Во главе {b} стоит {a}.", "Директор {b} — {a}.", "!У руля {b} находится {a}."],
        "works_for": ["{a} работает в компании {b}.", "{a} — [инженер|аналитик] компании {b}.", "В {b} работает {a}.", "!{a} служит в компании {b}."],
        "founded": ["Компанию {b} [основал|создал] {a}.", "{a} — основатель {b}.", "Основатель {b} — {a}.", "!Дело {b} начал {a}."],
        "owns": ["{a} [владеет компанией|покупает] {b}.", "Владелец {b} — {a}.", "{b} принадлежит компании {a}.", "!Хозяин {b} теперь {a}."],
        "located_in": ["{a} [находится|работает] в городе {b}.", "Офис {a} — город {b}.", "{a} [открывает|строит] завод в городе {b}.", "!Искать {a} надо в городе {b}."],
        "partner_of": ["{a} и {b} [работают вместе|подписали договор].", "{a} — партнёр {b}.", "{a} сотрудничает с компанией {b}.", "!Рука об руку идут {a} и {b}."],
        "supplies": ["{a} [поставляет товар|возит детали] в компанию {b}.", "Поставщик {b} — {a}.", "{b} получает [товар|детали] от компании {a}.", "!Грузовики {a} едут в {b}."],
        "funds": ["{a} [платит за|финансирует] {b}.", "Деньги для {b} даёт {a}.", "{b} получает деньги от {a}.", "!Живёт {b} на средства {a}."],
        "produces": ["{a} [делает|выпускает] изделие {b}.", "{b} — продукт компании {a}.", "Изделие {b} делает {a}.", "!Из цехов {a} выходит {b}."],
        "takes_part_in": ["{a} участвует: «{b}».", "{a} [едет|придёт] на «{b}».", "На «{b}» будет {a}.", "!Для {a} готов стенд на «{b}»."],
        "part_of": ["{a} — [часть|филиал] {b}.", "{b} включает {a}.", "{a} входит в группу {b}.", "!{a} — одно из звеньев {b}."],
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GraphText:
    lang: str
    text: str
    nodes: tuple[dict[str, str], ...]
    edges: tuple[dict[str, str], ...]
    lines: frozenset[str]
    names: frozenset[str]


def graph_text(rng: Random, lang: str, split: Split) -> GraphText:
    """Make a text with two to four relations that share entities, and distractors.

    A pair of entities has one relation at most. The edges are in the order of the nodes: sources first, then targets.
    """
    draw = Values(rng, lang, split.names)
    known: list[tuple[str, str]] = []  # name, type
    edges: list[dict[str, str]] = []
    sentences: list[str] = []
    used: set[str] = set()
    for label in rng.sample(list(TYPES), rng.choice([2, 3, 3, 4])):
        ends: dict[str, tuple[str, str]] = {}
        for slot, kind in zip("ab", TYPES[label], strict=True):
            old = [entity for entity in known if entity[1] == kind and entity not in ends.values()]
            reuse = old and rng.random() < (0.75 if kind == "organization" else 0.25)
            ends[slot] = rng.choice(old) if reuse else (draw.name(MAKERS[kind]), kind)
        if any((edge["from"], edge["to"]) == (ends["a"][0], ends["b"][0]) for edge in edges):
            continue
        line = rng.choice(variants(LINES[lang][label], split.lines))
        used.add(line)
        pattern = choose(line, rng)
        sentences.append(fill(pattern, {slot: (name, name) for slot, (name, _) in ends.items()}))
        known += [ends[slot] for slot in slots(pattern) if ends[slot] not in known]
        edges.append({"from": ends["a"][0], "label": label, "to": ends["b"][0]})
    if rng.random() < 0.4:
        plain = [line for line in variants(LANGUAGES[lang].DISTRACTORS, split.lines)
                 if not {"person", "org", "city", "venue"} & set(slots(line))]  # fmt: skip
        line = rng.choice(plain)
        used.add(line)
        pattern = choose(line, rng)
        sentences.insert(rng.randint(1, len(sentences)), fill(pattern, {s: draw.of(s) for s in slots(pattern)}))
    nodes = tuple({"name": name, "type": kind} for name, kind in known)
    order = [name for name, _ in known]
    edges.sort(key=lambda edge: (order.index(edge["from"]), order.index(edge["to"])))
    return GraphText(lang, " ".join(sentences), nodes, tuple(edges), frozenset(used), frozenset(draw.names))
