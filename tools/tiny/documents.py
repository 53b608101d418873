"""Documents made of fields and sentences, with their facts and the sentence that states each fact."""

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.tiny import lines_en, lines_ru, names, values
from tools.tiny.fields import JOBS, KINDS, Field
from tools.tiny.names import HELD, TRAIN

LANGUAGES = {"en": lines_en, "ru": lines_ru}
MENTION = 0.75  # probability that an optional field is mentioned
FORM = 0.18  # share of documents that are filled-in forms
TYPOS = 0.1  # share of documents with typing errors


@dataclass(frozen=True, slots=True)
class Split:
    """The split of each part of a sample, `train` or `held`. `blur`: share of sentences with one word changed."""

    names: str = TRAIN
    lines: str = TRAIN
    schemas: str = TRAIN
    keys: str = TRAIN
    blur: float = 0.0


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `facts`: field → answer, None if the text does not say. `evidence`: field → sentence index."""

    kind: str
    lang: str
    sentences: tuple[str, ...]
    facts: dict[str, Any]
    evidence: dict[str, int]
    lines: frozenset[str]
    names: frozenset[str]
    joiner: str

    @property
    def text(self) -> str:
        return self.joiner.join(self.sentences)


def choose(line: str, rng: Random) -> str:
    """Choose one part of every `[a|b]` in a line."""
    return re.sub(r"\[([^]]*)\]", lambda match: rng.choice(match[1].split("|")), line)


def variants(lines: list[str], split: str) -> list[str]:
    """Return the lines of one split. Lines with a leading `!` are held out."""
    return [line.removeprefix("!") for line in lines if line.startswith("!") == (split == HELD)]


class Values:
    """Draw the values of one document, and remember the drawn names."""

    def __init__(self, rng: Random, lang: str, split: str) -> None:
        self.rng, self.lang, self.split = rng, lang, split
        self.names: set[str] = set()

    def name(self, kind: str) -> str:
        drawn = names.draw(kind, self.rng, self.lang, self.split)
        self.names.add(drawn)
        return drawn

    def of(self, kind: str) -> tuple[str, Any]:
        """Draw a value of a kind. Return its text in the document and its value in the answer."""
        rng = self.rng
        if kind == "date":
            day = values.a_date(rng)
            return values.date_text(day, rng, self.lang), day.isoformat()
        if kind == "time":
            clock = values.a_time(rng)
            return clock, clock
        if kind == "money":
            amount, currency = values.amount(rng), rng.choice(list(values.CURRENCIES[self.lang]))
            return values.money_text(amount, currency, rng, self.lang), {"amount": amount, "currency": currency}
        if kind == "int":
            number = rng.choice([rng.randint(2, 20), rng.randint(20, 999), rng.randint(2, 99) * 10])
            return str(number), number
        if kind == "year":
            return (year := str(rng.randint(1880, 2024))), int(year)
        if kind == "decimal":
            number = f"{rng.randint(1, 60)}.{rng.randint(1, 9)}"
            return (number if self.lang == "en" else number.replace(".", ",")), float(number)
        if kind == "job":
            return (job := rng.choice(JOBS[self.lang])), job
        if kind.startswith("list:"):
            items = [self.name(kind[5:]) for _ in range(rng.choice([1, 2, 2, 3]))]
            last = LANGUAGES[self.lang].AND
            return (last.join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]), items
        return (name := self.name(kind)), name


def fill(line: str, have: dict[str, tuple[str, Any]]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: have[match[1]][0], line)


def slots(line: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", line)


def document(rng: Random, kind: str, lang: str, split: Split, most: int = 0) -> Document:
    """Make one document, or only `most` of its sentences. The same `rng` state gives the same document."""
    draw = Values(rng, lang, split.names)
    parts = {field.name: field for field in KINDS[kind]}
    have: dict[str, tuple[str, Any]] = {}
    facts: dict[str, Any] = {}
    for name, field in parts.items():
        if field.type.startswith("enum:"):
            facts[name] = rng.choice(field.type[5:].split(","))
        elif field.type == "bool":
            facts[name] = rng.random() < 0.5
        else:
            have[name] = draw.of(field.type)
            facts[name] = have[name][1]
    typos = rng.random() < TYPOS
    form = rng.random() < FORM and split.lines == TRAIN
    told = _form(rng, parts, have, facts, lang) if form else _prose(rng, kind, lang, split.lines, facts)
    told = _some(rng, told, most) if most else _with_distractors(rng, told, lang, split.lines, form)
    said: dict[str, int] = {}
    sentences: list[str] = []
    used: set[str] = set()
    for line, covered in told:
        pattern = choose(line, rng)
        pattern = _slip(pattern, rng) if typos and not form else pattern
        if split.blur and not form and rng.random() < split.blur:
            pattern = _blurred(pattern, rng, lang)
        extra = {name: draw.of(name) for name in slots(pattern) if name not in parts}
        sentences.append(fill(pattern, {**have, **extra}))
        used.add(line)
        for name in covered:
            said.setdefault(name, len(sentences) - 1)
    missing: dict[str, Any] = {n: [] if f.type.startswith("list:") else None for n, f in parts.items()}
    facts = {name: facts[name] if name in said else missing[name] for name in parts}
    return Document(
        kind, lang, tuple(sentences), facts, said, frozenset(used), frozenset(draw.names), "\n" if form else " "
    )


def _prose(rng: Random, kind: str, lang: str, split: str, facts: dict[str, Any]) -> list[tuple[str, list[str]]]:
    groups = LANGUAGES[lang].LINES[kind]
    opening = rng.choice(variants(groups["opening"], split))
    covered = set(slots(opening))
    details: list[tuple[str, list[str]]] = []
    for field in KINDS[kind]:
        name, value = field.name, facts[field.name]
        fixed = field.type.startswith("enum:")
        key = f"{name}={str(value).lower()}" if fixed or field.type == "bool" else name
        if name in covered or key not in groups or not (fixed or rng.random() < MENTION):
            continue
        fitting = [line for line in variants(groups[key], split) if not covered & set(slots(line))]
        if fitting:
            line = rng.choice(fitting)
            covered |= set(slots(line))
            details.append((line, slots(line) or [name]))
    rng.shuffle(details)
    return [(opening, slots(opening)), *details]


def _form(
    rng: Random, parts: dict[str, Field], have: dict[str, tuple[str, Any]], facts: dict[str, Any], lang: str
) -> list[tuple[str, list[str]]]:
    kind = next(kind for kind, fields in KINDS.items() if fields[0].name in parts and len(fields) == len(parts)
                and all(field.name in parts for field in fields))  # fmt: skip
    groups = LANGUAGES[lang].LINES[kind]
    told: list[tuple[str, list[str]]] = []
    for name, field in parts.items():
        if name in have:
            if name not in groups or rng.random() < MENTION:
                told.append((f"{rng.choice(field.labels[lang])}: {{{name}}}", [name]))
        elif field.type.startswith("enum:") or rng.random() < MENTION:
            told.append((rng.choice(variants(groups[f"{name}={str(facts[name]).lower()}"], TRAIN)), [name]))
    if rng.random() < 0.5:
        rng.shuffle(told)
    return told


def _with_distractors(
    rng: Random, told: list[tuple[str, list[str]]], lang: str, split: str, form: bool
) -> list[tuple[str, list[str]]]:
    result = list(told)
    for _ in range(0 if form else rng.choice([0, 0, 1, 1, 2])):
        line = rng.choice(variants(LANGUAGES[lang].DISTRACTORS, split))
        result.insert(rng.randint(1, len(result)), (line, []))
    return result


def _some(rng: Random, told: list[tuple[str, list[str]]], most: int) -> list[tuple[str, list[str]]]:
    """Return at most `most` of the sentences that state a field."""
    telling = [pair for pair in told if pair[1]]
    return rng.sample(telling, min(most, len(telling))) or told[:1]


def _blurred(pattern: str, rng: Random, lang: str) -> str:
    """Drop, replace or precede one word that is no slot, so that the model cannot rely on single words."""
    words = pattern.split(" ")
    plain = [index for index, word in enumerate(words) if "{" not in word]
    if len(plain) < 3 or len(plain) == len(words):  # without a slot, the words themselves state the fact
        return pattern
    at = rng.choice(plain)
    other = rng.choice(rng.choice(variants(LANGUAGES[lang].DISTRACTORS, TRAIN)).split(" "))
    word = [] if set("{}[]|") & set(other) else [other]
    words[at : at + 1] = rng.choice([[], word, [*word, words[at]]])
    return " ".join(words)


def _slip(pattern: str, rng: Random) -> str:
    """Swap, drop or double one letter outside the slots."""
    pieces = re.split(r"(\{\w+\})", pattern)
    index = rng.randrange(len(pieces))
    word = pieces[index]
    if word.startswith("{") or len(word) < 6 or rng.random() < 0.3:
        return pattern
    at = rng.randrange(1, len(word) - 2)
    if word[at].isalpha() and word[at + 1].isalpha():
        kinds = [word[at + 1] + word[at], word[at], word[at] * 2 + word[at + 1]]
        pieces[index] = word[:at] + rng.choice(kinds) + word[at + 2 :]
    return "".join(pieces)
