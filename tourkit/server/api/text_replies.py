"""The answers of POST /v1/completions as OpenAI's JSON: whole, or as chunks of a stream."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tourkit.generation import Finish, TokenLogprob
from tourkit.server.api.replies import Usage


class ChoiceText:
    """The text of one choice while it grows, as the API shows its log probabilities. `shows`: whether it does."""

    def __init__(self, *, shows: bool) -> None:
        self._shows = shows
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_chars = 0

    def logprobs(self, found: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        """Return the log probabilities of the tokens that follow; None if they are not shown."""
        if not self._shows:
            return None
        shown: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in found:
            has_none = math.isnan(each.logprob)
            likeliest = {_shown(token): value for token, value in each.top}
            shown["tokens"].append(_shown(each.token))
            shown["token_logprobs"].append(None if has_none else each.logprob)
            shown["top_logprobs"].append(None if has_none else likeliest | {_shown(each.token): each.logprob})
            shown["text_offset"].append(self._n_chars)
            self._n_chars += len(self._decoder.decode(each.token))
        return shown


def _shown(token: bytes) -> str:
    """Return a token as text. One that is a part of a character is shown by its bytes, as OpenAI does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


@dataclass(frozen=True, slots=True)
class TextReply:
    """The answers to one request. `created`: whole seconds since 1970. `fingerprint`: of the model and its settings.

    `shows_usage`: every chunk has the key `usage`; it is null except where the request asks for more.
    """

    id: str
    created: int
    model: str
    fingerprint: str = ""
    shows_usage: bool = False

    def completion(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return self._head() | {"choices": choices, "usage": usage.to_json()}

    def choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish: Finish | None = None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish.value if finish else None}

    def chunk(self, choice: dict[str, Any], usage: Usage | None = None) -> dict[str, Any]:
        """Return a chunk of a stream. `usage`: so far; None if the request does not ask for it in each chunk."""
        return self._chunk([choice], usage)

    def closing(self, usage: Usage) -> dict[str, Any]:
        """Return the chunk for stream_options.include_usage."""
        return self._chunk([], usage)

    def remark(self, about: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk without text, about the whole answer."""
        return self._chunk([]) | {"tourkit": about}

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        shown = {"usage": usage.to_json() if usage is not None else None} if self.shows_usage else {}
        return self._head() | {"choices": choices} | shown

    def _head(self) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return head | {"system_fingerprint": self.fingerprint or None}
