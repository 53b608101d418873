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
from decimal import Decimal
from pathlib import Path
from typing import Any

from tourkit.client import Client

ROLE = "fast"  # which model: a role, or a model id
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
    data = client.structured(messages, schema, temperature=0)
    validated, problem = check(data, schema)
    if problem:
        messages += [
            {"role": "assistant", "content": json.dumps(data, ensure_ascii=False)},
            {"role": "user", "content": AGAIN.replace("{problem}", problem)},
        ]
        data = client.structured(messages, schema, temperature=0)
        validated, problem = check(data, schema)
    record = {
        "id": document["id"],
        "ok": problem is None,
        "data": data,
        "validated": validated,
        "grounded": grounded(data, schema, document["text"]),
    }
    return record if problem is None else {**record, "error": f"the answer breaks the schema: {problem}"}


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


def grounded(data: Any, schema: dict[str, Any], text: str) -> dict[str, bool]:
    """Return for each text or number in `data`, by JSON pointer, whether the document contains it.

    Values of an enum are left out: their words are from the schema, not from the document.
    """
    plain, numbers = normal(text), numbers_in(text)
    return {pointer: occurs(leaf, plain, numbers) for pointer, leaf in leaves(data, schema)}


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


def occurs(leaf: str | float, plain: str, numbers: set[Decimal]) -> bool:
    """Compare numbers by value, dates by day and year (the month may be a word), other text by its normal form."""
    words = normal(str(leaf)).lstrip("<>")
    if not words:
        return False
    if date := re.fullmatch(r"(\d{4})-\d\d-(\d\d)", words):
        return {Decimal(date[1]), Decimal(date[2])} <= numbers
    if re.fullmatch(r"-?\d{1,18}(\.\d{1,9})?", words):
        return abs(Decimal(words)) in numbers
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
    failed = 0
    with (
        Client(args.url, model=args.model) as client,
        ThreadPoolExecutor(args.workers) as pool,
        args.output.open("w", encoding="utf-8") as out,
    ):
        for record in pool.map(lambda document: record_of(document, client), documents):
            failed += not record["ok"]
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{len(documents)} documents, {failed} failed: {args.output}", file=sys.stderr)
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
