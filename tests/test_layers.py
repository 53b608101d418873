"""The layers: which package may import which, which may load a heavy library, and which may use the network."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tourkit.stacks import STACKS

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "tourkit"
HEAVY = {"llama_cpp", "llguidance", "vllm", "torch", "transformers", "onnxruntime", "onnxruntime_genai", "ray", "numpy"}
LIBRARIES = HEAVY | {"huggingface_hub", "jinja2", "jsonschema", "starlette", "uvicorn", "aiohttp", "gguf", "re2"}
LIBRARIES |= {"urllib3", "tqdm", "prometheus_client", "httptools"}

# A package may import any package on a line below its own, and no other. docs/architecture.md shows the same table.
TABLE = """
__main__
cli
commands
checks
server pipelines fetch mirror
backends
engine planning
bundle grammar
manifest
hardware
stacks generation launch headers
scratch defaults calling
files data progress offline client connections
isolation
units net terminal parent
errors
"""
LEVELS = {name: level for level, line in enumerate(reversed(TABLE.split("\n"))) for name in line.split()}
# Inside server/: a package that is no key here may import all packages of server/.
SERVER = {"gateway": {"api", "contract", "http"}, "worker": {"api", "contract", "http"}, "api": {"contract", "http"}}


def modules() -> dict[str, Path]:
    """Return the path of every module by its name below tourkit. A package has the name of its folder."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


MODULES = modules()


def top_package(name: str) -> str:
    return name.split(".")[0]


@cache
def imports(path: Path, *, top_level_only: bool = False, strings: bool = False) -> set[str]:
    """Return the full names that a module imports, anywhere or at its top level. `strings`: also names in strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = docstrings(tree)
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are written in full"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif strings and isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            found |= set(re.findall(r"\btourkit(?:\.[a-z_]+)+", node.value))
    return found


def docstrings(tree: ast.Module) -> set[ast.expr]:
    """Return the constants that are docstrings: these import nothing."""
    owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    first = [each.body[0] for each in ast.walk(tree) if isinstance(each, owners) and each.body]
    return {each.value for each in first if isinstance(each, ast.Expr)}


def own(name: str, *, strings: bool = False) -> Iterator[str]:
    """Yield the modules of tourkit that a module imports anywhere, by their names below tourkit."""
    for imported in imports(MODULES[name], strings=strings):
        below = imported.removeprefix("tourkit.")
        while below and below not in MODULES and "." in below:
            below = below.rpartition(".")[0]
        if imported.startswith("tourkit.") and below in MODULES:
            yield below


def test_every_package_and_module_is_in_the_table() -> None:
    assert {top_package(name) for name in MODULES} == LEVELS.keys()


def test_the_page_on_the_architecture_shows_this_table_and_every_module() -> None:
    page = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = [[line.split() for line in block.splitlines()] for block in page.split("```\n")[1::2]]
    rows = re.findall(r"^\| `([a-z/]+)/` \|[^|]*\|([^|]*)\|$", page, flags=re.MULTILINE)
    shown = {package: set(re.findall(r"`([a-z_]+)/?`", cell)) for package, cell in rows}
    there = {package: {path.stem for path in (PACKAGE / package).glob("[a-z]*")} for package in shown}
    inside = {package: {name for name in names if f"{package}/{name}" in shown} for package, names in there.items()}

    assert [line.split() for line in TABLE.strip().splitlines()] in blocks
    assert {package.split("/")[0] for package in shown} == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert shown == {package: names - inside[package] for package, names in there.items()}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_one_way(name: str) -> None:
    level = LEVELS[top_package(name)]
    uphill = {
        other
        for other in own(name, strings=True)
        if top_package(other) != top_package(name) and LEVELS[top_package(other)] >= level
    }

    assert not uphill, f"tourkit.{name} may not import {uphill}"


@pytest.mark.parametrize("name", sorted(each for each in MODULES if each.startswith("server.")))
def test_gateway_and_worker_agree_through_api_contract_and_http_only(name: str) -> None:
    """The gateway starts worker modules as processes by their names. It does not import them."""
    package = name.split(".")[1]
    others = {other.split(".")[1] for other in own(name) if other.startswith("server.")} - {package}

    assert others <= SERVER.get(package, others), f"tourkit.{name} may not import {others}"


def test_no_imports_go_in_a_circle() -> None:
    """The packages around a module are left out, because importing the module imports them."""
    graph = {name: {other for other in own(name) if other != name and not is_around(other, name)} for name in MODULES}
    while free := {name for name, others in graph.items() if not others}:
        graph = {name: others - free for name, others in graph.items() if name not in free}

    assert not graph, f"in circles or above one: {graph}"


def is_around(package: str, name: str) -> bool:
    return name.startswith(f"{package}.")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_inference_libraries_are_imported_inside_functions(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(MODULES[name], top_level_only=True)}

    assert not roots & HEAVY


def test_only_fetch_imports_the_hub_client_and_an_http_client() -> None:
    clients = {"huggingface_hub", "urllib3", "requests", "httpx"}
    users = {
        top_package(name) for name, path in MODULES.items() if {each.split(".")[0] for each in imports(path)} & clients
    }

    assert users == {"fetch"}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"stacks"}))
def test_stacks_are_listed_in_one_place(name: str) -> None:
    """The facts about a stack are in its row of stacks.py, so a new stack needs only a row and a backend."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    groups = (node for node in ast.walk(tree) if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict))
    for group in groups:
        members = group.keys if isinstance(group, ast.Dict) else group.elts
        named = {each.value for each in members if isinstance(each, ast.Constant)} & STACKS.keys()

        assert len(named) < 2, f"tourkit.{name} lists {named} in line {group.lineno}"


def test_the_client_imports_the_standard_library_alone() -> None:
    roots = {imported.split(".")[0] for imported in imports(MODULES["client"])}

    assert roots <= sys.stdlib_module_names


def test_test_modules_import_no_other_test_module() -> None:
    """Code that two test modules share is in a module of its own, with the name of its content."""
    imported = {path.name: {each.split(".")[-1] for each in imports(path)} for path in TESTS.glob("*.py")}
    names = {path.stem for path in TESTS.glob("test_*.py")}

    assert {name: others & names for name, others in imported.items() if others & names} == {}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_is_short_and_so_are_its_functions(name: str) -> None:
    """At most 400 lines, except for the client, which is copied as one file. Functions have at most 60 lines."""
    text = MODULES[name].read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > 60]

    assert name == "client" or len(text.splitlines()) <= 400
    assert not long


@pytest.mark.starts
def test_the_command_line_starts_without_any_library_but_click() -> None:
    """`tourkit --help` must not import what only one command needs."""
    code = f"import sys, tourkit.cli; print(*sorted({LIBRARIES!r} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


@pytest.mark.starts
def test_help_prints_without_importing_an_inference_library() -> None:
    code = (
        "import sys, tourkit.cli\n"
        "code = tourkit.cli.main(['--help'])\n"
        f"sys.exit(code or len({LIBRARIES!r} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "serve" in done.stdout
