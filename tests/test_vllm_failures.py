"""The reason why vLLM ended, found in the output of its processes: one line that says what went wrong."""

from __future__ import annotations

import pytest

from tourkit.backends.vllm.failures import reason

ENGINE = "(EngineCore pid=8) "
SERVER = "(APIServer pid=7) "
CASES: dict[str, tuple[list[str], str | None]] = {
    "nothing was written": ([], None),
    "no exception": (["INFO loading", "Killed"], None),
    "the last exception": (["a.KeyError: 'x'", "ValueError: no such quant"], "ValueError: no such quant"),
    "an exception without words": (["Traceback …", "MemoryError"], "MemoryError"),
    "the cause and not the report of the other process": (
        [
            f"{ENGINE}torch.OutOfMemoryError: CUDA out of memory",
            f"{SERVER}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}",
        ],
        "OutOfMemoryError: CUDA out of memory",
    ),
    "lines after the exception are passed over": (
        ["ImportError: libcudart.so.13: cannot open", "[rank0] destroyed", ""],
        "ImportError: libcudart.so.13: cannot open",
    ),
    "pydantic's errors are on the next line": (
        [
            f"{SERVER}a.ValidationError: 1 validation error for Model",
            f"{SERVER}  Value error, not supported: M [type=value_error, in=1]",
        ],
        "ValidationError: 1 validation error for Model: Value error, not supported: M",
    ),
    "pydantic's errors were cut off": (
        ["a.ValidationError: 2 validation errors for Model"],
        "ValidationError: 2 validation errors for Model",
    ),
    "a long line is cut": (["ValueError: " + "x" * 999], ("ValueError: " + "x" * 999)[:300]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_found_in_the_last_lines(case: str) -> None:
    lines, expected = CASES[case]

    assert reason(lines) == expected
