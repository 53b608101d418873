"""Self-consistency: several samples of one answer, a vote over them, and the share of the winner.

When: short problems with one right answer that a small model usually gets right; labels; small objects.
Cost: CHUNK samples per call, one to CAP / CHUNK calls (4 to 12 samples). The server computes the prompt once for all
samples of a call. Sampling stops as soon as the vote is decided.
Edit: the prompts, CHUNK, CAP, SURE, TEMPERATURE, ROLE. The document sets the answer: with `choices` one of them, with
`kind` "number" a number, with `schema` an object (each field has its own vote), else a short text.
Run: `tourkit run self_consistency --input documents.jsonl --output out.jsonl`, or, with plain Python,
`python self_consistency.py documents.jsonl out.jsonl`.
"""

import argparse
import decimal
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path
from typing import Any

from tourkit.client import Client, ClientError, Reply, parse_json

ROLE = "brain"  # which model: a role, or a model id
THINKING = False  # True: a model that can think does so before it answers, which takes many tokens
CHUNK = 4  # samples per call; best equal to the server's slots
CAP = 12  # the most samples per document
SURE = 0.95  # stop when the leader beats the runner-up with this probability
TEMPERATURE = 0.7  # at 0 all samples are the same
SEED = 1

SYSTEM = """You solve short problems. First think in "reasoning", in two or three short sentences, then give the bare
result in "answer": no unit, no explanation, in the language of the problem."""
USER = """{text}"""
WITH_CHOICES = """{text}
Possible answers: {choices}"""


def run(document: dict[str, Any], client: Client) -> dict[str, Any]:
    """Return the record of one document. Raises ClientError if the server fails."""
    schema = document.get("schema") or answer_schema(document)
    choices = ", ".join(map(str, document.get("choices", ())))
    prompt = WITH_CHOICES.replace("{choices}", choices) if choices else USER
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": prompt.replace("{text}", document["text"])},
    ]
    whole = "schema" in document  # the whole object is the answer, not only its field `answer`
    samples: list[Any] = []
    drawn, late = 0, False
    while drawn < CAP and not late:
        n = min(CHUNK, CAP - drawn)
        replies = client.sample(
            messages, n, schema=schema, temperature=TEMPERATURE, seed=SEED + drawn, thinking=THINKING
        )
        late = len(replies) < n  # the deadline came: what was drawn before it votes
        drawn += len(replies)
        objects = [data for reply in replies if (data := valid(reply, schema)) is not None]
        samples += objects if whole else [data["answer"] for data in objects]
        if decided(samples, CAP - drawn):
            break
    if not samples:
        error = "the deadline came before the first sample" if late else f"none of {drawn} samples follows the schema"
        return {"id": document["id"], "ok": False, "error": error, **({"type": "deadline"} if late else {})}
    result = object_vote(samples, schema) if whole else scalar_vote(samples, drawn)
    if document.get("kind") == "number" and (value := as_number(str(result["answer"]))) is not None:
        result["answer"] = int(value) if value == int(value) else float(value)
    counts = {"samples": drawn, "voted": len(samples), "spoiled": drawn - len(samples), "late": late}
    return {"id": document["id"], "ok": True, **result, **counts}


def answer_schema(document: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 60}
    if document.get("choices"):
        answer = {"type": "string", "enum": list(document["choices"])}
    elif document.get("kind") == "number":  # a JSON number has no limit on its digits, this has
        answer = {"type": "string", "pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,4})?$", "maxLength": 15}
    return {
        "title": "answer",
        "type": "object",
        # The order matters: the model must write its reasoning before the answer.
        "properties": {"reasoning": {"type": "string", "maxLength": 300}, "answer": answer},
        "required": ["reasoning", "answer"],
        "additionalProperties": False,
    }


def valid(reply: Reply, schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the object of one sample; None if it was cut off or breaks the schema: it then has no vote."""
    try:
        data = parse_json(reply)
    except ClientError:
        return None
    return data if isinstance(data, dict) and follows(data, schema) else None


def follows(data: dict[str, Any], schema: dict[str, Any]) -> bool:
    try:
        import jsonschema
    except ImportError:  # a copy that runs without jsonschema: check the keys at least
        return all(key in data for key in schema.get("required", ()))
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(data))


# When to stop


def decided(samples: Sequence[Any], left: int) -> bool:
    """Return True if `left` more samples would hardly change the winner (for objects: of any field)."""
    fields = [flat(sample) for sample in samples]
    for pointer in dict.fromkeys(pointer for field in fields for pointer in field):
        votes = Counter(field.get(pointer) for field in fields).most_common(2)
        leader, runner_up = votes[0][1], votes[1][1] if len(votes) > 1 else 0
        if leader - runner_up <= left and confidence(leader, runner_up) < SURE:
            return False
    return bool(samples)


def confidence(leader: int, runner_up: int) -> float:
    """Return the probability that the leader is the more frequent answer: P(Beta(leader + 1, runner_up + 1) > 1/2).

    The closed form is P(Binomial(leader + runner_up + 1, 1/2) <= leader).
    """
    n = leader + runner_up + 1
    return float(sum(comb(n, k) for k in range(leader + 1)) / 2**n)


# What counts as the same answer


def canonical(value: Any) -> str:
    """Return the form in which equal answers are equal texts: "42.", "42.0" and 42 are one answer."""
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    number = as_number(str(value))
    if number is not None:
        return "0" if number == 0 else f"{number.normalize():f}"
    text = unicodedata.normalize("NFKC", str(value)).casefold().replace("ё", "е")
    return " ".join(text.split()).rstrip(".!")


def as_number(text: str) -> decimal.Decimal | None:
    """Return the value of a number such as "1 200,5", "1,200.5" or "-3.", to 12 digits; None for other text.

    A comma before exactly three digits separates thousands. Any other comma separates decimals.
    """
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").strip().removesuffix(".")
    if re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    elif re.fullmatch(r"[-+]?[1-9]\d{0,2}( \d{3})+([.,]\d+)?", plain):
        plain = plain.replace(" ", "")
    if not re.fullmatch(r"[-+]?\d{1,24}([.,]\d{1,24})?", plain):
        return None
    return decimal.Context(prec=12).create_decimal(plain.replace(",", "."))


# Votes


def scalar_vote(samples: list[Any], drawn: int) -> dict[str, Any]:
    """Return the most frequent answer in its first spelling. Spoiled samples lower its share."""
    votes = Counter(canonical(sample) for sample in samples)
    winner, count = votes.most_common(1)[0]
    answer = next(sample for sample in samples if canonical(sample) == winner)
    return {"answer": answer, "share": round(count / drawn, 3), "votes": dict(votes.most_common())}


def object_vote(samples: list[dict[str, Any]], schema: dict[str, Any]) -> dict[str, Any]:
    """Vote on each field. If the result breaks the schema, take the sample that agrees most with the others."""
    votes: dict[str, float] = {}
    answer, method = consensus(samples, "", votes), "fields"
    if not follows(answer, schema):
        answer, method = medoid(samples), "medoid"
    share = sum(votes.values()) / len(votes) if votes else 1.0
    return {"answer": answer, "share": round(share, 3), "votes": votes, "method": method}


ABSENT = object()


def consensus(values: Sequence[Any], pointer: str, votes: dict[str, float]) -> Any:
    """Return the winner of `values`, part by part. `votes` gets the share of each leaf. A missing key is a vote too."""
    shape = Counter(shape_of(value) for value in values).most_common(1)[0][0]
    alike = [value for value in values if shape_of(value) == shape]
    if shape == "object":
        keys = dict.fromkeys(key for value in alike for key in value)
        parts = {k: consensus([v.get(k, ABSENT) for v in alike], f"{pointer}/{k}", votes) for k in keys}
        return {key: part for key, part in parts.items() if part is not ABSENT}
    if shape == "array":
        return array_consensus(alike, pointer, votes)
    forms = ["" if shape == "absent" else canonical(value) for value in alike]
    winner, count = Counter(forms).most_common(1)[0]
    votes[pointer] = round(count / len(values), 3)
    return alike[forms.index(winner)]


def array_consensus(lists: Sequence[list[Any]], pointer: str, votes: dict[str, float]) -> list[Any]:
    """Return the items that are in at least half of the lists. Objects match by their first text, others by value."""
    groups: dict[tuple[str, int], list[Any]] = {}
    for items in lists:
        seen: Counter[str] = Counter()
        for item in items:
            name = next((v for v in item.values() if isinstance(v, str)), item) if shape_of(item) == "object" else item
            key = canonical(name)
            groups.setdefault((key, seen[key]), []).append(item)
            seen[key] += 1
    kept = [group for group in groups.values() if 2 * len(group) >= len(lists)]
    result = [consensus(group, f"{pointer}/{index}", votes) for index, group in enumerate(kept)]
    for index, group in enumerate(kept):
        votes[f"{pointer}/{index}"] = round(len(group) / len(lists), 3)  # the share of lists with this item
    return result


def shape_of(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else "leaf"


def flat(value: Any, pointer: str = "") -> dict[str, str]:
    """Return the leaves by pointer, in canonical form. A list is one leaf; the order of its items does not count."""
    if isinstance(value, dict):
        parts = (flat(part, f"{pointer}/{key}") for key, part in value.items())
        return {path: leaf for part in parts for path, leaf in part.items()}
    if isinstance(value, list):
        return {pointer: json.dumps(sorted(json.dumps(flat(item), sort_keys=True) for item in value))}
    return {pointer: canonical(value)}


def medoid(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sample whose leaves agree most with those of the other samples."""
    fields = [flat(sample) for sample in samples]

    def agreement(index: int) -> float:
        mine = set(fields[index].items())
        return sum(len(mine & set(other.items())) / (len(mine | set(other.items())) or 1) for other in fields)

    return samples[max(range(len(samples)), key=agreement)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Answer each problem by a vote of several samples.")
    parser.add_argument("input", type=Path, help="JSON Lines: id, text, and kind, choices or schema")
    parser.add_argument("output", type=Path, help="JSON Lines: one record per document, in the same order")
    parser.add_argument("--url", help="the server; default $TOURKIT_URL or http://127.0.0.1:8000")
    parser.add_argument("--model", default=ROLE, help=f"role or model id; default {ROLE}")
    parser.add_argument("--workers", type=int, default=2, help="documents at a time; default 2")
    args = parser.parse_args(argv)
    lines = args.input.read_text(encoding="utf-8").split("\n")
    documents = [json.loads(line) for line in lines if line.strip()]
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
