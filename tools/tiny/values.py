"""Dates, times and amounts, as documents and as answers write them."""

from datetime import date, timedelta
from random import Random

_MONTHS = {
    "en": "January February March April May June July August September October November December".split(),
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря".split(),
}
CURRENCIES = {
    "en": {"EUR": ["euros", "EUR", "€"], "USD": ["dollars", "USD", "$"], "GBP": ["pounds", "GBP", "£"]},
    "ru": {"RUB": ["рублей", "руб.", "₽"], "EUR": ["евро", "€"], "USD": ["долларов", "$"], "KZT": ["тенге", "₸"]},
}
ALL_CURRENCIES = ["EUR", "USD", "GBP", "RUB", "KZT"]


def a_date(rng: Random) -> date:
    return date(2024, 1, 1) + timedelta(days=rng.randrange(1200))


def date_text(day: date, rng: Random, lang: str) -> str:
    month = _MONTHS[lang][day.month - 1]
    if lang == "en":
        forms = [f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", day.isoformat()]
        return rng.choice([*forms, f"{day.day:02}.{day.month:02}.{day.year}", forms[0], forms[1]])
    words = f"{day.day} {month} {day.year}"
    return rng.choice(
        [words, f"{words} года", f"{words} г.", f"{day.day:02}.{day.month:02}.{day.year}", day.isoformat()]
    )


def a_time(rng: Random) -> str:
    return f"{rng.randint(7, 21):02}:{rng.choice([0, 0, 15, 30, 45]):02}"


def amount(rng: Random) -> str:
    """Return digits with a dot for decimals, as answers write them."""
    whole = rng.choice([rng.randint(2, 99), rng.randint(100, 999), rng.randint(1000, 99999)])
    return f"{whole}.{rng.randint(1, 99):02}" if rng.random() < 0.35 else str(whole)


def money_text(value: str, currency: str, rng: Random, lang: str) -> str:
    whole, _, cents = value.partition(".")
    grouped = rng.random() < 0.7 and len(whole) > 3
    if lang == "en":
        number = (f"{int(whole):,}" if grouped else whole) + (f".{cents}" if cents else "")
    else:
        number = (f"{int(whole):,}".replace(",", " ") if grouped else whole) + (f",{cents}" if cents else "")
    sign = rng.choice(CURRENCIES[lang][currency])
    if lang == "en" and sign in "€$£":
        return sign + number
    return f"{number} {sign}"
