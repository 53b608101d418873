"""Invented names: people, organisations, places, products, in English and Russian.

The hash of a name decides its split, so that training never draws a name of the held-out split.
"""

import hashlib
from random import Random

TRAIN, HELD = "train", "held"
HELD_SHARE = 0.1

_ONSETS = {
    "en": "b br c cl cr d dr f fl g gl gr h j k l m n p pl pr qu r s sh sk sl st t th tr v w z".split(),
    "ru": "б бр в вл г гл гр д др ж з к кл кр л м н п пл пр р с св ск ст т тр ф х ц ч ш".split(),
}
_VOWELS = {"en": "a e i o u ai ea ee oa ou".split(), "ru": "а е и о у я ю а о и е".split()}
_CODAS = {
    "en": ["", "", "", "", "", "", "", "", "n", "r", "l", "s", "m", "t", "nd", "rk", "x", "ck"],
    "ru": ["", "", "", "", "", "", "", "", "н", "р", "л", "с", "м", "т", "к", "нт", "ль", "й"],
}
_GIVEN = {
    "en": """Ada Alan Alice Amos Anna Arthur Beth Boris Clara Colin Cora Dara David Diana Edith Eli Emma Eric Eva
    Felix Flora Frank Gina Grace Harry Helen Hugo Ida Ivan Jack Jane Joan Jonas Julia Karl Kate Laura Lena Leo Lily
    Lucas Maria Mark Martin Mira Nadia Nina Noel Olga Omar Oscar Paul Peter Rosa Ruth Sam Sara Simon Sofia Stella
    Tom Tara Tessa Vera Victor Wanda""".split(),
    "ru": """Алексей Анна Антон Борис Вадим Вера Виктор Галина Глеб Дарья Денис Дина Егор Елена Иван Игорь Ирина
    Кирилл Лев Лидия Мария Марк Нина Олег Ольга Павел Пётр Роман Семён Софья Тамара Тимур Фёдор Юлия Яна""".split(),
}
_SURNAME_ENDS = {
    "en": ["", "", "son", "er", "man", "well", "ford", "ley", "by", "wick"],
    "ru": ["ов", "ин", "ко", "ский", "ич", "ев", "ян", "ук"],
}
_PLACE_ENDS = {
    "en": ["ton", "ford", "field", "ham", "mouth", "bury", "dale", "port", "stead", "mere"],
    "ru": ["ск", "град", "ово", "ино", "поль", "горск", "ец", "ань"],
}
_PLACE_FORMS = {
    "en": ["{}", "{}", "{}", "Port {}", "{} Bay", "North {}", "New {}"],
    "ru": ["{}", "{}", "{}", "Новый {}", "{}-на-Рее"],
}
_VENUE_FORMS = {
    "en": [
        "{} Hall",
        "{} Library",
        "{} Street",
        "{} Square",
        "{} House",
        "{} Bridge",
        "{} Park",
        "{} School",
        "{} Lane",
    ],
    "ru": ["дом культуры {}", "библиотека {}", "улица {}", "площадь {}", "зал {}", "парк {}", "школа {}", "мост {}"],
}
_ORG_FORMS = {
    "en": """{} Ltd|{} Labs|{} Foods|{} Energy|{} Group|{} Foundation|{} Motors|{} Water|{} Bank|{} Institute
    |{} & Co|{} Systems|{} Museum|{} Transit|{}|{} Clinic|{} Council|{} University|{} Textiles|{} Press""",
    "ru": """{}|{}|{}|{}-Сервис|{} Энерго|{} Групп|{}банк|{}строй|{}-Транс|НПО {}|Фонд {}|Завод {}|Институт {}
    |Клиника {}|Агро{}|{} Плюс|Музей {}""",
}
_PRODUCTS = {
    "en": "desk lamp|steel pump|garden hose|office chair|water filter|tool kit|paper roll|wall clock|road bike|tea set"
    "|heater|camera|kettle|drone|monitor|printer|blanket|backpack|cable|scanner",
    "ru": "лампа|насос|шланг|кресло|фильтр|набор инструментов|бумага|часы|велосипед|чайник|обогреватель|камера|дрон"
    "|монитор|принтер|плед|рюкзак|кабель|сканер|станок",
}


def in_split(name: str, split: str) -> bool:
    """Return True if the name belongs to the split. The bytes of the name decide."""
    bucket = hashlib.sha256(name.encode()).digest()[0]
    return (bucket < HELD_SHARE * 256) == (split == HELD)


def stem(rng: Random, lang: str, most: int = 3) -> str:
    """Return a pronounceable word with a capital letter. One word in six has random letters."""
    if rng.random() < 0.17:
        letters = "abcdefghijklmnoprstuvwz" if lang == "en" else "абвгдезиклмнопрстуфхя"
        return "".join(rng.choice(letters) for _ in range(rng.randint(4, 7))).capitalize()
    parts = [
        rng.choice(_ONSETS[lang]) + rng.choice(_VOWELS[lang]) + rng.choice(_CODAS[lang])
        for _ in range(rng.choice([2, 2, 3]) if most > 2 else rng.randint(1, 2))
    ]
    return "".join(parts).capitalize()


def person(rng: Random, lang: str) -> str:
    given = rng.choice(_GIVEN[lang]) if rng.random() < 0.6 else stem(rng, lang, 2)
    surname = stem(rng, lang, 2) + rng.choice(_SURNAME_ENDS[lang])
    if rng.random() < 0.15:
        return f"{given[0]}. {surname}"
    return f"{given} {surname}"


def organisation(rng: Random, lang: str) -> str:
    form = rng.choice(_ORG_FORMS[lang].split("|")).strip()
    word = stem(rng, lang)
    return form.format(word.lower() if form == "Агро{}" else word)


def city(rng: Random, lang: str) -> str:
    return rng.choice(_PLACE_FORMS[lang]).format(stem(rng, lang, 2) + rng.choice(_PLACE_ENDS[lang]))


def venue(rng: Random, lang: str) -> str:
    return rng.choice(_VENUE_FORMS[lang]).format(stem(rng, lang, 2))


def product(rng: Random, lang: str) -> str:
    word, thing = stem(rng, lang, 2), rng.choice(_PRODUCTS[lang].split("|"))
    code = f"{word[:2].upper()}-{rng.randint(10, 999)}"
    return rng.choice(
        [f"{thing} {code}", f"{thing} {word}", f"{word} {thing}" if lang == "en" else f"{thing} «{word}»"]
    )


def title(rng: Random, lang: str) -> str:
    forms = {
        "en": [
            "{} Days",
            "Voices of {}",
            "The {} Evening",
            "Night of {}",
            "{} and the Sea",
            "Letters from {}",
            "{} Cup",
        ],
        "ru": ["Дни {}", "Голоса {}", "Вечер {}", "Ночь и {}", "{} и море", "Письма: {}", "Кубок {}"],
    }
    return rng.choice(forms[lang]).format(stem(rng, lang))


def code(rng: Random, lang: str) -> str:
    letters = "ABCDEFGHKLMNPRSTVX" if lang == "en" or rng.random() < 0.5 else "АБВГДЕКЛМНПРСТ"
    head = "".join(rng.choice(letters) for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return rng.choice([f"{head}-{digits}", f"{head}{digits}", f"{digits}/{head}", f"{digits}-{rng.randint(1, 99)}"])


def phone(rng: Random, lang: str) -> str:
    digits = [str(rng.randint(0, 9)) for _ in range(8)]
    text = "".join(digits)
    return rng.choice(
        [f"0{text[:4]} {text[4:]}", f"8 ({text[:3]}) {text[3:6]}-{text[6:]}", f"{text[:3]}-{text[3:6]}-{text[6:]}"]
    )


def email(rng: Random, lang: str) -> str:
    box = rng.choice(["info", "office", "help", "hello", "sales", stem(rng, "en", 2).lower()])
    return f"{box}@{stem(rng, 'en').lower()}.example"


_MAKERS = {
    "person": person,
    "org": organisation,
    "city": city,
    "venue": venue,
    "product": product,
    "title": title,
    "code": code,
    "phone": phone,
    "email": email,
}


def draw(kind: str, rng: Random, lang: str, split: str) -> str:
    """Draw one name of a kind (`person`, `org`, `city` …) that belongs to the split."""
    while True:
        name = _MAKERS[kind](rng, lang)
        if in_split(name, split):
            return name
