"""Convert OpenAI's JSON to our dataclasses. Unsupported fields are refused by name, never ignored."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from typing import Any

from tourkit.defaults import RoleDefaults, defaults_of
from tourkit.errors import RequestError, excerpt, quoted
from tourkit.generation import Constraint, Request
from tourkit.server.api import limits
from tourkit.server.api.fields import boolean, integer
from tourkit.server.api.sampling_fields import features_of, sampling_of, top_logprobs_of
from tourkit.server.api.thinking_fields import HISTORY_FIELDS, THINKING_FIELDS, thinking_of, thought_of
from tourkit.server.api.tool_fields import CALL_FIELDS, TOOL_FIELDS, History, is_legacy, offer_of

_COMMON = [
    *("model", "stream", "stream_options", "n", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "logit_bias"),
    *("response_format", "regex", "grammar", "choice", "user"),
]
# Unsupported OpenAI fields that clients send with a value without effect. They are accepted with that value only.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False, None),
    "echo": (False, None),
    "suffix": ("", None),
    "best_of": (1, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "parallel_tool_calls": (True, False, None),
    "store": (False, None),
    "metadata": ({}, None),
    "service_tier": ("auto", "default", None),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_ROLES |= {"function": "tool"}  # its older name
_LONGEST_GUESSED = 32  # characters; the time to find a similar name grows fast with the length


@dataclass(frozen=True, slots=True)
class Generate:
    """A parsed request for text, with messages or with a plain prompt.

    `features`: what it asks for beyond text. `include_reasoning`: whether the reply has the text of the thinking.
    `legacy_calls`: calls are shown in OpenAI's older form, as `function_call`.
    """

    model: str
    request: Request
    stream: bool
    include_usage: bool
    features: tuple[str, ...] = ()
    include_reasoning: bool = True
    legacy_calls: bool = False


def parse_chat(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate:
    """Check and convert the body of POST /v1/chat/completions. `defaults`: as in Launch. Raises RequestError."""
    model = _model_of(body, [*_COMMON, "messages", "logprobs", "top_logprobs", *THINKING_FIELDS, *TOOL_FIELDS])
    usual = defaults_of(defaults, model)
    history = History()
    messages, top = _messages(body.get("messages"), history), top_logprobs_of(body)
    thinking = thinking_of(body, usual)
    request = Request(
        messages=messages,
        params=sampling_of(body, usual.sampling, top),
        template_kwargs=thinking.kwargs,
        thinking=thinking.thinking,
        thinking_fields=thinking.fields,
        malformed=tuple(history.malformed),
    )
    made = _generate(model, body, request)
    request = replace(made.request, offer=offer_of(body, made.request.constraint))
    return replace(made, request=request, include_reasoning=thinking.shown, legacy_calls=is_legacy(body))


def parse_completion(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate:
    """Check and convert the body of POST /v1/completions: `prompt` is one string. `defaults`: as in Launch.

    Raises RequestError.
    """
    model = _model_of(body, [*_COMMON, "prompt"])
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise RequestError("prompt must be one non-empty string", param="prompt")
    usual = defaults_of(defaults, model)
    return _generate(model, body, Request(prompt=prompt, params=sampling_of(body, usual.sampling, None)))


def parse_tokenize(body: Any) -> tuple[str, bool]:
    """Check the body of POST /tokenize. Return the text, and whether to add the model's special tokens."""
    _model_of(body, ["model", "prompt", "add_special_tokens"])
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError("prompt must be a string", param="prompt")
    limits.TOKENIZED.check(len(prompt))
    return prompt, boolean(body, "add_special_tokens")


def parse_detokenize(body: Any) -> list[int]:
    """Check the body of POST /detokenize. Return the token ids."""
    _model_of(body, ["model", "tokens"])
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(map(_is_token, tokens)):
        raise RequestError("tokens must be a list of token ids", param="tokens")
    limits.TOKENS.check(len(tokens))
    return list(tokens)


@dataclass(frozen=True, slots=True)
class Embed:
    """A parsed request for embeddings of texts or of token ids."""

    model: str
    texts: tuple[str | tuple[int, ...], ...]
    base64: bool
    dimensions: int | None


def parse_embeddings(body: Any) -> Embed:
    """Check and convert the body of POST /v1/embeddings. Raises RequestError with the field."""
    model = _model_of(body, ["model", "input", "encoding_format", "dimensions", "user"])
    form = body.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise RequestError("encoding_format must be float or base64", param="encoding_format")
    given = body.get("input")
    # One text, one list of token ids, or a list of either.
    texts = given if isinstance(given, list) and given and not _is_token(given[0]) else [given]
    limits.TEXTS.check(len(texts))
    return Embed(
        model=model,
        texts=tuple(_text_to_embed(text, f"input[{i}]") for i, text in enumerate(texts)),
        base64=form == "base64",
        dimensions=integer(body, "dimensions", 1),
    )


def _text_to_embed(text: Any, where: str) -> str | tuple[int, ...]:
    if isinstance(text, str) and text:
        limits.TEXT_LENGTH.check(len(text), where)
        return text
    if isinstance(text, list) and text and all(map(_is_token, text)):
        return tuple(text)
    raise RequestError(f"{where} must be a non-empty string or a non-empty list of token ids", param="input")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _generate(model: str, body: dict[str, Any], request: Request) -> Generate:
    """Parse the fields that chat and plain completions have in common."""
    stream = boolean(body, "stream")
    n = integer(body, "n", 1, limits.N.most) or 1
    request = replace(request, n=n, constraint=_one_constraint(body), whole=not stream)
    return Generate(
        model=model,
        request=request,
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        features=features_of(body, request),
    )


def model_of(body: Any) -> str:
    """Return the model that the body of any route names. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", param="body", code="invalid_json")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("model is missing: name a role, such as 'tool', or a model id", param="model")
    limits.MODEL.check(len(model))
    return model


def _model_of(body: Any, supported: list[str]) -> str:
    """Check that the body is an object with supported keys only, and return the model that it names."""
    if isinstance(body, dict):
        limits.FIELDS.check(len(body))
        _refuse_unknown(body, supported)
    return model_of(body)


def _refuse_unknown(body: dict[str, Any], supported: list[str]) -> None:
    for key, value in body.items():
        if key in supported:
            continue
        if key in _NEUTRAL:
            if value not in _NEUTRAL[key]:
                raise RequestError(
                    f"{key} is not supported here: leave it out", param=key, code="unsupported_parameter"
                )
            continue
        is_short = len(key) <= _LONGEST_GUESSED
        near = difflib.get_close_matches(key, [*supported, *_NEUTRAL], n=1) if is_short else []
        hint = f"did you mean {near[0]!r}?" if near else "leave it out"
        raise RequestError(
            f"{quoted(key)} is not a supported parameter: {hint}", param=key, code="unsupported_parameter"
        )


def _messages(value: Any, history: History) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list of at least one message", param="messages")
    limits.MESSAGES.check(len(value))
    return history.joined([_message(message, f"messages[{i}]", history) for i, message in enumerate(value)])


def _message(message: Any, where: str, history: History) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(f"{where} must be an object with role and content", param=where)
    limits.MESSAGE_FIELDS.check(len(message), where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        given = f"{quoted(role)} is not supported" if isinstance(role, str) else "must be a string"
        raise RequestError(f"{where}.role {given}: use one of {', '.join(_ROLES)}", param=f"{where}.role")
    for key, content in message.items():
        if key not in ("role", "content", "name", *HISTORY_FIELDS, *CALL_FIELDS) and content not in (None, [], {}):
            field = f"{where}.{key}"
            raise RequestError(f"{excerpt(field)} is not supported", param=field, code="unsupported_parameter")
    has_calls = role == "assistant" and bool(message.get("tool_calls") or message.get("function_call"))
    is_empty = has_calls and message.get("content") is None
    content = "" if is_empty else _content(message.get("content"), f"{where}.content")
    thought = thought_of(message, role, where)
    if has_calls:
        return {"role": role} | history.assistant(message, content, where) | thought
    if _ROLES[role] == "tool":
        return history.result(message, content, where)
    return {"role": _ROLES[role], "content": content} | thought


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for i, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise RequestError(f"{where}[{i}] must be a text part: only text is served", param=f"{where}[{i}]")
            parts.append(part["text"])
        return "".join(parts)
    raise RequestError(f"{where} must be a string or a list of text parts", param=where)


def _one_constraint(body: dict[str, Any]) -> Constraint | None:
    """Return the constraint on the text: response_format, or one of the extras regex, grammar and choice."""
    found = [_constraint(body.get("response_format")), *(_extra(body, key) for key in ("regex", "grammar", "choice"))]
    given = [constraint for constraint in found if constraint is not None]
    if len(given) > 1:
        raise RequestError("give only one of response_format, regex, grammar and choice", param="response_format")
    return given[0] if given else None


def _extra(body: dict[str, Any], key: str) -> Constraint | None:
    value = body.get(key)
    if value is None:
        return None
    if key == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise RequestError("choice must be a list of non-empty strings", param=key)
        limits.CHOICES.check(len(value))
        return Constraint(key, json.dumps(value, ensure_ascii=False))
    if not isinstance(value, str) or not value:
        raise RequestError(f"{key} must be a non-empty string", param=key)
    return Constraint(key, value)


def _constraint(value: Any) -> Constraint | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint.json_object()
    if kind != "json_schema":
        raise RequestError(
            "response_format.type must be text, json_object or json_schema", param="response_format.type"
        )
    holder = value.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise RequestError(
            "response_format.json_schema.schema must be a JSON Schema object", param="response_format.json_schema"
        )
    for key in ("$schema", "$id"):
        if not isinstance(schema.get(key, ""), str):
            raise RequestError(
                f"response_format.json_schema.schema: {key} must be a string",
                param="response_format.json_schema",
                code="unsupported_schema",
            )
    return Constraint.json_schema(schema)


def _include_usage(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise RequestError("stream_options takes include_usage only", param="stream_options")
    return boolean(value, "include_usage")
