"""Stand-ins for models that call tools: for each family a short template, and what a model writes to call a tool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from asgi import Answer, ask
from thinking_runner import CONTROL, TURN, Script, ThinkingRunner

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer

_MESSAGES = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls %}({{ c.id }} {{ c.function | tojson }}){% endfor %}"
    "{% if m.tool_call_id %}<{{ m.tool_call_id }}>{% endif %}{% endfor %}" + TURN
)
ORDER = "[write]"
_PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" + TURN
_SHOWN = "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
_THINK = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
_A = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
_B = '{"name": "get_time", "arguments": {"city": "Rome"}}'


@dataclass(frozen=True, slots=True)
class Family:
    """A stand-in for a family. `template`: it has the texts that the family is known by.

    `control`: its control tokens. `one`, `two`: answers with one and with two calls, "" if there is no such answer.
    `free`: what comes before an answer without calls. `at_start`: no text comes before a call. `native`: the template
    shows the tools.
    """

    template: str
    one: str
    two: str = ""
    control: tuple[str, ...] = CONTROL
    free: str = ""
    at_start: bool = False
    native: bool = True


_HERMES = '{# <tool_call> "arguments": #}' + _SHOWN + _MESSAGES
_ONE, _TWO = f"<tool_call>\n{_A}\n</tool_call>", f"<tool_call>\n{_A}\n</tool_call>\n<tool_call>\n{_B}\n</tool_call>"
_BARE = [each.replace("arguments", "parameters") for each in (_A, _B)]
_HARMONY = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}',
    "<|channel|>final<|message|>",
)
_THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
FAMILIES = {
    "hermes": Family(_HERMES, _ONE, _TWO),
    "hermes, a control token": Family(_HERMES, _ONE, _TWO, control=("<tool_call>", "</tool_call>")),
    "hermes, thinking": Family(
        _HERMES + _THINK, f"<think>\nHm.\n</think>\n\n{_ONE}", free="<think>\nHm.\n</think>\n\n"
    ),
    "llama-3": Family('{# ipython "parameters": #}' + _SHOWN + _MESSAGES, _BARE[0], "; ".join(_BARE), at_start=True),
    "mistral": Family(
        "{# [TOOL_CALLS] #}" + _SHOWN + _MESSAGES,
        f"[TOOL_CALLS][{_A}]",
        f"[TOOL_CALLS][{_A}, {_B}]",
        control=("[TOOL_CALLS]",),
    ),
    "mistral-args": Family(
        "{# [TOOL_CALLS] [ARGS] #}" + _SHOWN + _MESSAGES,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{"city": "Rome"}',
        control=("[TOOL_CALLS]", "[ARGS]"),
    ),
    "phi-4": Family(
        "{% for m in messages if m['tools'] %}[tools]<|tool|>{{ m['tools'] }}{% endfor %}{# message['tools'] #}"
        + _MESSAGES,
        f"<|tool_call|>[{_A}]<|/tool_call|>",
        f"<|tool_call|>[{_A}, {_B}]<|/tool_call|>",
        control=("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
    ),
    "granite-3": Family(
        "{% set available_tools = tools %}{# <|tool_call|> #}" + _SHOWN + _MESSAGES,
        f"<|tool_call|>[{_A}]",
        f"<|tool_call|>[{_A}, {_B}]",
        control=("<|tool_call|>",),
    ),
    "gpt-oss": Family(
        "{# <|channel|>final<|message|> functions. #}" + _SHOWN + _MESSAGES,
        _THOUGHT + _HARMONY[0],
        control=(*CONTROL, "<|constrain|>"),
        free=_THOUGHT + _HARMONY[1],
        at_start=True,
    ),
    "qwen-xml": Family(
        "{# <tool_call> <function= <parameter= #}" + _SHOWN + _MESSAGES,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=get_time>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
    ),
    "gemma-4": Family(
        "{# <|tool_call>call: #}" + _SHOWN + _MESSAGES,
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>',
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
        '<|tool_call>call:get_time{city:<|"|>Rome<|"|>}<tool_call|>',
        control=("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "lfm": Family(
        "List of tools: " + _SHOWN + _PLAIN,
        '<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>',
        '<|tool_call_start|>[get_weather(city="Paris"), get_time(city="Rome")]<|tool_call_end|>',
        control=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "deepseek": Family(
        "{# <｜tool▁calls▁begin｜> #}" + _PLAIN,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        control=tuple(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")),
        native=False,
    ),
    "gemma": Family("{# <start_of_turn> #}" + _PLAIN, _BARE[0], "; ".join(_BARE), at_start=True, native=False),
    "generic": Family(_PLAIN, _ONE, _TWO, native=False),
}


class ToolRunner(ThinkingRunner):
    """A model of a family that writes what the user's last message says after `ORDER`.

    Where something else was forced on it, it ends its answer.
    """

    def __init__(self, family: str, **shape: Any) -> None:
        about = FAMILIES[family]
        super().__init__("", Script("", "", ""), template=about.template, control=about.control, **shape)

    def _next(self, history: tuple[int, ...]) -> int:
        prompt, _, written = self.spell(history).rpartition(TURN.encode())
        _, order, text = prompt.rpartition(ORDER.encode())
        text = text if order else b""
        return self._token(text[len(written) :] if text.startswith(written) else b"")


def stand_ins(make: Callable[[str], ThinkingRunner]) -> Iterator[Callable[[str], RunnerEngine]]:
    """Yield a function that returns the engine of a name, each made once by `make`; close them at the end."""
    made: dict[str, RunnerEngine] = {}

    def engine(name: str) -> RunnerEngine:
        if name not in made:
            made[name] = RunnerEngine(make(name), "stand-in")
        return made[name]

    yield engine
    for each in made.values():
        each.close()


def worker_answer(engine: Any, path: str, body: dict[str, Any], **how: Any) -> Answer:
    """Ask the application of a worker. Its constraints are prepared in this process. `how`: as ModelServer takes it."""
    worker = ModelServer(engine, "s", **how)
    worker._model.trial = None
    return asyncio.run(ask(worker.app(), path, body, headers={SECRET_HEADER: "s"}))
