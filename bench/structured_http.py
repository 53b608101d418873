"""Send real-world JSON Schemas through the HTTP API, and check the answers with jsonschema.

`python bench/structured_http.py [--limit N] [--path FILE.jsonl.gz] [--peers] [--json]`. Every server uses the tiny
model. A schema counts as answered if JSON came back. It counts as wrong if jsonschema rejects the JSON and the reply
did not say so. --peers also asks llama-server (it is built first) and llama_cpp.server.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from servers import Limits, Server, llama_cpp_server, llama_server, tourkit
from work import by_schema

from tourkit.data import TINY_GGUF
from tourkit.grammar.check import validate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "jsonschemabench-dev.jsonl.gz"
LIMITS = Limits(slots=8, context=2048)
MAX_TOKENS = 1600  # the shortest documents of some schemas take 1300
CLIENTS = 8
PROMPT = (
    "Document:\nInvoice K-204 of Marlow Ltd: 3 desk lamps, 120.50 EUR, due 2026-05-04, for Ada Brenner in Port Selby."
)

Row = dict[str, Any]


def ask(server: Server, row: Row) -> tuple[str, str]:
    """Return the outcome for one schema, and a line about it."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "response_format": by_schema(server, row["schema"], strict=False),
    }
    try:
        connection = http.client.HTTPConnection(server.host, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        status, data = answer.status, json.loads(answer.read())
        connection.close()
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return "no answer", f"{row['id']}: {exc!r}"
    if status != 200:
        return ("refused" if 400 <= status < 500 else f"error {status}"), f"{row['id']}: {json.dumps(data)[:200]}"
    return judged(row, data)


def judged(row: Row, data: Row) -> tuple[str, str]:
    """Return the outcome of a reply: valid, invalid or not JSON, and whether the reply said so."""
    choice = data["choices"][0]
    said = data.get("tourkit", {}).get("choices", [{"valid": True}])[0]["valid"]
    try:
        found = json.loads(choice["message"]["content"] or "")
    except ValueError:
        how = "not JSON, and said so" if not said else "not JSON"
        return how, f"{row['id']}: {choice['finish_reason']}: {str(choice['message']['content'])[:120]!r}"
    errors = validate(row["schema"], found)
    if not errors:
        return "valid", ""
    return ("invalid, and said so" if not said else "invalid"), f"{row['id']}: {errors[0][:200]}"


def measure(server: Server, rows: list[Row]) -> tuple[Counter[str], list[str], int]:
    """Return the outcomes, lines about those that are not valid, and the number of worker restarts."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(lambda row: ask(server, row), rows))
    outcomes = Counter(outcome for outcome, _ in results)
    return outcomes, [f"{outcome}: {line}" for outcome, line in results if line], restarts(server)


def restarts(server: Server) -> int:
    if server.name != "tourkit":
        return 0 if server.process.poll() is None else 1
    connection = http.client.HTTPConnection(server.host, timeout=60)
    connection.request("GET", "/health")
    workers = json.loads(connection.getresponse().read())["workers"]
    connection.close()
    return sum(worker["restarts"] for worker in workers.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=None, help="number of schemas, spread over the file")
    parser.add_argument("--path", type=Path, default=DATA)
    parser.add_argument("--gguf", type=Path, default=TINY_GGUF)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--binaries", type=Path, help="the folder of llama-server, if it is already built")
    parser.add_argument("--verbose", action="store_true", help="print what was not valid")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for path in (given.path, given.gguf):
        if not path.is_file():
            print(f"skipped: there is no {path.name}", file=sys.stderr)
            return
    with gzip.open(given.path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if given.limit:
        rows = rows[:: max(1, len(rows) // given.limit)][: given.limit]
    for start in starters(given):
        with start() as server:
            report(server.name, rows, *measure(server, rows), given)


def starters(given: argparse.Namespace) -> list[Callable[[], AbstractContextManager[Server]]]:
    found: list[Callable[[], AbstractContextManager[Server]]] = [lambda: tourkit(given.gguf, LIMITS)]
    if given.peers:
        import build_llama_cpp

        binaries = given.binaries or build_llama_cpp.build()
        found += [
            lambda: llama_server(given.gguf, binaries, LIMITS),
            lambda: llama_cpp_server(given.gguf, LIMITS),
        ]
    return found


def report(
    name: str, rows: list[Row], outcomes: Counter[str], lines: list[str], again: int, given: argparse.Namespace
) -> None:
    if given.json:
        print(json.dumps({"server": name, "schemas": len(rows), "restarts": again, **outcomes}))
    else:
        shares = ", ".join(f"{outcome} {count} ({count / len(rows):.2%})" for outcome, count in outcomes.most_common())
        print(f"{name}: {len(rows)} schemas, {again} restarts: {shares}")
    for line in lines if given.verbose else []:
        print(f"  {line}")


if __name__ == "__main__":
    main()
