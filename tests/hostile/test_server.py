"""A running server, and the requests that once stopped it: each is answered, and the worker lives on."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving import Serving

from hostile.cases import Case, cases, chat

CASES = cases()
_HANG = 120  # seconds: only a server that hangs reaches this


def asked(served: Serving, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Send one request on a connection of its own. Return the status and the JSON of the answer."""
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=_HANG)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def workers(served: Serving) -> dict[str, Any]:
    """Return the process ids and the restarts of all workers."""
    found = asked(served, "/health")[1]["workers"]
    return {name: (each["pid"], each["restarts"]) for name, each in found.items()}


@pytest.fixture(scope="module")
def loaded(served: Serving) -> Serving:
    """The server, when its worker has started."""
    assert asked(served, "/v1/models/load", b'{"model": "tool"}')[0] == 200
    return served


@pytest.mark.starts
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hostile_request_is_answered_and_the_worker_goes_on(loaded: Serving, case: Case) -> None:
    before = workers(loaded)

    status, answer = asked(loaded, case.path, case.body)

    assert status in case.statuses, answer
    if status != 200:
        assert len(json.dumps(answer)) < 2000
        assert "\n" not in answer["error"]["message"]
    assert workers(loaded) == before
    assert asked(loaded, "/v1/chat/completions", chat())[0] == 200
