# ruff: noqa: E501
"""Word problems of one or two steps, with the reasoning written out."""

from dataclasses import dataclass
from random import Random

_ONE = {
    "en": {
        "+": ["{n} has {a} {t} and gets {b} more. How many {t} now?", "There are {a} {t} in one box and {b} in another. How many in all?",
              "!A shelf with {a} {t} receives another {b}. What is the count?"],
        "-": ["{n} had {a} {t} and gave away {b}. How many are left?", "Of {a} {t}, {b} were sold. How many remain?",
              "!From a store of {a} {t}, {b} are taken. What stays?"],
        "*": ["{n} buys {b} bags with {a} {t} each. How many {t}?", "Each of {b} boxes holds {a} {t}. How many in all?",
              "!{b} rows of {a} {t} stand in a hall. What is the count?"],
    },
    "ru": {
        "+": ["У {n} было {a} {t}, дали ещё {b}. Сколько стало?", "В одной коробке {a} {t}, в другой {b}. Сколько всего?",
              "!На полке {a} {t}, принесли ещё {b}. Каков итог?"],
        "-": ["У {n} было {a} {t}, отдали {b}. Сколько осталось?", "Из {a} {t} продали {b}. Сколько осталось?",
              "!Со склада, где {a} {t}, взяли {b}. Каков остаток?"],
        "*": ["Купили {b} пакетов, в каждом {a} {t}. Сколько всего?", "В каждой из {b} коробок {a} {t}. Сколько всего?",
              "!В зале {b} рядов, в ряду {a} {t}. Каков итог?"],
    },
}  # fmt: skip
_THEN = {
    "en": {"+": ["Then {c} more come. How many now?", "After that {c} are added. How many now?", "!Later another {c} turn up. And now?"],
           "-": ["Then {c} are lost. How many are left?", "After that {c} are taken away. How many now?", "!Later {c} break. And now?"]},
    "ru": {"+": ["Потом пришло ещё {c}. Сколько теперь?", "Затем добавили {c}. Сколько теперь?", "!Позже нашлось ещё {c}. А теперь?"],
           "-": ["Потом пропало {c}. Сколько теперь?", "Затем забрали {c}. Сколько теперь?", "!Позже сломалось {c}. А теперь?"]},
}  # fmt: skip
_THINGS = {
    "en": "apples books cups nails cards coins eggs pens stones tickets".split(),
    "ru": "яблок книг чашек гвоздей карт монет яиц ручек камней билетов".split(),
}
_WHO = {"en": "Anna Tom Mira Leo Vera Sam".split(), "ru": "Анны Тома Миры Льва Веры Олега".split()}


@dataclass(frozen=True, slots=True)
class Problem:
    lang: str
    text: str
    reasoning: str
    answer: int
    lines: frozenset[str]


def problem(rng: Random, lang: str, split: str) -> Problem:
    """Make one problem: numbers up to 30, the second up to 12, products up to 9 × 9. No result is negative."""
    sign = rng.choice("++--*")
    if sign == "*":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        result = a * b
    else:
        a, b = rng.randint(3, 30), rng.randint(2, 12)
        a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        result = a + b if sign == "+" else a - b
    line = rng.choice(_lines(_ONE[lang][sign], split))
    text = line.format(n=rng.choice(_WHO[lang]), t=rng.choice(_THINGS[lang]), a=a, b=b)
    steps, used = [f"{a} {sign} {b} = {result}."], {line}
    if rng.random() < 0.5:
        text = text[: text.rindex(". ") + 1] if ". " in text else text
        then = "-" if result > 12 and rng.random() < 0.5 else "+"
        c = rng.randint(2, min(12, result - 1) if then == "-" else 12)
        line = rng.choice(_lines(_THEN[lang][then], split))
        used.add(line)
        text += " " + line.format(c=c)
        after = result + c if then == "+" else result - c
        steps.append(f"{result} {then} {c} = {after}.")
        result = after
    return Problem(lang, text, " ".join(steps), result, frozenset(used))


def _lines(lines: list[str], split: str) -> list[str]:
    return [line.removeprefix("!") for line in lines if line.startswith("!") == (split == "held")]
