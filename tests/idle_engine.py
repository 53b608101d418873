"""What a stand-in for an engine needs besides `submit`: nothing happens in it."""

from __future__ import annotations

from tourkit.generation import EngineStats


class IdleEngine:
    """The part of the Engine protocol that answers nothing."""

    def abort(self, submission_id: int) -> None: ...

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return []

    def detokenize(self, tokens: list[int]) -> str:
        return ""

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None: ...
