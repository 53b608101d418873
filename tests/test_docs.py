"""Documents that can go stale are held to the code: the command reference, links, make targets, help texts."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from tourkit.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_what_help_prints() -> None:
    """When this fails: `make docs`."""
    assert (ROOT / "docs" / "cli.md").read_text() == tool("cli_reference").render()


def leaf_commands(command: click.Command, path: str = "tourkit") -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [leaf for name, child in command.commands.items() for leaf in leaf_commands(child, f"{path} {name}")]
    return [(path, command)]


@pytest.mark.parametrize(
    ("path", "command"), leaf_commands(cli), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_help_with_an_example_of_itself(path: str, command: click.Command) -> None:
    assert command.help is not None
    assert re.search(rf"Examples?: {path}\b", command.help)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets


def test_make_alone_lists_the_targets() -> None:
    assert ".DEFAULT_GOAL := help" in (ROOT / "Makefile").read_text()


def test_the_version_in_the_changelog_is_not_behind() -> None:
    from tourkit import __version__

    text = (ROOT / "CHANGELOG.md").read_text()

    assert "## Unreleased" in text or f"## {__version__}" in text
