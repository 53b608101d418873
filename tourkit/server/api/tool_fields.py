"""The fields of a chat request about tools: what it offers, and the calls and results in its messages."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from tourkit.calling.tools import Offer, Tool
from tourkit.errors import RequestError, excerpt, quoted
from tourkit.generation import Constraint
from tourkit.server.api import limits
from tourkit.server.api.fields import boolean

TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
CALL_FIELDS = ("tool_calls", "tool_call_id", "function_call")  # of a message
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
MODES = ("none", "auto", "required")
_EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}


def is_legacy(body: dict[str, Any]) -> bool:
    """Return whether a body has OpenAI's older fields, `functions` instead of `tools`."""
    return bool(body.get("functions")) and not body.get("tools")


def offer_of(body: dict[str, Any], constraint: Constraint | None) -> Offer | None:
    """Return the tools that a body offers, None if its answers may call none. `constraint`: of the content.

    Raises RequestError.
    """
    pairs = ("tools", "tool_choice"), ("functions", "function_call")
    legacy = is_legacy(body)
    (field, chooser), (other, other_chooser) = reversed(pairs) if legacy else pairs
    parallel = body.get("parallel_tool_calls") is None or boolean(body, "parallel_tool_calls")
    tools, where = _tools(body.get(field), field)
    mode, only = _choice(body.get(chooser), chooser, [tool.name for tool in tools])
    # The other pair has no effect. Its values are checked too.
    _tools(body.get(other), other)
    _asked(body.get(other_chooser), other_chooser)
    if not tools or mode == "none":
        return None
    offer = Offer(tools, where, only, required=mode == "required", parallel=parallel and not legacy)
    if constraint is None or offer.required:
        return offer
    if not constraint.is_json:
        said = f"{field} cannot be combined with {constraint.kind}: leave one of them out"
        raise RequestError(said, param=constraint.kind, code="unsupported_parameter")
    return replace(offer, content=constraint.source)


def _tools(value: Any, field: str) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """Return the tools, and for each the field that has its schema."""
    if value is None:
        return (), ()
    if not isinstance(value, list):
        raise RequestError(f"{field} must be a list of functions", param=field)
    limits.TOOLS.check(len(value), field)
    found: dict[str, tuple[Tool, str]] = {}
    for i, each in enumerate(value):
        where = f"{field}[{i}]"
        if field == "tools":
            each, where = _function(each, where), f"{where}.function"
        tool = _tool(each, where)
        if tool.name in found:
            raise RequestError(f"{where}.name: {quoted(tool.name)} is there twice", param=f"{where}.name")
        found[tool.name] = (tool, f"{where}.parameters")
    return tuple(tool for tool, _ in found.values()), tuple(where for _, where in found.values())


def _function(tool: Any, where: str) -> Any:
    if not isinstance(tool, dict):
        raise RequestError(f"{where} must be an object with type and function", param=where)
    if tool.get("type", "function") != "function":
        raise RequestError(
            f"{where}.type must be function: other tools are not served",
            param=f"{where}.type",
            code="unsupported_parameter",
        )
    return tool.get("function")


def _tool(value: Any, where: str) -> Tool:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with name and parameters", param=where)
    name, about, schema = value.get("name"), value.get("description"), value.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RequestError(
            f"{where}.name must have 1 to 128 characters: letters, digits and _ . : / -", param=f"{where}.name"
        )
    if about is not None and not isinstance(about, str):
        raise RequestError(f"{where}.description must be a string", param=f"{where}.description")
    boolean(value, "strict")  # arguments follow the schema in either case
    return Tool(name, about or "", json.dumps(_schema(schema, f"{where}.parameters"), ensure_ascii=False))


def _schema(schema: Any, where: str) -> dict[str, Any]:
    """Return the schema of the arguments of a tool. Arguments are always an object."""
    if schema is None or schema == {}:
        return _EMPTY
    kind = schema.get("type", "object") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or (kind != "object" and not (isinstance(kind, list) and "object" in kind)):
        raise RequestError(f"{where} must be a JSON Schema of type object", param=where, code="invalid_schema")
    for key in ("$schema", "$id"):
        if not isinstance(schema.get(key, ""), str):
            raise RequestError(f"{where}: {key} must be a string", param=where, code="unsupported_schema")
    return schema | {"type": "object"}


def _choice(value: Any, field: str, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """Return the mode of tool_choice, and the names of the only tools that may be called; empty for all of them."""
    mode, only = _asked(value, field)
    if mode == "required" and not names:
        raise RequestError(f"{field} asks for a call, but there are no tools", param=field)
    unknown = [name for name in only if name not in names]
    if unknown:
        raise RequestError(f"{field}: there is no tool {quoted(unknown[0])}", param=field)
    return mode, only


def _asked(value: Any, field: str) -> tuple[str, tuple[str, ...]]:
    if value is None:
        return "auto", ()
    if isinstance(value, str):
        mode = "required" if value == "any" else value
        if mode in MODES:
            return mode, ()
    if isinstance(value, dict):
        if value.get("type") == "allowed_tools":
            return _allowed(value.get("allowed_tools", value), field)
        name = _name_in(value)
        if name is not None:
            return "required", (name,)
    raise RequestError(f"{field} must be none, auto, required, or an object that names a function", param=field)


def _allowed(value: Any, field: str) -> tuple[str, tuple[str, ...]]:
    mode, tools = (value.get("mode"), value.get("tools")) if isinstance(value, dict) else (None, None)
    names = [_name_in(tool) for tool in tools] if isinstance(tools, list) else []
    if mode not in ("auto", "required") or not names or None in names:
        raise RequestError(f"{field}: allowed_tools needs a mode (auto or required) and a list of tools", param=field)
    return mode, tuple(name for name in names if name is not None)


def _name_in(value: Any) -> str | None:
    """Return the name in {"type": "function", "function": {"name": …}}, also without the inner object."""
    inner = value.get("function", value) if isinstance(value, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


class History:
    """The calls and results in the messages of a body, taken in order.

    What is malformed is passed on as text, so that one bad call does not make every later request fail. `malformed`:
    the names of these fields.
    """

    def __init__(self) -> None:
        self.malformed: list[str] = []
        self._open: dict[str, str] = {}  # ids of calls without a result so far → names
        self._known: dict[str, str] = {}

    def assistant(self, message: dict[str, Any], content: str, where: str) -> dict[str, Any]:
        """Return the content and the calls of a message of the assistant."""
        calls, texts = [], [content] if content else []
        for call, at in self._calls_in(message, where):
            made = _call(call, f"call_{len(self._known)}")
            if made is None:
                self.malformed.append(excerpt(at))
                texts.append(json.dumps(call, ensure_ascii=False))
                continue
            calls.append(made)
            self._open[made["id"]] = self._known[made["id"]] = made["function"]["name"]
        return {"content": "\n".join(texts)} | ({"tool_calls": calls} if calls else {})

    def _calls_in(self, message: dict[str, Any], where: str) -> list[tuple[Any, str]]:
        found = message.get("tool_calls")
        if found:
            calls = found if isinstance(found, list) else [found]
            return [(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
        old = message.get("function_call")
        return [({"function": old}, f"{where}.function_call")] if old else []

    def result(self, message: dict[str, Any], content: str, where: str) -> dict[str, Any]:
        """Return a message of the role tool or function. A result without a call becomes one of the user."""
        id_ = message.get("tool_call_id")
        if not isinstance(id_, str) or id_ not in self._known:
            named = message.get("name")
            fits = [key for key, name in self._open.items() if id_ is None and named in (None, name)]
            if not fits:
                self.malformed.append(f"{where}.tool_call_id" if message.get("role") == "tool" else where)
                return {"role": "user", "content": content}
            id_ = fits[0]
        self._open.pop(id_, None)
        return {"role": "tool", "content": content, "tool_call_id": id_, "name": self._known[id_]}

    def joined(self, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        """Return the messages. If some are malformed, those of the user that follow each other become one.

        Many chat templates refuse two in a row.
        """
        made: list[dict[str, Any]] = []
        for message in messages:
            if self.malformed and made and made[-1]["role"] == message["role"] == "user":
                made[-1] = made[-1] | {"content": f"{made[-1]['content']}\n\n{message['content']}"}
            else:
                made.append(message)
        return tuple(made)


def _call(call: Any, new_id: str) -> dict[str, Any] | None:
    """Return a call with its arguments as an object; None if it is malformed."""
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        return None
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict | None):
        return None
    id_ = call.get("id")
    about = {"name": name, "arguments": arguments or {}}
    return {"id": id_ if isinstance(id_, str) and id_ else new_id, "type": "function", "function": about}
