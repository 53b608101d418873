"""Run the tours: `python -m tools.clients [NAME]… [--model FILE]`.

It serves a model with `tourkit serve --offline` (the tiny one, or `--model FILE`), installs each client into an
environment of its own below build/clients, and runs its example of docs/clients.md and its tour. It prints each check
and a table, and ends with 1 if a check failed or a client could not be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.clients.clients import EXAMPLE_URL, Client, Example, read_clients, read_examples
from tools.clients.install import Missing, folder_of, install, program_of, version_of
from tools.clients.serving_models import TINY, served

_TOURS = Path(__file__).parent / "tours"
_SECONDS = 900.0  # for one script: a client that hangs must not stop the others
_MARKS = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a client. `result`: passed, failed or skipped. `detail`: the error, or why it was skipped."""

    name: str
    result: str
    seconds: float = 0.0
    detail: str = ""


def main() -> int:
    clients = read_clients()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="clients to run; all of them without it")
    parser.add_argument("--model", type=Path, default=TINY, help="a GGUF file to serve")
    parser.add_argument("--url", help="a server that runs already, instead of a new one; without /v1")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - {client.name for client in clients})
    if unknown:
        parser.error(f"no such client: {', '.join(unknown)}; there are {', '.join(each.name for each in clients)}")
    chosen = [client for client in clients if not given.names or client.name in given.names]
    if given.url:
        return _run_all(chosen, given.url)
    with served(given.model) as url:
        return _run_all(chosen, url)


def _run_all(clients: list[Client], url: str) -> int:
    """Run the clients one after the other, print their table, and return the exit code."""
    examples = read_examples()
    results: dict[str, list[Check]] = {}
    for client in clients:
        print(f"\n{client.name}", flush=True)
        results[client.name] = []
        for check in _checks(client, examples[client.name], url):
            results[client.name].append(check)
            detail = " ".join(check.detail.split())[:400]
            print(f"  {_MARKS[check.result]} {check.name:<34} {check.seconds:6.2f} s  {detail}", flush=True)
    _print_table(clients, results)
    return int(any(check.result == "failed" for checks in results.values() for check in checks))


def _checks(client: Client, example: Example, url: str) -> Iterator[Check]:
    try:
        install(client)
    except Missing as error:
        yield Check("install", "failed", detail=str(error))
        return
    script = folder_of(client) / f"example{example.ending}"
    script.write_text(example.text.replace(EXAMPLE_URL, url), encoding="utf-8")
    start = time.monotonic()
    code, lines, errors = _run(client, script, url)
    wrong = errors or f"ended with {code}" if code else "" if lines else "it printed nothing"
    yield Check("example", "failed" if wrong else "passed", time.monotonic() - start, wrong)
    yield from _tour(client, url)


def _tour(client: Client, url: str) -> Iterator[Check]:
    """Run the tour of a client. Its lines of JSON are the checks; clients may print others between them."""
    code, lines, errors = _run(client, client.tour, url)
    found = [json.loads(line) for line in lines if line.startswith('{"check":')]
    for line in found:
        yield Check(line["check"], line["result"], line["seconds"], line["detail"])
    if not found or (code and all(line["result"] != "failed" for line in found)):
        yield Check("tour", "failed", detail=errors or f"ended with {code}")


def _run(client: Client, script: Path, url: str) -> tuple[int, list[str], str]:
    """Run a script in the environment of a client; return its exit code, its lines and the end of its stderr."""
    command = [program_of(client, script.suffix), str(script)]
    if client.node:  # modules are looked for beside the script
        script = _beside_modules(client, script)
        command = ["node", str(script)]
    try:
        ran = subprocess.run(
            command,
            env=_environment(client, url),
            cwd=folder_of(client),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, [], f"no end after {_SECONDS:.0f} s"
    return ran.returncode, ran.stdout.splitlines(), ran.stderr.strip()[-1500:]


def _beside_modules(client: Client, script: Path) -> Path:
    """Copy a script and what the tours share into the folder that has node_modules."""
    for each in (script, _TOURS / "tour.mjs"):
        copy = folder_of(client) / each.name
        if each != copy:
            copy.write_bytes(each.read_bytes())
    return folder_of(client) / script.name


def _environment(client: Client, url: str) -> dict[str, str]:
    """Return the variables of a client: no keys of the user, a home of its own, and nothing that reports its use."""
    folder = folder_of(client)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    path = os.pathsep.join([str(folder / "venv" / "bin"), os.environ["PATH"]])
    quiet = {"DO_NOT_TRACK": "1", "HAYSTACK_TELEMETRY_ENABLED": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    quiet |= {"OPENAI_AGENTS_DISABLE_TRACING": "1", "HF_HUB_OFFLINE": "1", "PYDANTIC_DISABLE_PLUGINS": "__all__"}
    here = {"TOURKIT_URL": url, "HOME": str(home), "PATH": path, "PYTHONPATH": str(_TOURS), "NO_PROXY": "127.0.0.1"}
    return {"LANG": "C.UTF-8", **quiet, **here}


def _print_table(clients: list[Client], results: dict[str, list[Check]]) -> None:
    print(f"\n{'client':<18} {'version':<10} passed failed skipped")
    for client in clients:
        counts = Counter(check.result for check in results[client.name])
        figures = f"{counts['passed']:>6} {counts['failed']:>6} {counts['skipped']:>7}"
        print(f"{client.name:<18} {version_of(client):<10} {figures}")


if __name__ == "__main__":
    sys.exit(main())
