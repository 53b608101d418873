"""How a model thinks before it answers: its markers, its switch, and what a request asks of them.

Everything here comes from the chat template, once, when the model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tourkit.backends.chat_template import ChatTemplate
from tourkit.backends.control_tokens import ControlTokens
from tourkit.engine.reasoning_stream import Markers, Where
from tourkit.engine.thinking import ThinkingPlan
from tourkit.errors import RequestError
from tourkit.generation import Request

_THINK = Markers(
    "think",
    opens=("<think>",),
    close="</think>",
    begin="<think>\n",
    end="\n</think>\n\n",
    skip="<think>\n\n</think>\n\n",
)
_RESPONSE = ("<response>", "</response>")
# Of each family: the texts that its chat templates hold, and its markers. The first family that fits is taken.
FAMILIES = (
    (  # gpt-oss: https://cookbook.openai.com/articles/openai-harmony
        ("<|channel|>", "<|message|>"),
        Markers(
            "gpt-oss",
            opens=("<|channel|>analysis<|message|>",),
            close="<|end|>",
            begin="<|channel|>analysis<|message|>",
            end="<|end|><|start|>assistant<|channel|>final<|message|>",
            skip="<|channel|>final<|message|>",
            bridge="<|start|>assistant<|channel|>final<|message|>",
            channels=True,
        ),
    ),
    (
        ("<|channel>", "<channel|>"),
        Markers(
            "gemma-4",
            opens=("<|channel>thought\n", "<|channel>thought", "<|channel>"),
            close="<channel|>",
            begin="<|channel>thought\n",
            end="\n<channel|>",
            skip="<|channel>thought\n<channel|>",
            bridge="",
            anywhere=True,
        ),
    ),
    (
        ("[THINK]", "[/THINK]"),
        Markers(
            "mistral",
            opens=("[THINK]",),
            close="[/THINK]",
            begin="[THINK]",
            end="[/THINK]",
            skip="[THINK][/THINK]",
            bridge="",
        ),
    ),
    (
        ("<think></think>", "<response></response>"),
        replace(
            _THINK,
            name="granite",
            begin="<think>",
            end="</think><response>",
            skip="<think></think><response>",
            bridge="<response>",
            around=_RESPONSE,
        ),
    ),
    (("</think>",), _THINK),
)
_ALWAYS = frozenset({"gpt-oss"})  # families that think although their templates say nothing about it
_SWITCHES = ("enable_thinking", "thinking")  # the variables that turn thinking on and off
_EFFORT, _BUDGET = "reasoning_effort", "thinking_budget"
_OPTION = "chat_template_kwargs."
# gpt-oss was trained with three efforts.
_GPT_OSS_EFFORTS = {"minimal": "low", "xhigh": "high"}
_HISTORY = ("reasoning_content", "reasoning", "thinking")  # names that templates have for the thinking of a message
_READS = r"(?<!block)(?:\.|\[[\"']|\.get\([\"']){}\b"  # a part of a message; not that of a block of its content
_QUESTION = [{"role": "user", "content": "Hello"}]


class _Tokens(Protocol):
    """What this module needs of a tokenizer."""

    control_tokens: ControlTokens

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class _MarkerTokens:
    """The markers of a model as tokens: see ThinkingPlan."""

    end: tuple[int, ...]
    bridge: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]
    pieces: dict[int, bytes]

    @staticmethod
    def of(markers: Markers, tokenizer: _Tokens) -> _MarkerTokens:
        def tokens(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.tokenize(text, add_special=False, parse_special=True)) if text else ()

        close, bridge = markers.close, markers.bridge
        endings = () if markers.channels else tuple(tokens(close[at:] + bridge) for at in range(len(close)))
        marked = tokenizer.control_tokens.ids.items()
        pieces = {id_: text.encode() for text, id_ in marked if any(text in marker for marker in markers.texts)}
        return _MarkerTokens(tokens(markers.end), tokens(bridge), endings, pieces)


def _before_calls(markers: Markers) -> Markers:
    """Return the markers for an answer that may call tools. In gpt-oss, its channel is a part of the answer then."""
    if not markers.channels:
        return markers
    header = "<|start|>assistant"
    return replace(markers, end=markers.close + header, skip="", bridge=header)


class Reasoning:
    """What the chat template and the vocabulary of a model say about its thinking.

    `markers`: None if the model does not think. `switch`: the template's variable that turns thinking on and off, "" if
    there is none. `by_default`: whether it thinks if nobody says otherwise.
    """

    def __init__(self, template: ChatTemplate, tokenizer: _Tokens) -> None:
        self._template = template
        self.markers = next((made for texts, made in FAMILIES if all(text in template.source for text in texts)), None)
        self.switch = next((name for name in _SWITCHES if self.markers and name in template.reads), "")
        self.by_default = self._thinks_by_default()
        self._plain = self._before_calls = None
        if self.markers is not None:
            calls = _before_calls(self.markers)
            self._plain = self.markers, _MarkerTokens.of(self.markers, tokenizer)
            self._before_calls = calls, _MarkerTokens.of(calls, tokenizer)
        self._history = [name for name in _HISTORY if re.search(_READS.format(name), template.source)]

    def _thinks_by_default(self) -> bool:
        """Return what the template does without its switch. It is rendered for a short question."""
        if self.markers is None:
            return False
        try:
            unsaid = self._template.render(_QUESTION)
            if self.switch:
                return unsaid != self._template.render(_QUESTION, options={self.switch: False})
        except RequestError:  # it refuses a single question
            return bool(self.switch) or self.markers.name in _ALWAYS
        # A prompt that tells the model how to mark its thinking, or that has begun it.
        return self.markers.name in _ALWAYS or any(marker in unsaid for marker in self.markers.opens)

    def wanted(self, request: Request) -> bool:
        """Return whether the model should think before this answer. A budget of no tokens is no thinking."""
        enabled, has_budget = request.thinking.enabled, request.thinking.budget != 0
        return self.markers is not None and has_budget and (self.by_default if enabled is None else enabled)

    def messages(self, request: Request) -> list[dict[str, Any]]:
        """Return the messages, with the thinking of earlier answers under the names that the template reads."""
        return [
            {key: value for key, value in message.items() if key != _HISTORY[0]}
            | (dict.fromkeys(self._history, message[_HISTORY[0]]) if _HISTORY[0] in message else {})
            for message in request.messages or ()
        ]

    def options(self, request: Request) -> dict[str, Any]:
        """Return the variables for the template. Its switch is always among them."""
        found: dict[str, Any] = {self.switch: self.wanted(request)} if self.switch else {}
        effort, budget = self._effort(request.thinking.effort), request.thinking.budget
        if effort:
            found[_EFFORT] = effort
        if budget is not None and _BUDGET in self._template.reads:
            found[_BUDGET] = budget
        return found | {name: json.loads(value) for name, value in request.template_kwargs}

    def _effort(self, effort: str) -> str:
        """Return the effort in the template's words, "" if it knows none or not this one."""
        if _EFFORT not in self._template.reads:
            return ""
        if effort == "none" and not re.search(r"[\"']none[\"']", self._template.source):
            return ""
        is_gpt_oss = self.markers is not None and self.markers.name == "gpt-oss"
        return _GPT_OSS_EFFORTS.get(effort, effort) if is_gpt_oss else effort

    def suffix(self, text: str, request: Request) -> str:
        """Return what a rendered prompt needs at its end, so that the model thinks, or does not.

        An answer under a grammar either begins inside the thinking or does not think: a grammar that waits for a model
        that may think would never begin if it does not. It is the same with a budget, which vLLM needs.
        """
        marked, thinking = self._marked(request), request.thinking
        if marked is None or self._is_closed(text):
            return ""
        markers, _ = marked
        if not self.wanted(request):
            return markers.end if self._is_open(text) else markers.skip if self.by_default and not self.switch else ""
        must = request.constraint is not None or thinking.budget is not None
        must = must or (thinking.enabled is True and not self.switch)
        return markers.begin if must and not self._is_open(text) else ""

    def plan(self, text: str, request: Request) -> ThinkingPlan | None:
        """Return how the answers to a rendered prompt think; None if the model does not think.

        `text`: the prompt with its suffix.
        """
        marked = self._marked(request)
        if marked is None:
            return None
        markers, tokens = marked
        budget = 0 if request.thinking.enabled is False else request.thinking.budget
        where = Where.THINKING if self._is_open(text) else Where.LEAD
        if markers.channels and where is Where.LEAD and text.endswith(markers.skip):
            where = Where.CONTENT
        return ThinkingPlan(
            markers,
            where,
            request.constraint is not None,
            budget,
            tokens.end,
            tokens.bridge,
            tokens.endings,
            tokens.pieces,
        )

    def _marked(self, request: Request) -> tuple[Markers, _MarkerTokens] | None:
        """Return the markers for the answers to a request, and their tokens; None if the model does not think."""
        return self._plain if request.offer is None else self._before_calls

    def _is_open(self, text: str) -> bool:
        """Whether a prompt ends inside the thinking."""
        assert self.markers is not None
        end = text.rstrip()
        return any(end.endswith(marker.rstrip()) for marker in self.markers.opens)

    def _is_closed(self, text: str) -> bool:
        """Whether a prompt ends behind the thinking, as that of a template that was told to go without."""
        assert self.markers is not None
        return not self.markers.channels and text.rstrip().endswith(self.markers.close)

    def ignored(self, request: Request) -> tuple[str, ...]:
        """Return the names of the request's fields about thinking that do nothing for this model."""
        return tuple(name for name in request.thinking_fields if not self._heeds(name, request))

    def _heeds(self, name: str, request: Request) -> bool:
        thinks = self.markers is not None
        option = name.removeprefix(_OPTION)
        if option != name:
            return option in self._template.reads or (option in _SWITCHES and thinks)
        checks: dict[str, Callable[[], bool]] = {
            _EFFORT: lambda: _EFFORT in self._template.reads or (thinks and request.thinking.effort == "none"),
            _HISTORY[0]: lambda: bool(self._history),
        }
        return checks[name]() if name in checks else thinks
