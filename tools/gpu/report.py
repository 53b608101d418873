"""Write docs/gpu.md from the JSON of runs: `python tools/gpu/report.py RUN.json… [--out docs/gpu.md]`.

A step of a later run replaces the same step of an earlier one, unless it was skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT)]

from tools.gpu.findings import FAILED, MEASURED, MEMORY, OK, SKIPPED, SPEED  # noqa: E402 - below the path

_MIB = 1 << 20
_MOST = 300  # characters of a line of stderr
_PEERS = ("llama-server", "llama-batched-bench")
_NOT_PROVEN = (
    "MIG: the GPU was whole. The probe's answer for a slice, and how CUDA_VISIBLE_DEVICES takes its id, are not tried.",
    "Compute capability 8.0: the kernels were built for another one.",
    "vLLM: it was not installed there.",
    "The scratch memory of upstream's wheels: this build has GGML_CUDA_NO_VMM, which pools it in another way.",
    "The quality of any answer: the models have random weights.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs" / "gpu.md")
    given = parser.parse_args()
    page = render([json.loads(path.read_text(encoding="utf-8")) for path in given.runs])
    given.out.write_text(page, encoding="utf-8")
    print(given.out)


def render(runs: list[dict[str, Any]]) -> str:
    """Return the page. `runs`: the JSON of runs, the earliest first."""
    steps = _merged(runs)
    found = [finding for step in steps for finding in step["findings"]]
    parts = [
        "# On a GPU\n\nMeasured by `tools/gpu/check.py`; this page is made by `tools/gpu/report.py`. Do not edit it.\n",
        _machines(runs),
        "## Memory: predicted and measured\n",
        _table(_memory_rows([each for each in found if each["table"] == MEMORY])),
        "## Speed\n",
        "Tokens per second of all sequences together. A request has 512 tokens of prompt and 128 of answer, and the "
        "time for the prompt counts. *Decoding* leaves it out.\n",
        _table(_speed_rows([each for each in found if each["table"] == SPEED])),
        "## What failed\n",
        _list(_failures(steps)) or "Nothing.\n",
        "## What was checked\n",
        _list(f"{each['what']}{_figures(each)}" for each in found if each["state"] == OK),
        "## Other measurements\n",
        _list(f"{each['what']}{_figures(each)}" for each in found if each["state"] == MEASURED and not each["table"]),
        "## What was skipped\n",
        _list(_skipped(steps)) or "Nothing.\n",
        "## What this does not prove\n",
        _list(_NOT_PROVEN),
    ]
    return "\n".join(part for part in parts if part)


def _merged(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for run in runs:
        for step in run["steps"]:
            if step["state"] != SKIPPED or step["name"] not in merged:
                merged[step["name"]] = step
    return list(merged.values())


def _machines(runs: list[dict[str, Any]]) -> str:
    """Return a line for each run: when, on which GPU, with which build of llama.cpp."""
    lines = []
    for run in runs:
        gpu, llama = run["gpu"], run["llama"]
        where = f"{gpu['name']}, {gpu['total'] / 2**30:.1f} GiB" if gpu else "a dry run without a GPU"
        flash = "with" if llama.get("flash_attention") else "without"
        built = f"llama.cpp of llama-cpp-python {llama['version']} {flash} FlashAttention" if llama else "no llama.cpp"
        lines.append(f"{run['started']}: {where}; {run['processors']} processors; Python {run['python']}; {built}")
    return _list(lines)


def _memory_rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    if not found:
        return
    yield ["what", "predicted, MiB", "measured, MiB", "predicted less measured", "weights", "KV cache", "other"]
    for each in found:
        figures = each["figures"]
        off = figures["predicted"] - figures["measured"]
        sizes = [f"{figures[name] / _MIB:,.0f}" for name in ("predicted", "measured")]
        parts = [f"{figures[name] / _MIB:,.0f}" if name in figures else "" for name in ("weights", "cache", "overhead")]
        share = 100 * off / figures["measured"] if figures["measured"] else 0.0
        yield [each["what"], *sizes, f"{off / _MIB:+,.0f} MiB, {share:+.1f} %", *parts]


def _speed_rows(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row for each program and number of sequences, with its ratio to the peers."""
    if not found:
        return
    yield ["program", "sequences", "tokens/s", "decoding, tokens/s", *(f"ratio to {peer}" for peer in _PEERS), "other"]
    shown = ("sequences", "tokens/s", "decoding, tokens/s")
    for each in sorted(found, key=lambda each: each["figures"]["sequences"]):
        figures = each["figures"]
        speeds = [f"{figures[name]:,.1f}" if name in figures else "" for name in shown[1:]]
        ratios = ["" if each["what"] == peer else _ratio(each, peer, found) for peer in _PEERS]
        other = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name not in shown)
        yield [each["what"], f"{figures['sequences']:.0f}", *speeds, *ratios, other]


def _ratio(mine: dict[str, Any], peer: str, found: list[dict[str, Any]]) -> str:
    """Return how many times faster a row is than the peer's with as many sequences, in the first figure of both."""
    theirs = [
        each["figures"]
        for each in found
        if each["what"] == peer and each["figures"]["sequences"] == mine["figures"]["sequences"]
    ]
    for name in ("tokens/s", "decoding, tokens/s"):
        both = [each[name] for each in theirs if name in each and name in mine["figures"]]
        if both:
            return f"{mine['figures'][name] / statistics.median(both):.2f}"
    return ""


def _failures(steps: list[dict[str, Any]]) -> Iterator[str]:
    for step in steps:
        if step["state"] not in (OK, SKIPPED):
            last = next(iter(step.get("stderr", [])[-1:]), "")
            yield f"step {step['name']}: {step['why'] or step['state']}" + (f" ({last[:_MOST]})" if last else "")
        for each in step["findings"]:
            if each["state"] == FAILED:
                yield f"{each['what']}: {each['why']}{_figures(each)}"


def _skipped(steps: list[dict[str, Any]]) -> Iterator[str]:
    for step in steps:
        if step["state"] == SKIPPED and step["why"]:
            yield f"step {step['name']}: {step['why']}"
        for each in step["findings"]:
            if each["state"] == SKIPPED:
                yield f"{each['what']}: {each['why']}"


def _figures(finding: dict[str, Any]) -> str:
    if not finding["figures"]:
        return ""
    return f" ({', '.join(f'{name} {_shown(value)}' for name, value in finding['figures'].items())})"


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value / _MIB:,.0f} MiB" if value >= 1 << 24 else f"{value:,.4g}"


def _list(lines: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    return "".join(f"- {_plain(line)}\n" for line in lines)


def _table(rows: Iterator[list[str]]) -> str:
    """Return a Markdown table, the first row as its head."""
    cells = [[_plain(cell).replace("|", "/") for cell in row] for row in rows]
    if not cells:
        return "Not measured.\n"
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:], ""])


def _plain(text: str) -> str:
    """Return one line without backticks: what stands between them would be taken for a name of the program."""
    return " ".join(text.replace("`", "'").split())


if __name__ == "__main__":
    main()
