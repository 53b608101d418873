"""A hub that is wrong on purpose: every fault of it ends in one line, and takes no memory that the hub asks for."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_hub import COMMIT, REPO, Fault, FaultyHub

from tourkit.errors import HubError, WrongContent
from tourkit.fetch.download import download
from tourkit.fetch.http import Patience
from tourkit.fetch.hub import Hub
from tourkit.fetch.stream import MOST_REDIRECTS
from tourkit.manifest.models import HubFile, PinnedFile, Source

pytestmark = pytest.mark.starts

QUICK = Patience(attempts=2, delay_s=0.01, longest_s=0.01, retry_after_s=0.01, stall_s=20.0)
WEIGHTS = b"w" * 100_000
FILES = {"tiny.gguf": WEIGHTS, "config.json": b"{}\n"}
MALFORMED = (
    *("http://[::1", "http://[bad]/", "http://host:99999999/x", "http://host:port/x", "http://.../x", "http://a b/x"),
    *("\x01\x02", "http://host/\x7f", "http://xn--\xff/", f"http://{'a' * 300}/x", "x" * 20_000),
)


class Silent:
    """A FetchListener that shows nothing."""

    def on_start(self, total_bytes: int, to_fetch: int) -> None: ...

    def on_bytes(self, n: int, kind: str) -> None: ...

    def on_again(self, n: int) -> None: ...

    def on_note(self, text: str) -> None: ...


@pytest.fixture
def server() -> Iterator[FaultyHub]:
    with FaultyHub(FILES) as server:
        yield server


@pytest.fixture
def hub(server: FaultyHub) -> Iterator[Hub]:
    made = Hub(server.url, patience=QUICK)
    yield made
    made.close()


def refused(hub: Hub, question: str) -> str:
    """Ask the hub, and return the one line that says why there is no answer."""
    questions: dict[str, Callable[[], object]] = {
        "info": lambda: hub.info(REPO, "main"),
        "tree": lambda: hub.tree(REPO, COMMIT),
        "bytes": hub.open(Source(REPO, COMMIT, "config.json")).__enter__,
    }
    with pytest.raises(HubError) as error:
        questions[question]()
    assert "\n" not in str(error.value)
    return str(error.value)


def answers(server: FaultyHub, fault: Fault) -> None:
    """Answer every question about repositories with a fault, and every file with its redirect if it has one."""
    server.api_faults = [replace(fault) for _ in range(20)]
    if "Location" in fault.headers:
        server.refuse = (fault.status, fault.headers)


@pytest.mark.parametrize("question", ["info", "tree", "bytes"])
def test_a_redirect_to_no_address_is_refused_at_once(hub: Hub, server: FaultyHub, question: str) -> None:
    for asked, location in enumerate(MALFORMED, 1):
        answers(server, Fault("status", status=302, headers={"Location": location}))

        assert "redirects to an invalid address: check HF_ENDPOINT" in refused(hub, question), location
        assert len(server.paths) == asked


@pytest.mark.parametrize("question", ["info", "tree", "bytes"])
def test_a_redirect_to_another_scheme_is_refused_at_once(hub: Hub, server: FaultyHub, question: str) -> None:
    for asked, location in enumerate(("ftp://host/x", "file:///etc/passwd", "data:,x", "gopher://host/x"), 1):
        answers(server, Fault("status", status=302, headers={"Location": location}))

        scheme = location.partition(":")[0]
        assert f"redirects to {scheme}:// instead of http" in refused(hub, question)
        assert len(server.paths) == asked


@pytest.mark.parametrize("question", ["info", "tree", "bytes"])
def test_redirects_in_a_circle_end(hub: Hub, server: FaultyHub, question: str) -> None:
    answers(server, Fault("status", status=302, headers={"Location": f"/api/models/{REPO}"}))
    if question == "bytes":
        server.refuse = (302, {"Location": f"/{REPO}/resolve/{COMMIT}/config.json"})

    assert f"more than {MOST_REDIRECTS} redirects: check {server.url}" in refused(hub, question)
    assert len(server.paths) == MOST_REDIRECTS + 1


@pytest.mark.parametrize("question", ["info", "tree"])
def test_an_answer_that_cannot_be_unpacked_is_one_line(hub: Hub, server: FaultyHub, question: str) -> None:
    whole = gzip.compress(json.dumps({"id": REPO, "sha": COMMIT, "tags": []}).encode())
    bodies = {b"no gzip": "cannot be unpacked: run it again", whole[:-20]: "does not answer as a hub"}
    for body, says in bodies.items():
        answers(server, Fault("status", status=200, headers={"Content-Encoding": "gzip"}, body=body))

        assert says in refused(hub, question)


OTHER_FORMS = {
    "a list": b"[1]",
    "a list of lists": b"[[]]",
    "a text": b'"hub"',
    "a number": b"3",
    "null": b"null",
    "nested": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "a commit that is a list": json.dumps({"id": REPO, "sha": [COMMIT]}).encode(),
    "a commit with an escape sequence": json.dumps({"id": REPO, "sha": "\x1b[2J"}).encode(),
    "a file without a size": json.dumps([{"type": "file", "path": "x", "oid": "1"}]).encode(),
    "a file with a size as text": json.dumps([{"type": "file", "path": "x", "oid": "1", "size": "9"}]).encode(),
    "a file of negative size": json.dumps([{"type": "file", "path": "x", "oid": "1", "size": -3}]).encode(),
    "a file whose path is a number": json.dumps([{"type": "file", "path": 3, "oid": "1", "size": 3}]).encode(),
    "a file whose hash is none": json.dumps(
        [{"type": "file", "path": "x", "oid": "1", "size": 3, "lfs": {"oid": "x", "size": 3, "pointerSize": 1}}]
    ).encode(),
}


@pytest.mark.parametrize("question", ["info", "tree"])
def test_an_answer_of_another_form_is_no_hubs(hub: Hub, server: FaultyHub, question: str) -> None:
    for form, body in OTHER_FORMS.items():
        answers(server, Fault("status", status=200, headers={"Content-Type": "application/json"}, body=body))

        assert f"{server.url} does not answer as a hub" in refused(hub, question), form


@pytest.mark.parametrize("size", [len(WEIGHTS) - 1, len(WEIGHTS) + 1, 1, 10**15])
def test_a_size_that_lies_under_a_right_hash_is_refused_before_a_byte(
    hub: Hub, server: FaultyHub, tmp_path: Path, size: int
) -> None:
    """The hub's list gave the lock a wrong size; the redirect has the right SHA-256."""
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    file = PinnedFile("models/m/q/tiny.gguf", size, sha256, Source(REPO, COMMIT, "tiny.gguf"))
    with FaultyHub(FILES) as server.cdn, pytest.raises(WrongContent, match="the hub offers 100000 bytes") as error:
        download(file, tmp_path, hub, Silent(), threading.Event())

    assert "\n" not in str(error.value)
    assert all(part.stat().st_size == 0 for part in tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("size", "says"),
    [(2, "do not match"), (4, "3 bytes instead of 4"), (10**7, "3 bytes instead of"), (10**15, "outside LFS")],
)
def test_a_small_files_size_that_lies_takes_no_memory(hub: Hub, size: int, says: str) -> None:
    blob = hashlib.sha1(b"blob 3\0{}\n", usedforsecurity=False).hexdigest()

    with pytest.raises(HubError, match=says) as error:
        hub.read(REPO, COMMIT, HubFile("config.json", size, None, blob))

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://host:port", "http://host:99999999", "http://", "//host"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(HubError, match="correct HF_ENDPOINT"):
        Hub(endpoint)


def test_an_endpoint_that_cannot_be_a_hosts_name_is_unknown() -> None:
    hub = Hub("http://.../", patience=QUICK)

    with pytest.raises(HubError, match="there is no host"), hub.open(Source(REPO, COMMIT, "config.json")):
        pass
    hub.close()
