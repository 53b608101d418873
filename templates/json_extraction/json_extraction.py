"""JSON extraction: from each document one object that follows a JSON Schema, with evidence.

When: invoices, notices, forms, reports, announcements; all documents whose fields you know beforehand.
Cost: one call per document. A second call only if the answer breaks the schema (the server cannot enforce all of it).
Edit: the prompts below, the files in schemas/, ROLE. A document names its schema in `kind` (schemas/<kind>.json) or
contains one in `schema`.
Run: `tourkit run json_extraction --input documents.jsonl --output out.jsonl`, or, with plain Python,
`python json_extraction.py documents.jsonl out.jsonl [--schema FILE]`.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from tourkit.client import Client, ClientError

ROLE = "fast"  # which model: a role, or a model id
THINKING = False  # True: a model that can think does so before it answers, which takes many tokens
QUOTE = 80  # characters: the longest text that the answer copies from the document; 0: the model may write any text
MOST = 3000  # quotes that a field may choose from; a document of some 300 words has more
SCHEMAS = Path(__file__).resolve().parent / "schemas"

# The schema comes before the text: then documents of one kind begin with the same prompt, and the server computes this
# shared part once.
SYSTEM = """You extract facts from one document. Answer with one JSON object that follows the schema.
- Copy names and terms letter by letter as the document writes them, in its own language.
- Dates as YYYY-MM-DD, times as HH:MM, amounts as digits with a dot for decimals (1240.50), no currency sign.
- Use only what the document says about its own subject; leave out earlier, cancelled or unrelated facts.
- null where the document does not say; an empty list where there is nothing to list.

Schema:
{schema}"""
USER = """Document:
-----
{text}
-----"""
AGAIN = """That answer breaks the schema: {problem}
Answer again with the whole corrected object."""


def run(document: dict[str, Any], client: Client) -> dict[str, Any]:
    """Return the record of one document. Raises ClientError if the server fails, ValueError for a bad document."""
    schema = schema_for(document)
    messages = [
        {"role": "system", "content": SYSTEM.replace("{schema}", json.dumps(schema, ensure_ascii=False))},
        {"role": "user", "content": USER.replace("{text}", document["text"])},
    ]
    narrow = offered(schema, document["text"]) if QUOTE else schema
    data = ask(messages, narrow, schema, client)
    validated, problem = check(data, schema)
    if problem:
        messages += [
            {"role": "assistant", "content": json.dumps(data, ensure_ascii=False)},
            {"role": "user", "content": AGAIN.replace("{problem}", problem)},
        ]
        data = ask(messages, narrow, schema, client)
        validated, problem = check(data, schema)
    evidence = grounded(data, schema, document["text"])
    record = {
        "id": document["id"],
        "ok": problem is None,
        "data": data,
        "validated": validated,
        "grounded": evidence,
        "ungrounded": [pointer for pointer, found in evidence.items() if not found],
    }
    return record if problem is None else {**record, "error": f"the answer breaks the schema: {problem}"}


def ask(messages: list[dict[str, str]], narrow: dict[str, Any], schema: dict[str, Any], client: Client) -> Any:
    """Return the model's object under `narrow`; under `schema` if the server refuses that many choices."""
    try:
        return client.structured(messages, narrow, temperature=0, thinking=THINKING)
    except ClientError as error:
        if error.status != 400 or narrow == schema:
            raise
    return client.structured(messages, schema, temperature=0, thinking=THINKING)


def schema_for(document: dict[str, Any]) -> dict[str, Any]:
    """Return the schema in the document, or the schema that its `schema` or `kind` names."""
    named = document.get("schema") or document.get("kind")
    if isinstance(named, dict):
        return named
    known = sorted(path.stem for path in SCHEMAS.glob("*.json"))
    if named not in known:
        raise ValueError(f"no schema for kind {named!r}: give one in `schema`, or choose one of {', '.join(known)}")
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{named}.json").read_text(encoding="utf-8"))
    return schema


def check(data: Any, schema: dict[str, Any]) -> tuple[bool, str | None]:
    """Return whether `data` could be validated here, and what is wrong with it (None: nothing)."""
    try:
        import jsonschema
    except ImportError:  # a copy that runs without jsonschema: only the server has checked
        return False, None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    error = jsonschema.exceptions.best_match(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(data))
    return True, None if error is None else f"{error.json_path}: {error.message}"


# Evidence: no value is dropped if the evidence is missing; the map says which values to check by hand.


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a document contains. `plain`: its text in normal form. `numbers`: every number that its digits can mean.
    `dates`: its dates as YYYY-MM-DD.
    """

    plain: str
    numbers: set[Decimal]
    dates: set[str]


def evidence_in(text: str) -> Evidence:
    plain = normal(text)
    return Evidence(plain, numbers_in(text), dates_in(plain))


def grounded(data: Any, schema: dict[str, Any], text: str) -> dict[str, bool]:
    """Return for each text or number in `data`, by JSON pointer, whether the document contains it.

    Values of an enum are left out: their words are from the schema, not from the document.
    """
    evidence = evidence_in(text)
    return {pointer: occurs(leaf, evidence) for pointer, leaf in leaves(data, schema)}


def leaves(data: Any, schema: dict[str, Any], pointer: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        parts = schema.get("properties", {})
        for key, value in data.items():
            escaped = str(key).replace("~", "~0").replace("/", "~1")
            yield from leaves(value, parts.get(key, {}), f"{pointer}/{escaped}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from leaves(value, schema.get("items", {}), f"{pointer}/{index}")
    elif isinstance(data, (str, int, float)) and not isinstance(data, bool) and "enum" not in schema:
        yield pointer, data


def occurs(leaf: str | float, evidence: Evidence) -> bool:
    """Compare numbers by value, dates by year, month and day, other text by its normal form."""
    words = normal(str(leaf)).lstrip("<>")
    if not words:
        return False
    if re.fullmatch(r"\d{4}-\d\d-\d\d", words):
        return words in evidence.dates
    if re.fullmatch(r"-?\d{1,18}(\.\d{1,9})?", words):
        return abs(Decimal(words)) in evidence.numbers
    plain = evidence.plain
    return words in plain or (re.fullmatch(r"0\d:\d\d", words) is not None and words[1:] in plain)


def normal(text: str) -> str:
    """Fold Unicode forms (NFKC), case, white space and ё, so that the same words compare equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("ё", "е").split())


def numbers_in(text: str) -> set[Decimal]:
    """Return every number that digits in `text` can mean: "1 240,50" gives 1240.50, and also 1, 240, 50, 240.50."""
    found: set[Decimal] = set()
    for match in re.findall(r"\d{1,18}(?:[\s.,'’]\d{1,18})*", text):
        groups = re.split(r"[\s.,'’]", match)
        for start in range(len(groups)):
            for end in range(start + 1, min(start + 5, len(groups) + 1)):
                whole = "".join(groups[start:end])
                found.add(Decimal(whole))
                if end < len(groups):
                    found.add(Decimal(f"{whole}.{groups[end]}"))
    return found


# Dates. Add the months of another language to MONTHS: full names, cases and abbreviations, without the dot.

MONTHS = (
    r"jan(uary)?|янв(ар\w{1,3})?",
    r"feb(ruary)?|февр?|феврал\w{1,3}",
    r"mar(ch)?|мар|март\w{0,3}",
    r"apr(il)?|апр(ел\w{1,3})?",
    r"may|ма([йяюе]|ем)",
    r"june?|июн\w{0,3}",
    r"july?|июл\w{0,3}",
    r"aug(ust)?|авг(уст\w{0,3})?",
    r"sept?(ember)?|сент?|сентябр\w{1,3}",
    r"oct(ober)?|окт(ябр\w{1,3})?",
    r"nov(ember)?|нояб?|ноябр\w{1,3}",
    r"dec(ember)?|дек(абр\w{1,3})?",
)
DAY = r"\d{1,2}(?:st|nd|rd|th|-?го|-?ое|-?е|-?ого)?"
DAYS = rf"(?P<days>{DAY}(?: ?(?:[-–—,&]|to|and|or|по|и|или|до) ?{DAY}){{0,3}})"  # 12–14 June, с 12 по 14 июня
WORD = r"(?P<word>[^\W\d_]{3,9})"
YEAR = r"(?P<year>\d{4}(?!\d)|['’]\d\d(?!\d)|\d\d(?= ?г\b))"
DAY_MONTH = re.compile(
    rf"(?<![\d.,:/-]){DAYS}(?: of)?[ ./-]{{1,2}}{WORD}\b\.?(?:(?: of)?[ ,./-]{{0,2}}{YEAR}|[./-](?P<two>\d\d)\b)?"
)
MONTH_DAY = re.compile(rf"\b{WORD}\.? {DAYS}\b(?![:.,]\d)(?:,? ?{YEAR})?")
YEAR_FIRST = re.compile(r"(?<![\d.,:/-])(\d{4})(?:([-/.]) ?(\d{1,2})\2 ?(\d{1,2})|(\d\d)(\d\d))(?!\d|[.:/-]\d)")
YEAR_LAST = re.compile(r"(?<![\d.,:/-])(\d{1,2})([-/.]) ?(\d{1,2})\2 ?(\d{4}|\d\d)(?!\d|[.:/-]\d)")
NO_YEAR = re.compile(r"(?<![\d.,:/-])(\d\d)[./](\d\d)(?!\d|[.:/-]\d)")


def dates_in(plain: str) -> set[str]:
    """Return the dates of a text in normal form, as YYYY-MM-DD.

    A date in digits such as 03/02/2024 counts in both orders. Years of two digits are from 1969 to 2068. A date without
    a year gets the years of the other dates; if they have none, each year that the text contains.
    """
    found: list[tuple[int | None, int, int]] = []
    for match in [*DAY_MONTH.finditer(plain), *MONTH_DAY.finditer(without_day_month(plain))]:
        groups = match.groupdict()
        year = (groups["year"] or groups.get("two") or "").lstrip("'’")
        for month in months_of(groups["word"]):
            found += [(full_year(year), month, int(day)) for day in re.findall(r"\d+", groups["days"])]
    for year, _, month, day, month2, day2 in YEAR_FIRST.findall(plain):
        found.append((int(year), int(month or month2), int(day or day2)))
    for first, _, second, year in YEAR_LAST.findall(plain):
        found += [(full_year(year), int(first), int(second)), (full_year(year), int(second), int(first))]
    found += [(None, int(month), int(day)) for day, month in NO_YEAR.findall(plain)]
    years = {year for year, month, day in found if year and iso_date(year, month, day)}
    years = years or {int(year) for year in re.findall(r"(?<![\w-])(?:19|20)\d\d(?!\w)", plain)}
    dates = {iso_date(one, month, day) for year, month, day in found for one in ({year} if year else years)}
    return dates - {""}


def without_day_month(plain: str) -> str:
    return DAY_MONTH.sub(lambda match: "|" if months_of(match["word"]) else match[0], plain)


def months_of(word: str) -> list[int]:
    return [number for number, names in enumerate(MONTHS, 1) if re.fullmatch(names, word)]


def full_year(digits: str) -> int | None:
    if len(digits) == 2:
        return int(digits) + (1900 if int(digits) > 68 else 2000)
    return int(digits) if digits else None


def iso_date(year: int, month: int, day: int) -> str:
    """Return YYYY-MM-DD; "" if there is no such day."""
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        return ""


# What the document offers. A small model invents values. It cannot, if its answer may only have texts of the document.


def offered(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """Return `schema` with what the document offers as the choices of each string field.

    A field for dates gets the dates. A field with another pattern gets the times, numbers and quotes that match it. Any
    other field gets quotes. If nothing fits, a field that may be null is null, and another field stays as it is. So do
    enums, texts over QUOTE characters, quotes beyond MOST, and other formats.
    """
    plain = normal(text)
    return narrowed(schema, sorted(dates_in(plain)), [*times_in(plain), *amounts_in(plain)], quotes_in(text))


def narrowed(schema: dict[str, Any], dates: list[str], values: list[str], quotes: list[str]) -> dict[str, Any]:
    if "properties" in schema:
        parts = {key: narrowed(part, dates, values, quotes) for key, part in schema["properties"].items()}
        return {**schema, "properties": parts}
    if "items" in schema:
        return {**schema, "items": narrowed(schema["items"], dates, values, quotes)}
    kinds, form, pattern = schema.get("type"), schema.get("format"), schema.get("pattern")
    longest = schema.get("maxLength", QUOTE if form or pattern else QUOTE + 1)
    if kinds not in ("string", ["string", "null"]) or "enum" in schema or form not in (None, "date") or longest > QUOTE:
        return schema
    if not form and not pattern and len(quotes) > MOST:
        return schema
    found = list(dict.fromkeys([*quotes, *values, *dates]))
    if pattern:  # the numbers of the text are among the values
        found = [*values, *(quote for quote in quotes if not re.fullmatch(r"\d+([.,]\d+)?", quote))]
    if form or (pattern and re.search(pattern, "2026-02-03") and not re.search(pattern, "2026002003")):
        found = dates
    shortest, pattern = schema.get("minLength", 0), pattern or ""
    fitting = [each for each in found if shortest <= len(each) <= longest and re.search(pattern, each)]
    if kinds == "string":
        return {"type": kinds, "enum": fitting} if fitting else schema
    return {"type": kinds, "enum": [*fitting, None]}


def quotes_in(text: str) -> list[str]:
    """Return the pieces of the text from the start of a word to the end of a word, up to QUOTE characters.

    None goes on after the end of a sentence: a dot after five letters or two digits. Shorter words are abbreviations.
    """
    words = text.split()
    found: list[str] = []
    for start, first in enumerate(words):
        begins = [first] if first[0].isalnum() else [first, first.lstrip("\"'«“„([<")]
        for end in range(start, len(words) if any(map(str.isalnum, first)) else 0):
            middle = " ".join(words[start + 1 : end + 1])
            if len(middle) > QUOTE:
                break
            for begin in begins:
                piece = f"{begin} {middle}".rstrip(",;: —–")
                bare = piece.rstrip(".!?)]»”\"'")
                found += [piece] if piece == bare else [piece.rstrip("."), piece, bare]
            if re.search(r"([^\W\d]{5}|\d\d)[)»”\"]*\.[)»”\"]*$|[!?;]$", words[end]):
                break
    return [piece for piece in dict.fromkeys(found) if 0 < len(piece) <= QUOTE]


def times_in(plain: str) -> list[str]:
    """Return the times of a text in normal form, as HH:MM. "7 pm" is 19:00."""
    found = re.findall(r"(?<![\d:])([01]?\d|2[0-3]):([0-5]\d)(?!\d)(?: ?([ap])\.?m\b)?", plain)
    found += [(hour, "00", half) for hour, half in re.findall(r"(?<![\d:.])(1[0-2]|[1-9]) ?([ap])\.?m\b", plain)]
    hours = [int(hour) if not half else int(hour) % 12 + (12 if half == "p" else 0) for hour, _, half in found]
    return [f"{hour:02}:{minute}" for hour, (_, minute, _) in zip(hours, found, strict=True)]


def amounts_in(plain: str) -> list[str]:
    """Return the numbers of a text in normal form, with a dot for decimals. Those of dates are left out.

    "0" is among them: it stands for words such as "free". An order sign before a number is kept: "<0.5".
    """
    found = ["0"]
    for sign, digits in re.findall(
        r"([<>]?) ?((?:\d{1,3}(?:[ .,'’]\d{3})+|\d+)(?:[.,]\d+)?)(?!\d)", without_day_month(plain)
    ):
        point = re.sub(r"[ '’]", "", digits)
        whole = re.sub(r"[.,](?=\d{3}(?!\d))", "", point)  # 1,240.50 and 1.240,50
        found += [sign + form.replace(",", ".") for form in (whole, point) if len(re.findall("[.,]", form)) < 2]
    return list(dict.fromkeys(found))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Extract one JSON object from each document.")
    parser.add_argument("input", type=Path, help="JSON Lines: id, text, and kind or schema")
    parser.add_argument("output", type=Path, help="JSON Lines: one record per document, in the same order")
    parser.add_argument("--schema", type=Path, help="JSON Schema for documents without one")
    parser.add_argument("--url", help="the server; default $TOURKIT_URL or http://127.0.0.1:8000")
    parser.add_argument("--model", default=ROLE, help=f"role or model id; default {ROLE}")
    parser.add_argument("--workers", type=int, default=8, help="documents at a time; default 8")
    args = parser.parse_args(argv)
    lines = args.input.read_text(encoding="utf-8").split("\n")
    documents = [json.loads(line) for line in lines if line.strip()]
    if args.schema:
        given = json.loads(args.schema.read_text(encoding="utf-8"))
        documents = [{"schema": given, **document} for document in documents]
    failed = ungrounded = 0
    with (
        Client(args.url, model=args.model) as client,
        ThreadPoolExecutor(args.workers) as pool,
        args.output.open("w", encoding="utf-8") as out,
    ):
        for record in pool.map(lambda document: record_of(document, client), documents):
            failed += not record["ok"]
            ungrounded += len(record.get("ungrounded", ()))
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    loose = f", {ungrounded} values not in their text" if ungrounded else ""
    print(f"{len(documents)} documents, {failed} failed{loose}: {args.output}", file=sys.stderr)
    return 1 if failed else 0


def record_of(document: dict[str, Any], client: Client) -> dict[str, Any]:
    """Return the record of `run`, or a record with the error: no document is lost."""
    try:
        return run(document, client)
    except Exception as error:  # noqa: BLE001 - one bad document must not end the others
        return {
            "id": document.get("id"),
            "ok": False,
            "error": str(error) or repr(error),
            "type": type(error).__name__,
        }


if __name__ == "__main__":
    sys.exit(main())
