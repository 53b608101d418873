"""Documents that can go stale are held to the code: commands and their options, files, modules, links, make targets.

The commands of `console` blocks are run, and what they print has the shape that the page shows (tests/page_runner.py
says how). Commands in other blocks are listed in NOT_RUN with the reason why they cannot run here.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import page_runner
import pytest
from mirroring import tiny_hub

from tools import cli_reference, gpu_table
from tourkit import __version__
from tourkit.cli import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tourkit"
PAGES = [
    *(ROOT / name for name in ("README.md", "README.ru.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "bundle" / name for name in ("START_HERE.md", "START_HERE.ru.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "templates").glob("*/README.md")),
]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))

# Commands in blocks that are not run, by page: how they begin, and why they cannot run here.
SYNOPSIS = "a synopsis"
NEEDS_INDEX = "installs from the package index"
FROM_INDEX = "collects from the package index; tests/test_gpu_page.py and tests/test_wheels.py have one of their own"
TRAVELS = "for another machine, where BUNDLE is a folder; tests/test_install.py runs the installer"
FOLLOWED = "tests/test_bundle_installs.py follows the page with a bundle of the tiny model"
CUDA = "CUDA's packages have gigabytes, and the build takes hours"
DOCUMENTS = "the reader's documents; tests/test_e2e.py and tests/test_templates.py run the template"
REHEARSED = "tests/test_bundle_installs.py rehearses a bundle with wheels"
OF_READMES = {"git clone": "clones and builds"}
OF_READMES |= {"tourkit wheels": FROM_INDEX, "tourkit rehearse": REHEARSED, "sh": TRAVELS}
OF_READMES |= {
    "tourkit prefetch cpu-16gb-2026": "fetches 9 GiB; its dry run is run further down",
    "tourkit serve": "the bundle of those 9 GiB; a small one is served further down",
}
NOT_RUN = {
    "README.md": OF_READMES,
    "README.ru.md": OF_READMES,
    **{
        f"bundle/{page}": dict.fromkeys(("cd", "tourkit", "curl", "python first.py"), FOLLOWED)
        for page in ("START_HERE.md", "START_HERE.ru.md")
    },
    "docs/batch.md": {"tourkit run NAME": SYNOPSIS},
    "docs/gpu-wheels.md": {"tourkit wheels": FROM_INDEX, "pip": CUDA},
    "docs/clients.md": {"curl": "needs a server; tests/test_clients.py runs it"},
    "docs/http-api.md": {"tourkit serve": "a synopsis, and a model of the reader's"},
    "docs/install.md": {
        "pip": NEEDS_INDEX,
        "CMAKE_ARGS=": NEEDS_INDEX,
        "sh": TRAVELS,
        "tourkit wheels": FROM_INDEX,
        "tourkit prefetch": "an archive of the reader's; tests/test_python_archive.py carries one",
    },
    "docs/mirror.md": {"export HF_ENDPOINT": "names another machine", "hf download": "asks another machine"},
    "docs/wheels.md": {"tourkit wheels": FROM_INDEX, "tourkit prefetch": FROM_INDEX, "pip": NEEDS_INDEX},
    "templates/graph_extraction/README.md": {"tourkit run": DOCUMENTS, "python": DOCUMENTS},
    "templates/json_extraction/README.md": {"tourkit run": DOCUMENTS, "python": DOCUMENTS},
    "templates/self_consistency/README.md": {"tourkit run": DOCUMENTS, "python": DOCUMENTS},
}

# Python files of other projects that pages name.
OF_OTHERS = {"convert_lora_to_gguf.py"}

# Folders whose files are named by their path from the root, and packages named by their path below tourkit/. A path
# that begins with bundle/ may be a user's folder: only its Python files are ours.
FOLDERS = "tests|bench|tools|docs|manifests|templates|weights|tourkit"
PACKAGES = "|".join(sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "bundle"))
BELOW_ROOT = re.compile(rf"(?<![\w./<-])(?:{FOLDERS})/(?:[\w<*][\w.<>*-]*/?)*")
BELOW_PACKAGE = re.compile(rf"(?<![\w./<-])(?:(?:{PACKAGES})/[a-z_][\w./]*|bundle/[a-z_]+\.py)")


# --- what a page says ------------------------------------------------------------------------------------------------


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, *languages: str) -> list[str]:
    """The blocks in these languages; "" is a block that names none."""
    return [body for language, body in FENCE.findall(text_of(page)) if language in languages]


def spans(page: Path) -> list[str]:
    """What stands between single backticks."""
    return SPAN.findall(FENCE.sub("", text_of(page)))


def plain_shell_lines(page: Path) -> Iterator[str]:
    """The lines of the blocks that are not run and that a shell may take: continued lines joined, without comments."""
    for block in fences(page, "", "sh"):
        for line in re.sub(r"(\\\n|\n(?= +\[))", " ", block).splitlines():
            yield re.sub(r"\s#.*", "", line)


def shell_lines(page: Path) -> Iterator[str]:
    """The commands of every block, without their comments."""
    yield from plain_shell_lines(page)
    for step in page_runner.steps(text_of(page)):
        if isinstance(step, page_runner.Command):
            yield re.sub(r"\s#.*", "", step.text)


def commands(page: Path, program: str) -> Iterator[str]:
    """The arguments of each call of a program, in blocks and in spans, up to what ends a shell command."""
    for line in (*shell_lines(page), *spans(page)):
        for part in re.split(r"&&|;|\|(?= )", line):
            found = re.match(rf"\s*(?:[A-Z_]+=\S+ )*{program} (.+)", part)
            if found:
                yield found[1].strip()


def command_of(arguments: str) -> tuple[click.Command, list[str]]:
    """The command of tourkit that these arguments name, and the words after its name."""
    command: click.Command = cli
    words = arguments.split()
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"tourkit {arguments}: there is no command {name}"
        command = command.commands[name]
    return command, words


def options(command: click.Command) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}


def script_options(script: Path) -> set[str]:
    return set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text_of(script)))


def leaf_commands(command: click.Command, path: str = "tourkit") -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [leaf for name, child in command.commands.items() for leaf in leaf_commands(child, f"{path} {name}")]
    return [(path, command)]


# --- pages that are made ---------------------------------------------------------------------------------------------


def test_the_command_reference_is_what_help_prints() -> None:
    """When this fails: `make docs`."""
    assert text_of(ROOT / "docs" / "cli.md") == cli_reference.render()


def test_the_table_of_what_fits_which_gpu_is_what_the_planner_says() -> None:
    """When this fails: `make docs`."""
    page = text_of(ROOT / "docs" / "plan.md")

    assert page == gpu_table.page(page)
    assert all(f"| {card.sold_as} | {card.gib} GiB" in page for card in gpu_table.CARDS)


@pytest.mark.parametrize(
    ("path", "command"), leaf_commands(cli), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_help_with_an_example_of_itself(path: str, command: click.Command) -> None:
    assert command.help is not None
    assert re.search(rf"Examples?: {path}\b", command.help)


# --- commands --------------------------------------------------------------------------------------------------------


@EVERY_PAGE
def test_every_command_that_is_named_exists_and_has_the_options_it_is_given(page: Path) -> None:
    wrong = []
    for arguments in commands(page, "tourkit"):
        command, words = command_of(arguments)
        unknown = set(OPTION.findall(" ".join(words))) - options(command) - options(cli)
        wrong += [f"tourkit {arguments}: {option}" for option in unknown]

    assert wrong == []


@EVERY_PAGE
def test_every_command_of_a_block_is_complete(page: Path) -> None:
    """As click takes it: required options and arguments are there, and values are of their kind.

    Left out are synopses, which have brackets or dots, and files that a reader is to have.
    """
    for line in shell_lines(page):
        found = re.fullmatch(r"\s*tourkit ([^\[…]+)", line)
        if found is None:
            continue
        command, words = command_of(found[1])
        problem = ""
        try:
            command.make_context(command.name, shlex.split(" ".join(words)))
        except click.exceptions.Exit:  # --version and --help print and end
            continue
        except click.UsageError as error:
            problem = error.format_message()
        assert not problem or "does not exist" in problem, f"{line.strip()}: {problem}"


@EVERY_PAGE
def test_every_option_that_is_named_alone_is_one_of_some_command(page: Path) -> None:
    """Of tourkit, or of a bench or tool."""
    known = set().union(*(options(command) for _, command in leaf_commands(cli)), options(cli))
    scripts = [path for folder in ("bench", "tools") for path in (ROOT / folder).rglob("*.py")]
    named = {found[0] for span in spans(page) if (found := OPTION.match(span))}

    assert named <= known.union(*map(script_options, scripts))


@EVERY_PAGE
def test_every_script_that_is_called_exists_and_has_the_options_it_is_given(page: Path) -> None:
    for arguments in commands(page, "python"):
        script = arguments.split()[0]
        if script.startswith(("bench/", "tools/")):
            assert (ROOT / script).is_file(), f"python {arguments}"
            assert set(OPTION.findall(arguments)) <= script_options(ROOT / script), f"python {arguments}"


@EVERY_PAGE
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    named = {arguments.split()[0] for arguments in commands(page, "make")}

    assert named <= TARGETS


def test_make_alone_lists_the_targets_and_each_has_a_line_of_help() -> None:
    helped = set(re.findall(r"^([a-z-]+):[^\n]*## \S", MAKEFILE, flags=re.MULTILINE))

    assert ".DEFAULT_GOAL := help" in MAKEFILE
    assert helped == TARGETS


def test_the_test_command_of_the_install_page_is_what_ci_runs() -> None:
    calls = re.findall(r"^make ([a-z-]+)$", text_of(ROOT / ".ci" / "run"), flags=re.MULTILINE)

    assert "check" in calls
    assert set(calls) <= TARGETS
    assert re.search(r"^\| `make check` \| what CI runs", text_of(ROOT / "docs" / "install.md"), flags=re.MULTILINE)


# --- commands that run -----------------------------------------------------------------------------------------------


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a hub that has the tiny model: `tourkit mirror` on a folder made from weights/tiny."""
    with tiny_hub(tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the demo prints. `make demo` runs it in the environment that it makes first."""
    recipe = re.search(r"^demo: .*\n\t(.*)", MAKEFILE, flags=re.MULTILINE)
    assert recipe
    assert recipe[1] == "$(RUN)/bin/tourkit demo --keep build/demo"
    command = [sys.executable, "-m", "tourkit", "demo", "--keep", "build/demo", "--documents", "1"]
    folder = tmp_path_factory.mktemp("demo")
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=True).stdout


@pytest.mark.starts
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "```console" in text_of(page)], ids=name_of)
def test_the_commands_of_a_page_run_and_print_what_it_shows(
    page: Path, hub: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Figures may differ, words may not."""
    run = page_runner.prepare(tmp_path, hub)
    if "$ make demo" in text_of(page):
        run.instead["make demo"] = request.getfixturevalue("demo")
    try:
        different = [found for step in page_runner.steps(text_of(page)) if (found := run.step(step))]
    finally:
        run.close()

    assert "\n\n".join(different) == ""


PROGRAMS = "tourkit|python|make|pip|git|hf|sh|curl|cd|export|sha256sum|shasum"
PROGRAM = re.compile(rf"(?:[A-Z_]+=(?:'[^']*'|\S)* +)*(?:{PROGRAMS})\b")


@EVERY_PAGE
def test_a_command_in_a_block_that_is_not_run_has_a_reason(page: Path) -> None:
    """docs/cli.md is left out: its examples are those of --help."""
    reasons = NOT_RUN.get(name_of(page), {})
    if name_of(page) == "docs/cli.md":
        return
    lines = [line.strip() for line in plain_shell_lines(page) if PROGRAM.match(line)]

    assert [line for line in lines if not line.startswith(tuple(reasons))] == []
    assert [start for start in reasons if not any(line.startswith(start) for line in lines)] == []


def test_the_first_page_has_the_same_commands_in_both_languages() -> None:
    pages = [ROOT / "bundle" / name for name in ("START_HERE.md", "START_HERE.ru.md")]
    english, russian = (FENCE.findall(text_of(page)) for page in pages)

    assert len(english) > 10
    assert russian == english


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("bundle: whole: 21 files, 10.4 MiB", "bundle: whole: 22 files, 1.1 GiB"),
        ("done in 0.4 s at http://127.0.0.1:8000/v1", "done in 12 s at http://127.0.0.1:41234/v1"),
        ("commit 6314b17… of 2026-12-12", "commit 0a0b0c0… of 2027-01-02"),
        ('{"a": "x", "b": [1, true]}', '{"a": "y", "b": [2.5, true]}'),
        ("graph-01: Stoagea Foods is…", "graph-01: Stoagea Foods is a part of it"),
    ],
)
def test_the_same_words_with_other_figures_have_the_same_shape(shown: str, printed: str) -> None:
    assert page_runner.fits([shown], [printed])


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("bundle: 23 files right", "bundle: 23 files damaged"),
        ("tiny F16 on llama_cpp", "tiny Q8_0 on llama_cpp"),
        ('{"a": "x"}', '{"a": "x", "b": 1}'),
        ('{"a": true}', '{"a": false}'),
        ("  28 of 28 facts", "  28 of facts"),
    ],
)
def test_other_words_have_another_shape(shown: str, printed: str) -> None:
    assert not page_runner.fits([shown], [printed])


def test_a_line_of_dots_stands_for_any_lines_and_nothing_else_does() -> None:
    assert page_runner.fits(["…", "two", "…"], ["one", "two", "three", "four"])
    assert page_runner.fits(["one", "…", "two"], ["one", "two"])
    assert not page_runner.fits(["one", "two"], ["one", "and", "two"])
    assert not page_runner.fits(["one", "…", "three"], ["one", "two"])


# --- files, modules, links -------------------------------------------------------------------------------------------


def exists(below: Path, path: str) -> bool:
    """Whether a path is there; <name> and * stand for any name, and a module may go without its ending."""
    pattern = re.sub(r"<[^>]*>", "*", path.rstrip("/."))
    return any(True for ending in ("", ".py") for _ in below.glob(pattern + ending))


@EVERY_PAGE
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = text_of(page)
    # What a bundle holds, and what `tourkit templates copy` writes, is not in the repository.
    named = [path for path in BELOW_ROOT.findall(text) if not path.endswith("tourkit/client.py")]
    missing = [path for path in named if not exists(ROOT, path)]
    missing += [path for path in BELOW_PACKAGE.findall(text) if not exists(PACKAGE, path)]

    assert missing == []


@EVERY_PAGE
def test_every_python_file_that_is_named_without_a_folder_is_there(page: Path) -> None:
    """In the package, the bundle, or a template; or the page itself shows what it has."""
    named = {span for span in spans(page) if re.fullmatch(r"[a-z_]+\.py", span)}
    known = {path.name for path in (*PACKAGE.glob("*.py"), *(ROOT / "templates").glob("*/*.py"))}
    known |= {path.name for path in (ROOT / "bundle").glob("*.py")}
    known |= {step.name for step in page_runner.steps(text_of(page)) if isinstance(step, page_runner.File)}

    assert named - OF_OTHERS <= known


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of tourkit, or something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return module != "" and resolves(module) and hasattr(importlib.import_module(module), attribute)
    return True


@EVERY_PAGE
def test_every_dotted_name_of_the_package_leads_to_something(page: Path) -> None:
    named = {name for span in spans(page) for name in re.findall(r"(?<![\w/.-])tourkit(?:\.[A-Za-z_]\w*)+", span)}

    assert {name for name in named if not resolves(name)} == set()


@EVERY_PAGE
def test_what_an_example_imports_from_the_package_is_there(page: Path) -> None:
    imported = [
        f"{node.module}.{alias.name}"
        for block in fences(page, "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tourkit"
        for alias in node.names
    ]

    assert [name for name in imported if not resolves(name)] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EVERY_PAGE
def test_links_lead_to_files_and_to_headings_in_them(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            wrong.append(link)

    assert wrong == []


def strings(module: Path) -> Iterator[str]:
    """Every literal text of a module, and the literal parts of its f-strings, but not the docstrings."""
    nodes = list(ast.walk(ast.parse(text_of(module))))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_every_message_on_the_page_about_trouble_is_one_of_the_program() -> None:
    """The first column quotes it, with `…` for names and numbers."""
    said = [text for module in PACKAGE.rglob("*.py") for text in strings(module)]
    said.append(text_of(ROOT / "bundle" / "install.sh"))
    said += strings(ROOT / "bundle" / "install.py")
    rows = re.findall(r"^\| (.*?) \| .*\|$", text_of(ROOT / "docs" / "troubleshooting.md"), flags=re.MULTILINE)
    quoted = [b or a for row in rows for a, b in re.findall(r"(?<!`)`([^`]+)`(?!`)|``(.+?)``", row)]
    parts = [(part.strip(), quote) for quote in quoted for part in quote.split("…") if part.strip()]

    assert len(rows) > 20
    assert [quote for part, quote in parts if not any(part in text for text in said)] == []


def test_the_changelog_begins_with_what_is_unreleased_or_with_this_version() -> None:
    first = re.findall(r"^## (\S+)", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)[0]

    assert first in ("Unreleased", __version__, f"[{__version__}]")
