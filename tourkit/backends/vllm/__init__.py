"""vLLM: it runs its own server in its own process. server/worker/vllm.py starts it and adds our API."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tourkit.errors import LocalError

if TYPE_CHECKING:
    from tourkit.launch import Launch


def load(launch: Launch) -> NoReturn:
    raise LocalError(f"{launch.model}: vllm runs as its own server, not in this process: use `tourkit serve`")
