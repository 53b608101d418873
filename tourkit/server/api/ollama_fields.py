"""The fields of Ollama's API: chat, generate, embed. They become requests of OpenAI's API."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tourkit.defaults import RoleDefaults
from tourkit.errors import RequestError
from tourkit.server.api import limits
from tourkit.server.api.completion_fields import parse_completion
from tourkit.server.api.dialects import OLLAMA_CHAT as DIALECT
from tourkit.server.api.fields import boolean, is_whole
from tourkit.server.api.requests import Embed, Generate, checked_model_of, parse_embeddings, parse_translated
from tourkit.server.api.route_fields import (
    OLLAMA_CHAT,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_GENERATE,
    OLLAMA_OPTIONS,
    check_fields,
)
from tourkit.server.api.sampling_fields import top_logprobs_of
from tourkit.server.api.translated import client_errors

_OPTIONS = {  # of the request → of chat
    "num_predict": "max_tokens",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    **{name: name for name in ("presence_penalty", "frequency_penalty")},
}
_NO_LIMIT = {"num_predict": (-1, -2), "seed": (-1,)}  # values that mean: as if it were left out
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_MESSAGE = {"thinking": "reasoning_content", "tool_name": "name"}  # fields of a message with another name in chat
_EMPTY = (None, "")
_ENABLE = "enable_thinking"
_NO_QUESTION = [{"role": "user", "content": ""}]
_SCHEMA_FIELDS = ("response_format", "response_format.json_schema", "response_format.json_schema.schema")


@dataclass(frozen=True, slots=True)
class Loading:
    """A request without a prompt: it only loads the model."""

    model: str
    stream: bool


def parse_ollama_chat(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate | Loading:
    """Check and convert the body of POST /api/chat. `defaults`: as in Launch. Raises RequestError."""
    model, _ = checked_model_of(body, OLLAMA_CHAT)
    names: dict[str, str] = {}
    chat = _common(body, names) | {"tools": body.get("tools")}
    if body.get("messages") in (None, []):
        return _loading(model, chat, defaults, names)
    chat |= {"messages": _messages(body["messages"], names)}
    return _named(body, parse_translated(chat, names, defaults))


def parse_ollama_generate(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate | Loading:
    """Check and convert the body of POST /api/generate. Raises RequestError.

    The prompt is a message of the user. With `raw` or `suffix` it is a plain prompt, without a chat template.
    """
    model, _ = checked_model_of(body, OLLAMA_GENERATE)
    prompt, system, suffix = (_text(body, key) for key in ("prompt", "system", "suffix"))
    _check_images(body, "images")
    is_plain = boolean(body, "raw") or bool(suffix)
    names: dict[str, str] = {}
    chat = _common(body, names)
    if not prompt and not suffix:
        return _loading(model, chat, defaults, names)
    if not is_plain:
        system_first = [{"role": "system", "content": system}] if system else []
        names |= {"messages": "prompt"}
        chat |= {"messages": [*system_first, {"role": "user", "content": prompt}]}
        return _named(body, parse_translated(chat, names, defaults))
    if system:
        raise RequestError(
            "system needs the chat template: leave it out, or leave raw and suffix out",
            param="system",
            code="unsupported_parameter",
        )
    with client_errors(names):
        asked = _plain(chat, prompt, suffix, defaults)
    return _named(body, replace(asked, names=names))


def _loading(model: str, chat: dict[str, Any], defaults: tuple[RoleDefaults, ...], names: dict[str, str]) -> Loading:
    """Return a request that only loads the model. Its other fields are checked too."""
    asked = parse_translated(chat | {"messages": _NO_QUESTION}, names, defaults)
    return Loading(model, asked.stream)


def parse_ollama_embed(body: Any) -> Embed:
    """Check and convert the body of POST /api/embed. Raises RequestError."""
    checked_model_of(body, OLLAMA_EMBED)
    return parse_embeddings({key: body.get(key) for key in ("model", "input", "dimensions")})


def parse_ollama_embeddings(body: Any) -> Embed:
    """Check and convert the body of POST /api/embeddings. Raises RequestError."""
    checked_model_of(body, OLLAMA_EMBEDDINGS)
    given = {"model": body["model"], "input": body.get("prompt")}
    if not isinstance(given["input"], str):
        raise RequestError("prompt must be a string", param="prompt")
    with client_errors({"input": "prompt", "input[0]": "prompt"}):
        return parse_embeddings(given)


def _named(body: dict[str, Any], asked: Generate) -> Generate:
    """Return a request with the model as the client names it.

    Its answer comes in pieces also if it is no stream, because the reply says when the first one came. num_predict is
    only a limit.
    """
    request = replace(asked.request, whole=False, fitted=True)
    return replace(asked, model=body["model"], request=request)


def _plain(chat: dict[str, Any], prompt: str, suffix: str, defaults: tuple[RoleDefaults, ...]) -> Generate:
    """Return the request for a plain prompt. `chat`: the fields of chat."""
    thinks = chat.pop("chat_template_kwargs", {}).get(_ENABLE) or chat.pop("reasoning_effort", None)
    top = top_logprobs_of(chat)
    del chat["top_logprobs"]
    chat |= {"prompt": prompt, "suffix": suffix, "logprobs": top}
    asked = parse_completion(chat, defaults)
    [request] = asked.requests
    ignored = ("think",) if thinks else ()
    return Generate(asked.model, request, asked.stream, features=asked.features, ignored=ignored)


def _common(body: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the fields of chat that /api/chat and /api/generate have in common."""
    chat = {"model": body["model"].removesuffix(DIALECT.tag), "stream": _streams(body)}
    chat |= {key: body.get(key) for key in ("logprobs", "top_logprobs")}
    return chat | _options(body.get("options"), names) | _format(body.get("format"), names) | _think(body, names)


def _streams(body: dict[str, Any]) -> bool:
    return boolean(body, "stream") if body.get("stream") is not None else DIALECT.streams


def _options(value: Any, names: dict[str, str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError("options must be an object", param="options")
    try:
        check_fields(value, OLLAMA_OPTIONS)
    except RequestError as exc:
        raise RequestError(f"options: {exc}", param=f"options.{exc.param}", code=exc.code) from exc
    names |= {theirs: f"options.{ours}" for ours, theirs in _OPTIONS.items()}
    given = {theirs: value[ours] for ours, theirs in _OPTIONS.items() if not _means_nothing(ours, value.get(ours))}
    return given


def _means_nothing(name: str, value: Any) -> bool:
    return value is None or (is_whole(value) and value in _NO_LIMIT.get(name, ()))


def _format(value: Any, names: dict[str, str]) -> dict[str, Any]:
    if value in _EMPTY:
        return {}
    names |= dict.fromkeys(_SCHEMA_FIELDS, "format")
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(value, dict):
        raise RequestError("format must be json or a JSON Schema", param="format")
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def _think(body: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    value = body.get("think")
    if value is None:
        return {}
    names |= {f"chat_template_kwargs.{_ENABLE}": "think", "reasoning_effort": "think"}
    if isinstance(value, bool):
        return {"chat_template_kwargs": {_ENABLE: value}}
    if not isinstance(value, str) or value not in EFFORTS:
        raise RequestError(f"think must be true, false, or one of {', '.join(EFFORTS)}", param="think")
    return {"reasoning_effort": EFFORTS[value]}


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str | None):
        raise RequestError(f"{key} must be a string", param=key)
    return value or ""


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages(value: Any, names: dict[str, str]) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError("messages must be a list of messages", param="messages")
    limits.MESSAGES.check(len(value))
    return [_message(each, f"messages[{i}]", names) for i, each in enumerate(value)]


def _message(message: Any, where: str, names: dict[str, str]) -> Any:
    if not isinstance(message, dict):
        return message  # the parser of chat refuses it
    limits.MESSAGE_FIELDS.check(len(message), where)
    _check_images(message, "images", f"{where}.")
    made = {key: value for key, value in message.items() if key != "images" and key not in _MESSAGE}
    for ours, theirs in _MESSAGE.items():
        if message.get(ours) in _EMPTY:
            continue
        if made.get(theirs) not in _EMPTY:
            both = f"{where}: {ours} and {theirs} are one field: send one of them"
            raise RequestError(both, param=f"{where}.{theirs}")
        made[theirs] = message[ours]
        names[f"{where}.{theirs}"] = f"{where}.{ours}"
    if made.get("content") is None:
        made["content"] = ""
    elif not isinstance(made["content"], str):
        raise RequestError(f"{where}.content must be a string", param=f"{where}.content")
    return made


def _check_images(body: dict[str, Any], key: str, where: str = "") -> None:
    if body.get(key) not in (None, []):
        message = f"{where}{key}: this model is text-only, so leave images out"
        raise RequestError(message, param=f"{where}{key}", code="unsupported_content")
