"""A test that starts something must have the marker `starts`. Without the marker it fails when it starts something.

"Something" is a process, a listening socket, or an inference library. Python reports each of them as an audit event, no
matter which library does it.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
LIBRARIES = {"llama_cpp", "torch", "transformers", "onnxruntime_genai", "vllm"}


def what_starts(event: str, arguments: tuple[Any, ...]) -> str:
    """Return in words what an audit event starts; empty if it starts nothing."""
    if event in PROCESSES:
        return f"a process ({event})"
    if event == "socket.bind":
        return f"a listening socket ({arguments[1]})"
    if event == "import" and arguments[0] in LIBRARIES:
        return f"an inference library ({arguments[0]})"
    return ""


class Guard:
    """A pytest plugin that checks the markers of the tests."""

    def __init__(self) -> None:
        self.item: pytest.Item | None = None
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.item is None or self.item.get_closest_marker("starts"):
            return
        if what := what_starts(event, arguments):
            pytest.fail(f"{self.item.name} starts {what}: mark it with @pytest.mark.starts")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.item = item
        try:
            return (yield)
        finally:
            self.item = None
