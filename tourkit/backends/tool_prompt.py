"""How a model is shown tools, earlier calls and their results; and what it may write to call a tool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from tourkit.backends.chat_template import ChatTemplate
from tourkit.backends.control_tokens import ControlTokens
from tourkit.calling.forms import GENERIC, Form, Shown, form_of
from tourkit.calling.parameters import Notation
from tourkit.calling.tools import Offer
from tourkit.errors import RequestError
from tourkit.generation import Constraint
from tourkit.grammar.call_grammar import CallSpec, Parts, ValueSpec

_MOST_CALLS = 16  # in one answer; a small model may not know when to stop
_SHORT_ID = 9  # characters
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # names of the thinking in a message
_SYSTEM = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]

Message = dict[str, Any]


class ToolPrompt:
    """The tools of one model. `form`: how it calls them, from its chat template."""

    def __init__(self, template: ChatTemplate, control_tokens: ControlTokens, hidden: frozenset[int]) -> None:
        """`hidden`: the control tokens whose text is not in the text of an answer."""
        self._template = template
        self._control_tokens = control_tokens
        self._hidden = hidden
        self._form = form_of(template.source)

    def form(self, offer: Offer | None) -> Form:
        """Return how the answers to a request call tools.

        A form without a marker does not go with a schema for the content: both begin with the same bracket. A form that
        writes arguments one by one does not go with every schema.
        """
        if offer is None:
            return self._form
        is_mixed = bool(offer.content) and not self._form.marker
        cannot = self._form.notation is not None and None in offer.parameters.values()
        return GENERIC if is_mixed or cannot else self._form

    def pieces(self, form: Form) -> dict[int, bytes]:
        """Return the texts of the control tokens in a form. The text of an answer leaves these tokens out otherwise."""
        found = {part for text in form.texts for part in self._parts(text) if isinstance(part, int)}
        return {id_: text.encode() for text, id_ in self._control_tokens.ids.items() if id_ in found}

    def constraint(self, offer: Offer) -> Constraint:
        """Return the constraint for answers that may call these tools."""
        form = self.form(offer)
        tools = [(tool, where) for tool, where in zip(offer.tools, offer.where, strict=True) if offer.may(tool.name)]
        spec = CallSpec(
            free=self._parts(form.free),
            marker=self._parts(form.marker),
            opening=self._parts(form.opening),
            begin=self._parts(form.begin),
            middle=self._parts(form.middle),
            end=self._parts(form.end),
            between=self._parts(form.between),
            closing=self._parts(form.closing),
            values=None if form.notation is None else self._values(form.notation),
            names=tuple(tool.name for tool, _ in tools),
            schemas=tuple(tool.parameters for tool, _ in tools),
            where=tuple(where for _, where in tools),
            most=_MOST_CALLS if offer.parallel and form.several else 1,
            required=offer.required,
            content=None if offer.required else offer.content or None,
        )
        return Constraint("tools", spec.to_json())

    def _values(self, notation: Notation) -> ValueSpec:
        return ValueSpec(
            begin=self._parts(notation.begin),
            middle=self._parts(notation.middle),
            end=self._parts(notation.end),
            between=self._parts(notation.between),
            quote=None if notation.quote is None else self._parts(notation.quote),
            python=notation.python,
        )

    def _parts(self, text: str) -> Parts:
        found: list[str | int] = []
        for part in self._control_tokens.parts(text, ""):
            if isinstance(part, int) and part not in self._hidden:
                part = next(name for name, id_ in self._control_tokens.ids.items() if id_ == part)
            found.append(part)
        return tuple(found)

    def placed(self, messages: list[Message], tools: list[Message], form: Form) -> tuple[list[Message], dict[str, Any]]:
        """Return the messages as the template reads them, and variables for it.

        `messages`: with `tool_calls` and the role `tool`, as OpenAI has them, and arguments as objects. `tools`: as
        `Tool.to_json` makes them; empty if the answers may call none.
        """
        if form.shown is Shown.TEMPLATE:
            variables = {form.variable: tools} if tools else {}
            return list(self._as_template_reads(messages, form)), variables
        messages = list(_as_text(messages, form))
        if not tools:
            return messages, {}
        if form.shown is Shown.SYSTEM_FIELD:
            if messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": ""})
            return [messages[0] | {"tools": _json(tools)}, *messages[1:]], {}
        return self._with_text(messages, _introduction(tools, form)), {}

    def _as_template_reads(self, messages: list[Message], form: Form) -> Iterator[Message]:
        for message in _one_call_each(messages) if form.one_a_message else messages:
            if message["role"] == "tool":
                yield message | {"tool_call_id": _id(message["tool_call_id"], form)}
            elif "tool_calls" in message and form.text_calls:
                yield _with_written_calls(message, form)
            elif "tool_calls" in message:
                calls = [
                    call | {"id": _id(call["id"], form), "function": _function(call["function"], form)}
                    for call in message["tool_calls"]
                ]
                # The template of gpt-oss takes either a content or a thinking.
                both = form.free and message["content"]
                kept = {key: value for key, value in message.items() if not (both and key in _THOUGHTS)}
                yield kept | {"tool_calls": calls}
            else:
                yield message

    def _with_text(self, messages: list[Message], text: str) -> list[Message]:
        """Return the messages with a text in the system message, or in the first message if there is no such role."""
        first, *rest = messages
        if first["role"] == "system":
            return [first | {"content": f"{first['content']}\n\n{text}"}, *rest]
        if self._takes_system:
            return [{"role": "system", "content": text}, *messages]
        return [first | {"content": f"{text}\n\n{first['content']}"}, *rest]

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template shows a system message."""
        try:
            return _SYSTEM[0]["content"] in self._template.render(_SYSTEM)
        except RequestError:
            return False


def _introduction(tools: list[Message], form: Form) -> str:
    """Return the text that shows tools to a model whose template knows nothing of them."""
    shown = "\n".join(_json(tool["function"]) for tool in tools)
    call = form.written([("NAME", "ARGUMENTS")])
    return (
        f"You can call functions. Here is one a line, with the JSON Schema of its arguments:\n{shown}\n\n"
        f"To call a function, write this and nothing else. ARGUMENTS is a JSON object:\n{call}\n\n"
        "If no function helps, answer in plain text."
    )


def _as_text(messages: list[Message], form: Form) -> Iterator[Message]:
    """Yield the messages with calls and results as text. Results that follow each other become one message."""
    results: list[str] = []
    role = "tool_response" if form.shown is Shown.SYSTEM_FIELD else "user"
    for message in messages:
        if message["role"] == "tool":
            results.append(_result(message, form))
            continue
        said = message.get("content") or ""
        if results and message["role"] == "user" and role == "user":
            message, results = message | {"content": "\n".join([*results, said])}, []
        if results:
            yield {"role": role, "content": "\n".join(results)}
            results = []
        yield _with_written_calls(message, form) if "tool_calls" in message else message
    if results:
        yield {"role": role, "content": "\n".join(results)}


def _with_written_calls(message: Message, form: Form) -> Message:
    """Return a message with its calls as text in its content."""
    calls = [(call["function"]["name"], _json(call["function"]["arguments"])) for call in message["tool_calls"]]
    text = "\n".join(filter(None, (message["content"], form.written(calls))))
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": text}


def _result(message: Message, form: Form) -> str:
    said = str(message["content"])
    return said if form.shown is Shown.SYSTEM_FIELD else f"<tool_response>\n{said}\n</tool_response>"


def _one_call_each(messages: list[Message]) -> Iterator[Message]:
    """Yield the messages with one call in each. The result of a call follows it."""
    left = list(messages)
    while left:
        message = left.pop(0)
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            yield message
            continue
        results = []
        while left and left[0]["role"] == "tool":
            results.append(left.pop(0))
        for at, call in enumerate(calls):
            yield message | {"tool_calls": [call], "content": message["content"] if at == 0 else ""}
            yield from (result for result in results if result["tool_call_id"] == call["id"])
        known = {call["id"] for call in calls}
        yield from (result for result in results if result["tool_call_id"] not in known)


def _function(function: Message, form: Form) -> Message:
    return function | {"arguments": _json(function["arguments"])} if form.text_arguments else function


def _id(id_: str, form: Form) -> str:
    """Return the id of a call as the template wants it."""
    if not form.short_ids or (len(id_) == _SHORT_ID and id_.isalnum()):
        return id_
    return hashlib.sha256(id_.encode()).hexdigest()[:_SHORT_ID]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
