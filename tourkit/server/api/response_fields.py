"""The body of POST /v1/responses: converted to a chat request, whose parser reads it.

Errors name the fields that the client sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tourkit.calling.tools import Offer
from tourkit.defaults import RoleDefaults
from tourkit.errors import RequestError, excerpt, quoted
from tourkit.server.api.fields import boolean, integer
from tourkit.server.api.limits import TOOLS, TOP_LOGPROBS
from tourkit.server.api.requests import Generate, checked_model_of, parse_translated
from tourkit.server.api.response_items import Conversation
from tourkit.server.api.route_fields import CHAT, RESPONSES, Use

_LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (  # names in `include`; all except the log probabilities are about things that are not here
    *(_LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url"),
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("computer_call_output.output.image_url", "code_interpreter_call.outputs"),
)
VERBOSITIES = ("low", "medium", "high")
TRUNCATIONS = ("auto", "disabled")
# Fields of `reasoning` that no model here knows.
NAMED_REASONING = ("summary", "generate_summary", "context", "mode")
# Fields that chat requests have under the same name.
_SAME = {field.name for field in RESPONSES if field.use is Use.READ} & {field.name for field in CHAT}
_SAME -= {"tools", "tool_choice", "store", "metadata", "top_logprobs"}
_NAMES = {
    "response_format.json_schema.schema": "text.format.schema",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "reasoning_content": "input.reasoning",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """A parsed request. `about`: the fields of the response that repeat the request.

    `truncates`: the oldest turns of a conversation that is too long are left out.
    """

    generate: Generate
    about: dict[str, Any]
    truncates: bool


def parse_response(body: Any, n_stored: int | None, defaults: tuple[RoleDefaults, ...] = ()) -> AskedResponse:
    """Check and convert the body of POST /v1/responses. Raises RequestError.

    `n_stored`: how many items of the input come from the response that `previous_response_id` names; None if it is not
    stored here. `defaults`: as in Launch.
    """
    _, named = checked_model_of(body, RESPONSES)
    chat = {key: value for key, value in body.items() if key in _SAME}
    form, verbosity = _text(body.get("text"))
    effort, ignored = _reasoning(body.get("reasoning"))
    ignored += ("text.verbosity",) if verbosity else ()
    tools = _tools(body.get("tools"))
    chat |= {
        "response_format": form,
        "reasoning_effort": effort,
        "tools": tools,
        "max_tokens": body.get("max_output_tokens"),
    }
    chat |= {"tool_choice": _choice(body.get("tool_choice"))} | _logprobs(body)
    conversation = Conversation(_string(body, "instructions"), n_stored or 0)
    conversation.take(body.get("input"))
    n_tools = len(tools) if isinstance(tools, list) else 0
    names = _NAMES | {f"tools[{i}].function": f"tools[{i}]" for i in range(n_tools)} | conversation.names
    truncation = _one_of(body, "truncation", TRUNCATIONS) or "disabled"
    about = _about(body, truncation)
    if about["previous_response_id"] is not None and n_stored is None:
        raise not_stored(about["previous_response_id"])
    generate = parse_translated(chat | {"messages": conversation.messages}, names, defaults)
    generate = replace(generate, ignored=(*named, *ignored))
    return AskedResponse(generate, about | _chosen(generate, body, generate.request.offer), truncation == "auto")


def not_stored(id_: str) -> RequestError:
    """Return the error for a response that is not stored here, or is another client's.

    Clients look for the first words: they are OpenAI's.
    """
    return RequestError(
        f"Previous response with id {quoted(id_)} not found: send the whole conversation as input",
        param="previous_response_id",
        code="previous_response_not_found",
        status=404,
    )


def _string(body: dict[str, Any], key: str) -> str | None:
    value = body.get(key)
    if not isinstance(value, str | None):
        raise RequestError(f"{key} must be a string", param=key)
    return value


def _one_of(holder: dict[str, Any], key: str, allowed: tuple[str, ...], where: str = "") -> str | None:
    value = holder.get(key)
    if value is not None and value not in allowed:
        raise RequestError(f"{where or key} must be one of {', '.join(allowed)}", param=where or key)
    return value


def _object(value: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return an object with known keys only; empty if it is null. Keys with the value null are left out."""
    if not isinstance(value, dict | None):
        raise RequestError(f"{where} must be an object", param=where)
    found = {key: each for key, each in (value or {}).items() if each is not None}
    for key in found:
        if key not in known:
            raise RequestError(
                f"{excerpt(f'{where}.{key}')} is not a supported parameter: leave it out",
                param=f"{where}.{key}",
                code="unsupported_parameter",
            )
    return found


def _text(value: Any) -> tuple[dict[str, Any] | None, str]:
    """Return response_format of a chat request, and the verbosity; "" if there is none."""
    text = _object(value, "text", ("format", "verbosity"))
    verbosity = _one_of(text, "verbosity", VERBOSITIES, "text.verbosity") or ""
    form = text.get("format")
    if not isinstance(form, dict | None):
        raise RequestError("text.format must be an object", param="text.format")
    if form is not None and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}, verbosity
    return (None if form is None else {"type": form.get("type")}), verbosity


def _reasoning(value: Any) -> tuple[Any, tuple[str, ...]]:
    """Return reasoning_effort of a chat request, and the fields that do nothing."""
    reasoning = _object(value, "reasoning", ("effort", *NAMED_REASONING))
    return reasoning.get("effort"), tuple(f"reasoning.{key}" for key in NAMED_REASONING if key in reasoning)


def _tools(value: Any) -> Any:
    """Return the tools of a chat request. Everything that is wrong stays: the chat parser checks it."""
    if not isinstance(value, list):
        return value
    TOOLS.check(len(value))
    return [
        {"type": tool["type"], "function": tool} if isinstance(tool, dict) and "type" in tool else tool
        for tool in value
    ]


def _choice(value: Any) -> Any:
    """Return tool_choice of a chat request. Allowed tools may leave out the mode."""
    is_list = isinstance(value, dict) and value.get("type") == "allowed_tools"
    return {"mode": "auto"} | value if is_list else value


def _logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a chat request that ask for log probabilities."""
    include = body.get("include")
    if include is not None and (not isinstance(include, list) or any(name not in INCLUDABLE for name in include)):
        raise RequestError(f"include must be a list of {', '.join(INCLUDABLE)}", param="include")
    top = integer(body, "top_logprobs", 0, TOP_LOGPROBS.most)
    asked = bool(top) or _LOGPROBS in (include or ())
    return {"logprobs": asked, "top_logprobs": top if asked else None}


def _about(body: dict[str, Any], truncation: str) -> dict[str, Any]:
    """Return the fields of the response that repeat the request as it is."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict | None):
        raise RequestError("metadata must be an object", param="metadata")
    names = ("user", "safety_identifier", "prompt_cache_key")
    told = {name: value if isinstance(value := body.get(name), str) else None for name in names}
    calls = body.get("max_tool_calls")
    return {
        "model": body.get("model"),
        "instructions": _string(body, "instructions"),
        "previous_response_id": _string(body, "previous_response_id"),
        "max_tool_calls": calls if isinstance(calls, int) and not isinstance(calls, bool) else None,
        "metadata": metadata or {},
        "truncation": truncation,
        "store": body.get("store") is None or boolean(body, "store"),
        "background": False,
        "service_tier": "default",
    } | told


def _chosen(generate: Generate, body: dict[str, Any], offer: Offer | None) -> dict[str, Any]:
    """Return the fields of the response that say what holds for the answer."""
    params = generate.request.params
    text, reasoning = body.get("text") or {}, body.get("reasoning") or {}
    shown = {"format": _shown_format(text.get("format"))}
    parallel = body.get("parallel_tool_calls")
    return {
        "max_output_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "top_logprobs": params.top_logprobs or 0,
        "parallel_tool_calls": True if parallel is None else parallel,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "text": shown | ({"verbosity": text["verbosity"]} if text.get("verbosity") else {}),
        "tools": [_shown_tool(tool) for tool in body.get("tools") or ()],
        "tool_choice": _shown_choice(body.get("tool_choice"), offer),
    }


def _shown_format(form: dict[str, Any] | None) -> dict[str, Any]:
    if form is None or form["type"] != "json_schema":
        return {"type": "text" if form is None else form["type"]}
    about = {"name": form.get("name") or "schema", "description": form.get("description"), "schema": form["schema"]}
    return {"type": "json_schema"} | about | {"strict": True}


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    about = {key: tool.get(key) for key in ("name", "description", "parameters")}
    return {"type": "function"} | about | {"strict": tool.get("strict") is not False}


def _shown_choice(value: Any, offer: Offer | None) -> Any:
    if value is None or isinstance(value, str):
        return {None: "auto", "any": "required"}.get(value, value)
    if value.get("type") == "allowed_tools":
        return _choice(value)
    return {"type": "function", "name": offer.only[0]} if offer is not None and offer.only else "auto"
