"""Fixtures for several test modules: the tiny random model, and an environment that is safe offline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import real_weights
from serving import Serving, make_bundle, serving
from starts import Guard

# huggingface_hub reads these when it is imported, so they are set before any test module.
os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_UPDATE_CHECK="1", DO_NOT_TRACK="1")
for name in ("HF_TOKEN", "HF_ENDPOINT", "TOURKIT_URL", "TOURKIT_BUNDLE", "TOURKIT_API_KEY"):
    os.environ.pop(name, None)


# Fixtures that start a process or a server, here or in a test module. A test that uses one gets the marker `starts`.
STARTING = {"served", "client", "server", "runner", "engine", "start", "url", "smollm2", "minilm", "gemma3"}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Guard(), "starts")
    config.pluginmanager.register(real_weights)  # the fixtures of real weights


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and STARTING & set(item.fixturenames):
            item.add_marker("starts")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF with random weights, made by tourkit itself."""
    from tools.random_gguf import write_random_gguf

    path = tmp_path_factory.mktemp("tiny") / "tiny-random.gguf"
    write_random_gguf(path)
    return path


@pytest.fixture(scope="session")
def served(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`tourkit serve --offline` on a bundle of the tiny random model."""
    folder = tmp_path_factory.mktemp("served")
    bundle = make_bundle(folder / "bundle", tiny_gguf)
    with serving(bundle, folder / "log", "--offline", "--context", "2048") as running:
        yield running


@pytest.fixture(scope="session")
def client(served: Serving) -> Iterator[openai.OpenAI]:
    """The official client, unmodified, connected to that server."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def hub_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's own token and cache from the tests."""
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf-home"))
