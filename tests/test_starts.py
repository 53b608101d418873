"""A test that starts something has the marker `starts`, or it fails with the marker's name."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from serving import Serving
from starts import LIBRARIES

REFUSED = r"mark it with @pytest\.mark\.starts"


def test_without_it_no_process_starts() -> None:
    with pytest.raises(pytest.fail.Exception, match=REFUSED):
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_without_it_no_socket_listens() -> None:
    with socket.socket() as server, pytest.raises(pytest.fail.Exception, match=REFUSED):
        server.bind(("127.0.0.1", 0))


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_without_it_no_inference_library_is_loaded(library: str) -> None:
    """The event is raised here, as Python does for an import: the library may be loaded already, or not installed."""
    with pytest.raises(pytest.fail.Exception, match=REFUSED):
        sys.audit("import", library, None, None, None, None)


@pytest.mark.starts
def test_with_it_a_process_starts_and_a_socket_listens() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] > 0


def test_asking_for_a_server_marks_a_test(request: pytest.FixtureRequest, served: Serving) -> None:
    assert request.node.get_closest_marker("starts") is not None
    assert served.process.poll() is None
