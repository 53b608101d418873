"""The tours of other clients (tools/clients): their data is complete, and those of openai-python and curl pass here.

`make test-clients` runs the others, each in an environment of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Serving

from tools.clients import clients
from tools.clients.clients import EXAMPLE_URL, PAGE, Client, read_clients, read_examples

CLIENTS = read_clients()
TOURS = Path(clients.__file__).parent / "tours"
IN_CI = ("curl", "openai-python")
EVERY_CLIENT = pytest.mark.parametrize("client_", CLIENTS, ids=lambda client: client.name)


def test_every_client_has_an_example_on_the_page_and_the_page_has_no_other() -> None:
    assert list(read_examples()) == [client.name for client in CLIENTS]
    assert PAGE.read_text(encoding="utf-8").count("\n## ") == len(CLIENTS)


@EVERY_CLIENT
def test_every_client_has_pinned_versions_and_a_tour(client_: Client) -> None:
    pin = r"@?[\w./-]+@\d[\w.]*" if client_.node else r"[\w.-]+(\[[\w,]+\])?==\d[\w.]*"

    assert all(re.fullmatch(pin, package) for package in client_.packages)
    assert client_.tour.is_file()


@EVERY_CLIENT
def test_an_example_is_short_and_has_the_address_that_the_tours_replace(client_: Client) -> None:
    example = read_examples()[client_.name]
    lines = [line for line in example.text.splitlines() if line and "import " not in line]

    assert example.text.count(EXAMPLE_URL) == 1
    assert len(lines) <= 6


@pytest.mark.starts
@pytest.mark.parametrize("client_", [each for each in CLIENTS if each.name in IN_CI], ids=lambda client: client.name)
def test_the_tour_of_a_client_passes(client_: Client, served: Serving) -> None:
    """On a model with random weights; `make test-clients` has the same tours on a trained one."""
    environment = os.environ | {"TOURKIT_URL": served.url}
    ran = subprocess.run([sys.executable, client_.tour], capture_output=True, text=True, env=environment, check=False)
    checks = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"check":')]

    failed = [f"{each['check']}: {each['detail']}" for each in checks if each["result"] == "failed"]

    assert [each["check"] for each in checks if each["result"] == "skipped"] == ["embeddings"]  # no model for them
    assert "\n".join(failed) == "", ran.stderr
    assert len(checks) > 5
    assert ran.returncode == 0, ran.stderr


TOUR = """
from tour import Skip, check, raised, run

@check
def right() -> str:
    return "a note"

@check
async def wrong() -> None:
    assert 1 == 2, "one is not two"

@check
def no_error() -> None:
    raised(ValueError, lambda: 7)

@check
def left_out() -> None:
    raise Skip("no reason")

run()
"""


@pytest.mark.starts
def test_a_tour_prints_each_check_and_fails_if_one_does(tmp_path: Path) -> None:
    (tmp_path / "a_tour.py").write_text(TOUR)
    environment = os.environ | {"TOURKIT_URL": "http://127.0.0.1:1", "PYTHONPATH": str(TOURS)}
    command = [sys.executable, str(tmp_path / "a_tour.py")]

    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    found = [json.loads(line) for line in ran.stdout.splitlines() if line]
    assert [(each["check"], each["result"]) for each in found] == [
        ("right", "passed"),
        ("wrong", "failed"),
        ("no error", "failed"),
        ("left out", "skipped"),
    ]
    assert [each["detail"] for each in found] == [
        "a note",
        "line 10: AssertionError: one is not two",
        "line 14: AssertionError: no ValueError was raised; the result is 7",
        "no reason",
    ]
    assert ran.returncode == 1
