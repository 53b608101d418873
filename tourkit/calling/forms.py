"""The forms in which the families of models call tools: one table of plain data.

A form is what a model writes around the name and the arguments of each call. The form of a model is found in its chat
template.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum

from tourkit.calling.parameters import Notation

SPACE = " \t\r\n"  # characters that may stand before the first call


class Shown(Enum):
    """How a prompt shows the tools."""

    TEMPLATE = "template"  # the chat template reads a variable
    SYSTEM_FIELD = "system field"  # the chat template reads the field `tools` of the system message
    TEXT = "text"  # the chat template knows nothing of tools: tourkit writes a text


@dataclass(frozen=True, slots=True)
class Form:
    """How a family calls tools. An answer with two calls is written as

    marker opening begin NAME middle ARGUMENTS end between begin NAME middle ARGUMENTS end closing

    `marker`: the text that opens the calls. If it is empty, only a whole head of a call at the start of the answer,
    `begin NAME middle`, opens it. `free`: what stands before an answer without calls. `several`: an answer can have
    several calls. `shown`: how the prompt shows the tools. `variable`: the template's name for them. `one_a_message`:
    an earlier message of the assistant has one call at most. `short_ids`: ids in the prompt are nine letters or digits.
    `text_arguments`: the template wants the arguments of earlier calls as JSON text, not as an object. `text_calls`: it
    reads no earlier calls, so they are written into the content. `notation`: how arguments are written one by one; None
    if they are a JSON object.
    """

    name: str
    marker: str
    begin: str
    middle: str
    end: str = ""
    opening: str = ""
    between: str = ""
    closing: str = ""
    free: str = ""
    several: bool = True
    shown: Shown = Shown.TEMPLATE
    variable: str = "tools"
    one_a_message: bool = False
    short_ids: bool = False
    text_arguments: bool = False
    text_calls: bool = False
    notation: Notation | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The fixed texts."""
        around = (self.free, self.marker, self.opening, self.begin, self.middle, self.end, self.between, self.closing)
        return around if self.notation is None else (*around, *self.notation.texts)

    def head(self, name: str, *, first: bool) -> str:
        """Return all text from the end of the marker, or of the arguments before, to the arguments of a call."""
        before = self.opening if first else self.end + self.between
        return f"{before}{self.begin}{name}{self.middle}"

    def written(self, calls: list[tuple[str, str]]) -> str:
        """Return calls, as pairs of a name and the JSON text of the arguments, as the model would write them."""
        each = [f"{self.begin}{name}{self.middle}{self._arguments(text)}{self.end}" for name, text in calls]
        return f"{self.marker}{self.opening}{self.between.join(each)}{self.closing}" if each else ""

    def _arguments(self, text: str) -> str:
        return text if self.notation is None else self.notation.written(json.loads(text))


_JSON = '{"name": "'
_HERMES = Form(
    "hermes",
    marker="<tool_call>",
    begin="\n" + _JSON,
    middle='", "arguments": ',
    end="}\n</tool_call>",
    between="\n<tool_call>",
)
# Without a form of its own, a model gets the form that most models were trained on.
GENERIC = replace(_HERMES, name="generic", shown=Shown.TEXT)
_QWEN_XML = Form(
    "qwen-xml",
    marker="<tool_call>",
    begin="\n<function=",
    middle=">\n",
    end="</function>\n</tool_call>",
    between="\n<tool_call>",
    notation=Notation("<parameter=", ">\n", "\n</parameter>\n", quote=""),
)
_LFM = Form(
    "lfm",
    marker="<|tool_call_start|>",
    opening="[",
    begin="",
    middle="(",
    end=")",
    between=", ",
    closing="]<|tool_call_end|>",
    notation=Notation("", "=", "", between=", ", python=True),
)
_DEEPSEEK = Form(
    "deepseek",
    marker="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>",
    begin="",
    middle="<｜tool▁sep｜>",
    end="<｜tool▁call▁end｜>",
    between="<｜tool▁call▁begin｜>",
    closing="<｜tool▁calls▁end｜>",
    shown=Shown.TEXT,
)
_LLAMA = Form(
    "llama-3",
    marker="",
    begin=_JSON,
    middle='", "parameters": ',
    end="}",
    between="; ",
    one_a_message=True,
)
_MISTRAL = Form(
    "mistral",
    marker="[TOOL_CALLS]",
    opening="[",
    begin=_JSON,
    middle='", "arguments": ',
    end="}",
    between=", ",
    closing="]",
    short_ids=True,
)


@dataclass(frozen=True, slots=True)
class _Family:
    """A form, and how a chat template shows that it is the right one.

    `has`: texts that the template has. `lacks`: texts that it does not have.
    """

    has: tuple[str, ...]
    form: Form
    lacks: tuple[str, ...] = ()


# The first family that fits is taken.
FAMILIES = (
    _Family(  # gpt-oss: https://cookbook.openai.com/articles/openai-harmony
        ("<|channel|>", "functions.", "tools"),
        Form(
            "gpt-oss",
            marker="<|channel|>commentary to=functions.",
            begin="",
            middle=" <|constrain|>json<|message|>",
            free="<|channel|>final<|message|>",
            several=False,
            one_a_message=True,
        ),
    ),
    _Family(
        ("[TOOL_CALLS]", "[ARGS]"),
        Form(
            "mistral-args",
            marker="[TOOL_CALLS]",
            begin="",
            middle="[ARGS]",
            between="[TOOL_CALLS]",
            short_ids=True,
        ),
    ),
    _Family(("[TOOL_CALLS]",), _MISTRAL),
    _Family(  # Phi-4-mini
        ("<|tool|>", "message['tools']"),
        Form(
            "phi-4",
            marker="<|tool_call|>",
            opening="[",
            begin=_JSON,
            middle='", "arguments": ',
            end="}",
            between=", ",
            closing="]<|/tool_call|>",
            shown=Shown.SYSTEM_FIELD,
        ),
    ),
    _Family(  # Granite 3
        ("<|tool_call|>", "available_tools"),
        replace(_MISTRAL, name="granite-3", marker="<|tool_call|>", short_ids=False, text_calls=True),
    ),
    _Family(("<tool_call>", "xml_tools"), replace(_HERMES, variable="xml_tools")),  # SmolLM3
    _Family(("<tool_call>", "<function=", "<parameter=", "tools"), _QWEN_XML),  # Qwen3.5, Qwen3-Coder, Nemotron 3
    _Family(  # Gemma 4
        ("<|tool_call>call:",),
        Form(
            "gemma-4",
            marker="<|tool_call>",
            begin="call:",
            middle="{",
            end="}<tool_call|>",
            between="<|tool_call>",
            notation=Notation("", ":", "", between=",", quote='<|"|>'),
        ),
    ),
    _Family(("List of tools: ", "tool_calls"), _LFM),  # LFM2.5 8B
    _Family(("List of tools: ",), replace(_LFM, text_calls=True)),  # LFM2 and LFM2.5
    _Family(  # DeepSeek R1; its templates show no tools
        ("<｜tool▁calls▁begin｜>", "```json"),
        replace(
            _DEEPSEEK,
            name="deepseek-r1",
            begin="function<｜tool▁sep｜>",
            middle="\n```json\n",
            end="\n```<｜tool▁call▁end｜>",
            between="\n<｜tool▁call▁begin｜>",
        ),
    ),
    _Family(("<｜tool▁calls▁begin｜>",), _DEEPSEEK),  # DeepSeek V3.1; its template shows no tools
    _Family(
        ("<tool_call>", "tools", "arguments"), _HERMES, lacks=("<function=", "<arg_key>", "<invoke", "<tool_calls>")
    ),
    _Family(("ipython", '"parameters": ', "tools"), _LLAMA),
    _Family(  # Gemma 2 and 3: https://ai.google.dev/gemma/docs/capabilities/function-calling
        ("<start_of_turn>",), replace(_LLAMA, name="gemma", shown=Shown.TEXT), lacks=("tool_call",)
    ),
)


def form_of(template: str) -> Form:
    """Return the form of the model that has this chat template."""
    for family in FAMILIES:
        if all(text in template for text in family.has) and not any(text in template for text in family.lacks):
            return family.form
    return GENERIC
