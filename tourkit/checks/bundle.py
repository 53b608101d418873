"""Checks of a bundle against this machine: its files, its wheels, its plan, and what its models would fetch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tourkit.bundle.environment import variables
from tourkit.bundle.index import Index, read_index, variant_files
from tourkit.bundle.verify import Report, verify
from tourkit.checks.findings import Finding, Status, failure, of_message, ok, warning
from tourkit.errors import TourkitError
from tourkit.fetch.wheels.architectures import unknown_to_installed
from tourkit.hardware.machine import Hardware
from tourkit.headers.gguf import gguf_parts, is_gguf
from tourkit.planning import planner, sources
from tourkit.planning.gpu_stacks import unused_gpus
from tourkit.planning.plan import Plan
from tourkit.stacks import for_format
from tourkit.units import counted

_MOST_NAMED = 3  # files in one finding
# Names of files from which a tokenizer is made.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_TEKKEN = "tekken.json"  # Mistral's own format; no stack here reads it
# gpt-oss: vLLM uses openai_harmony, which downloads this vocabulary unless the variable names a folder that has it.
_HARMONY_STACK, _HARMONY_TYPE = "vllm", "gpt_oss"
_HARMONY_FILE, _HARMONY_VARIABLE = "o200k_base.tiktoken", "TIKTOKEN_ENCODINGS_BASE"


def index_finding(root: Path) -> tuple[Index | None, Finding]:
    """Read the index. It is None if it cannot be read."""
    try:
        index = read_index(root)
    except TourkitError as exc:
        return None, of_message(Status.FAILURE, "bundle", str(exc))
    return index, ok("bundle", f"{root}: {index.name}, {counted(len(index.variants), 'variant')}")


def files_finding(root: Path) -> Finding:
    """Compare the names and sizes of all files with the index."""
    try:
        return files_of(root, verify(root, quick=True))
    except TourkitError as exc:
        return of_message(Status.FAILURE, "bundle files", str(exc))


def files_of(root: Path, report: Report) -> Finding:
    """Return the finding for what `verify` found."""
    what = "bundle files"
    if report.ok:
        return ok(what, f"{counted(report.checked_files, 'file')} present, of the right size")
    wrong = [problem for problem in report.problems if problem.kind != "extra"] or list(report.problems)
    named = ", ".join(f"{problem.path} ({problem.kind})" for problem in wrong[:_MOST_NAMED])
    more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    if report.missing or report.damaged:
        fix = f"copy them again from the other drive, then run `tourkit verify {root}`"
        return failure(what, f"{named}{more}", fix)
    return warning(what, f"{named}{more}", "delete the extra files; the others are unharmed")


def plan_findings(root: Path, index: Index, hardware: Hardware) -> tuple[Plan | None, tuple[Finding, ...]]:
    """Plan the bundle for this machine. The plan is None if it fills no role."""
    show = f"`tourkit plan --bundle {root}` shows the reasons"
    try:
        plan = planner.plan(index, hardware, shapes=sources.shapes_of_bundle(root, index))
    except TourkitError as exc:
        return None, (of_message(Status.FAILURE, "plan", str(exc)),)
    found = [
        ok(
            "plan",
            f"{', '.join(placement.roles)}: {placement.launch.model} {placement.launch.quant} "
            f"on {placement.launch.stack}",
        )
        for placement in plan.placements
    ]
    formats = {variant.format for variant in index.variants}
    known = {*hardware.problems, *unused_gpus(hardware, formats)}  # each has a finding of its own
    found += [warning("plan", note, show) for note in plan.notes if note not in known]
    found += [failure("plan", line, show) for line in plan.unfilled]
    return plan, tuple(found)


def architecture_findings(root: Path, index: Index) -> Iterator[Finding]:
    """Yield a failure for each model whose GGUF has an architecture that the installed llama.cpp does not know.

    Only the first file of a split model is read. `files_finding` reports a missing or damaged file.
    """
    paths = [root / file.path for file in index.files if file.path.startswith("models/")]
    firsts = [path for path in paths if path.suffix == ".gguf" and gguf_parts(path.name)[0] == path.name]
    try:
        lines = unknown_to_installed(path for path in firsts if path.is_file() and is_gguf(path))
    except OSError as exc:
        lines = [f"{exc.filename}: cannot be read ({exc.strerror}): check the permissions"]
    yield from (of_message(Status.FAILURE, "architecture", line) for line in lines)


# --- what the stacks would fetch -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Something that a stack asks the network for at run time. `owner`: the variant that needs it."""

    owner: str
    what: str
    stacks: tuple[str, ...]
    fix: str


def fetch_findings(root: Path, index: Index, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a warning for everything that a stack would try to fetch for a variant of this bundle."""
    found = list(would_fetch(root, index, environment))
    for fetch in found:
        detail = f"{' and '.join(fetch.stacks)} would fetch {fetch.what} for {fetch.owner}"
        yield warning("fetched at run time", detail, fetch.fix)
    if not found:
        yield ok("fetched at run time", "nothing: each variant has its tokenizer and vocabulary here")


def would_fetch(root: Path, index: Index, environment: Mapping[str, str]) -> Iterator[Fetch]:
    """Yield what the stacks would fetch. GGUF files hold their tokenizer, so llama.cpp fetches nothing.

    `environment`: the variables of the gateway. Those of the bundle's side assets replace them in its workers.
    """
    found = {**environment, **dict(variables(index.assets, _HARMONY_STACK, root.joinpath))}.get(_HARMONY_VARIABLE, "")
    has_vocabulary = found != "" and (Path(found) / _HARMONY_FILE).is_file()
    adapters = {model.id for model in index.models if model.adapts is not None}  # each uses its base's tokenizer
    for variant in index.variants:
        if variant.format == "gguf" or variant.model in adapters:
            continue
        files = [PurePosixPath(file.path) for file in variant_files(index, variant)]
        names = {path.name for path in files}
        owner, stacks = f"{variant.model} {variant.quant}", for_format(variant.format)
        if not names & set(_TOKENIZERS) and not any(name.endswith(".tiktoken") for name in names):
            fix = "name its tokenizer files in the manifest (`files`), then run `tourkit lock` and `tourkit prefetch`"
            what = f"the tokenizer (it has only {_TEKKEN}, which no stack here reads)" if _TEKKEN in names else ""
            yield Fetch(owner, what or "the tokenizer", stacks, fix)
        config = next((path for path in files if path.name == "config.json"), None)
        is_harmony = config is not None and _json(root / config).get("model_type") == _HARMONY_TYPE
        if is_harmony and not has_vocabulary:
            fix = (
                f"name the file in the manifest ([[assets]] with env = {_HARMONY_VARIABLE!r}), then run "
                f"`tourkit lock` and `tourkit prefetch`; or set {_HARMONY_VARIABLE} to a folder that has it"
            )
            yield Fetch(owner, f"the vocabulary {_HARMONY_FILE}", (_HARMONY_STACK,), fix)


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty if the file has none. `files_finding` reports a damaged file."""
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
