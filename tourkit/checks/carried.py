"""Steps of a rehearsal: every byte of the bundle, one step for each kind of file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tourkit.bundle.index import INDEX, SUMS, Index
from tourkit.bundle.verify import Problem, verify
from tourkit.checks import bundle as bundles
from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.checks.steps import Result
from tourkit.units import counted

WHEELS = "wheels"
KINDS = (WHEELS, "weights", "tokenizers", "vocabularies", "template files", "other files")  # steps, in their order
_TOKENIZER_STARTS = (
    "tokenizer",
    "special_tokens",
    "added_tokens",
    "chat_template",
    "spiece",
    "sentencepiece",
    "tekken",
)
_VOCABULARY_STARTS = ("vocab", "merges")
_VOCABULARY_ENDS = (".tiktoken", ".vocab")
_PROSE_ENDS = (".md", ".txt", ".html", ".pdf")
_MOST_NAMED = 3


def kind_of(path: str) -> str:
    """Return the step that checks a file of a bundle. `path`: as in the index."""
    parts = PurePosixPath(path).parts
    name = parts[-1].lower()
    if parts[0] in ("wheels", "python"):
        return WHEELS
    if name.startswith(_VOCABULARY_STARTS) or name.endswith(_VOCABULARY_ENDS):
        return "vocabularies"
    if name.startswith(_TOKENIZER_STARTS):
        return "tokenizers"
    if parts[0] == "templates":
        return "template files"
    if parts[0] == "assets" and not name.endswith(_PROSE_ENDS):
        return "vocabularies"  # tiktoken gives its files names without an ending
    return "weights" if parts[0] == "models" else "other files"


def findings(root: Path, index: Index) -> Iterator[Finding]:
    """Read every byte of the bundle, and yield a finding for each kind of file. Raises NotSo."""
    problems = verify(root).problems
    paths = [file.path for file in index.files] + [INDEX, SUMS]
    for kind in KINDS:
        mine = [problem for problem in problems if kind_of(problem.path) == kind]
        count = sum(kind_of(path) == kind for path in paths)
        if count or mine:
            yield _finding(kind, count, mine)


def _finding(kind: str, count: int, problems: list[Problem]) -> Finding:
    bad = [problem for problem in problems if problem.kind != "extra"]
    named = bad or problems
    text = ", ".join(f"{each.path} is {each.kind}" for each in named[:_MOST_NAMED])
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    if bad:
        return failure(kind, f"{text}{more}", "copy them again, or run `tourkit prefetch` or `tourkit wheels` again")
    if problems:
        return warning(kind, f"{text}{more}", "delete the extra files, or index wheels with `tourkit wheels --add`")
    return ok(kind, f"{counted(count, 'file')} right")


def fetched(root: Path, index: Index, environment: Mapping[str, str], used: Iterable[tuple[str, str]]) -> Result:
    """Return whether a planned variant would fetch a file at run time. `used`: variants ("model quant") with stacks."""
    what, used = "run-time files", set(used)
    missing = [
        fetch
        for fetch in bundles.would_fetch(root, index, environment)
        if any((fetch.owner, stack) in used for stack in fetch.stacks)
    ]
    if not missing:
        return Result(ok(what, "nothing would be fetched for the planned models"))
    text = "; ".join(f"{' and '.join(fetch.stacks)} would fetch {fetch.what} for {fetch.owner}" for fetch in missing)
    return Result(failure(what, text, missing[0].fix))
