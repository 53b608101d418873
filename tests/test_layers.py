"""Imports run one way, heavy libraries stay in the functions that need them, and only hub.py may fetch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tourkit"
HEAVY = {"llama_cpp", "llguidance", "vllm", "torch", "transformers", "onnxruntime", "onnxruntime_genai", "ray", "numpy"}
LIBRARIES = HEAVY | {"huggingface_hub", "jinja2", "jsonschema", "starlette", "uvicorn", "aiohttp", "gguf"}

# A module may import modules of its own layer and of lower ones.
LAYERS = [
    {"errors", "data", "progress", "client", "engine.types", "tourkit"},
    {"files", "hardware", "manifest", "adapters", "engine", "backends", "offline", "tiny", "connections"}
    | {"cgroups", "gpu_probe", "model_shape", "memory"},
    {"index", "lock", "hub", "transfer", "server.wire", "server.replies"},
    {
        "bundle",
        "plan",
        "candidates",
        "fitting",
        "growing",
        "inventory",
        "assemble",
        "prefetch",
        "catalogue",
        "mirror",
        "mirror_repos",
        "mirror_page",
        "pipelines",
        "server",
    },
    {"demo", "commands", "cli", "__main__"},
]


def modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__") if name != "__init__" else "tourkit": path for path, name in names.items()}


def layer(name: str) -> int:
    """The layer of a module, by its own name or by the folder it is in."""
    for candidate in (name, name.split(".")[0]):
        for level, members in enumerate(LAYERS):
            if candidate in members:
                return level
    raise AssertionError(f"tourkit.{name} is in no layer: put it into one")


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(imported: set[str]) -> set[str]:
    known = set(modules())
    return {name.removeprefix("tourkit.") for name in imported if name.removeprefix("tourkit.") in known} - {"tourkit"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_one_way(name: str) -> None:
    uphill = {other for other in own(imports(modules()[name], top_level_only=False)) if layer(other) > layer(name)}

    assert not uphill, f"tourkit.{name} is below {uphill}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_inference_libraries_are_imported_inside_functions(name: str) -> None:
    roots = {imported.split(".")[0] for imported in imports(modules()[name], top_level_only=True)}

    assert not roots & HEAVY


def test_only_the_hub_module_imports_the_hub_client() -> None:
    users = {
        n
        for n, p in modules().items()
        if any(i.startswith("huggingface_hub") for i in imports(p, top_level_only=False))
    }

    assert users == {"hub"}


def test_the_command_line_starts_without_any_library_but_click() -> None:
    """`tourkit --help` must not pay for what a single command needs."""
    code = f"import sys, tourkit.cli; print(*sorted({LIBRARIES!r} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_help_prints_without_importing_an_inference_library() -> None:
    code = (
        "import sys, tourkit.cli\n"
        "code = tourkit.cli.main(['--help'])\n"
        f"sys.exit(code or len({LIBRARIES!r} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "serve" in done.stdout
