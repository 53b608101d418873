"""One line for each request: when, what, for which model, how it was answered, tokens, seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tourkit.server.http import CLIENT_LEFT

MODEL = "tourkit.model"  # key of a request's scope: the role or model id that it names
_TAIL = 16_384  # bytes of an answer that are kept: its usage is near the end
_LONGEST_NAME = 80  # characters
_USAGE = re.compile(rb'"usage":\{([^{}]*)')
_COUNT = re.compile(rb'"(\w+)":(\d+)')
_EVALUATED = re.compile(rb'"(prompt_eval_count|eval_count)":(\d+)')  # of Ollama's API, which has no usage
_PROMPT = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "prompt_eval_count")
_COMPLETION = ("completion_tokens", "output_tokens", "eval_count")


class RequestLog:
    """An ASGI application around another one. `say` gets the line as soon as an answer has ended."""

    def __init__(self, app: ASGIApp, say: Callable[[str], None]) -> None:
        self._app = app
        self._say = say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        answer = _Answer()

        async def noted(message: Message) -> None:
            answer.note(message)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._say(_line(scope, answer, time.monotonic() - started))


class _Answer:
    """What is known of an answer so far. `tail`: its last bytes."""

    def __init__(self) -> None:
        self.status = CLIENT_LEFT
        self.tail = b""
        self.ended = False

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.tail = (self.tail + message.get("body", b""))[-_TAIL:]
            self.ended = not message.get("more_body", False)


def _line(scope: Scope, answer: _Answer, seconds: float) -> str:
    parts = [time.strftime("%H:%M:%S"), scope["method"], scope["raw_path"].decode(errors="replace")]
    parts += [_shown(scope.get(MODEL, "-")), str(answer.status), *_tokens(answer.tail), f"{seconds:.2f} s"]
    return " ".join(parts if answer.ended else [*parts, "cut short"])


def _shown(name: str) -> str:
    """A name as the client gave it, unless it would break the line."""
    is_plain = len(name) <= _LONGEST_NAME and name.isprintable() and " " not in name
    return name if is_plain else ascii(name[:_LONGEST_NAME])


def _tokens(tail: bytes) -> list[str]:
    """Return prompt and generated tokens if the answer states them. OpenAI's streams do so only if they were asked."""
    usages = _USAGE.findall(tail)
    found = _COUNT.findall(usages[-1]) if usages else _EVALUATED.findall(tail)
    counts = {name.decode(): int(count) for name, count in found}
    if not counts.keys() & set(_PROMPT):
        return []
    prompt, completion = (sum(counts.get(name, 0) for name in names) for names in (_PROMPT, _COMPLETION))
    return [f"{prompt}+{completion} tokens"]
