"""The built-in templates: list them, show one, copy one into a project, load one to run it.

A template is a folder with one Python file that has a function `run(document, client)`.
"""

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import tourkit.client
from tourkit.client import Client
from tourkit.data import TEMPLATES
from tourkit.errors import LocalError, UsageError, said_by
from tourkit.files import write_atomic

Run = Callable[[dict[str, Any], Client], dict[str, Any]]

_ROLE = "tool"  # of a template that states none
_VENDORED_INIT = '"""The client of tourkit, copied so that this folder runs with plain Python."""\n'


@dataclass(frozen=True, slots=True)
class Listed:
    """One built-in template: its name, its purpose, the role it asks, its folder."""

    name: str
    summary: str
    role: str
    path: Path


@dataclass(frozen=True, slots=True)
class Template:
    """A loaded template. `role`: the model it asks if the caller chooses no other."""

    name: str
    path: Path
    role: str
    run: Run


def available() -> tuple[Listed, ...]:
    """Return every built-in template, sorted by name. Their files are read, not run."""
    files = sorted(path for path in TEMPLATES.glob("*/*.py") if path.stem == path.parent.name)
    return tuple(_listed(path) for path in files)


def readme(name: str) -> str:
    """Return the README of a built-in template. Raises UsageError for an unknown name."""
    return (_builtin(name) / "README.md").read_text(encoding="utf-8")


def copy(name: str, dest: Path, *, standalone: bool = False, force: bool = False) -> tuple[Path, ...]:
    """Copy a template's files into the folder `dest`, with `standalone` the client too. Return the new paths.

    Raises UsageError if a file already exists (the message names all of them) unless `force`, LocalError if the folder
    cannot be written.
    """
    source = _builtin(name)
    files = {dest / path.relative_to(source): path.read_bytes() for path in _files(source)}
    if standalone:
        files[dest / "tourkit" / "__init__.py"] = _VENDORED_INIT.encode()
        files[dest / "tourkit" / "client.py"] = Path(tourkit.client.__file__).read_bytes()
    taken = [str(path.relative_to(dest)) for path in files if path.exists()]
    if taken and not force:
        raise UsageError(f"{dest} already holds {', '.join(taken)}: choose another folder, or add --force")
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
    except OSError as error:
        raise LocalError(f"cannot write to {dest} ({error.strerror}): choose another folder") from error
    return tuple(files)


def load_template(name_or_path: str | Path) -> Template:
    """Load a built-in template by name, or a copy by the path of its folder or file.

    Raises UsageError if there is no such template, if its file does not load, or if the file has no `run`.
    """
    path = template_file(name_or_path)
    module = _imported(path)
    run = getattr(module, "run", None)
    if not callable(run):
        raise UsageError(f"{path} has no function run(document, client): add one, as the built-in templates do")
    return Template(path.stem, path, str(getattr(module, "ROLE", _ROLE)), run)


def _files(folder: Path) -> list[Path]:
    """Return the files of a template, without compiled Python and hidden files."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _builtin(name: str) -> Path:
    names = [listed.name for listed in available()]
    if name not in names:
        raise UsageError(f"no template {name!r}: choose one of {', '.join(names)}")
    return TEMPLATES / name


def _listed(path: Path) -> Listed:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Listed(path.stem, summary, _role(tree), path.parent)


def declared_role(path: Path) -> str:
    """Return the role that a template's file states, without running the file. Raises UsageError for no Python."""
    try:
        return _role(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} does not load ({type(error).__name__}: {error}): fix it") from error


def _role(tree: ast.Module) -> str:
    role = _ROLE
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            role = str(node.value.value) if "ROLE" in names else role
    return role


def template_file(name_or_path: str | Path) -> Path:
    """Return the Python file that a name, a folder or a path means. Raises UsageError if there is none."""
    text = str(name_or_path)
    if re.fullmatch(r"\w+", text) and any(listed.name == text for listed in available()):
        return TEMPLATES / text / f"{text}.py"
    path = Path(name_or_path)
    if path.is_file():
        return path.resolve()
    if not path.is_dir():
        names = ", ".join(listed.name for listed in available())
        raise UsageError(f"no template {text!r}: choose one of {names}, or give the path of a copy")
    files = [file for file in sorted(path.glob("*.py")) if not file.name.startswith("_")]
    named = [file for file in files if file.stem == path.resolve().name]
    if len(named or files) != 1:
        raise UsageError(f"{path} holds {len(files)} Python files: give the path of the template's file")
    return (named or files)[0].resolve()


def _imported(path: Path) -> ModuleType:
    """Run the file as a module with a unique name."""
    name = f"tourkit_template_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file: give the path of the template's file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # at the end: the files beside it can be imported, but hide no other module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path} does not load ({type(error).__name__}: {said_by(error)}): fix it") from error
    return module
