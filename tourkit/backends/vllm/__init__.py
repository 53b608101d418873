"""vLLM: a server of its own, in a process of its own. server/worker/vllm.py starts it and answers for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tourkit.errors import LocalError

if TYPE_CHECKING:
    from tourkit.launch import Launch


def load(launch: Launch) -> NoReturn:
    raise LocalError(f"{launch.model}: vllm is a server of its own and no engine in this process: use `tourkit serve`")
