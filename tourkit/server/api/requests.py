"""Convert OpenAI's JSON to our dataclasses. Unsupported fields are refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tourkit.defaults import RoleDefaults, defaults_of
from tourkit.errors import RequestError, excerpt, quoted
from tourkit.generation import Request
from tourkit.server.api import limits
from tourkit.server.api.constraint_fields import constraint_of
from tourkit.server.api.fields import boolean, integer, is_whole
from tourkit.server.api.route_fields import CHAT, DETOKENIZE, EMBEDDINGS, TOKENIZE, Field, check_fields
from tourkit.server.api.sampling_fields import features_of, sampling_of, top_logprobs_of
from tourkit.server.api.thinking_fields import HISTORY_FIELDS, thinking_of, thought_of
from tourkit.server.api.tool_fields import CALL_FIELDS, History, is_legacy, offer_of
from tourkit.server.api.translated import Names, client_errors, client_field

# Content parts of other kinds, as the APIs of OpenAI, vLLM and Anthropic name them.
MEDIA = {
    "image_url": "an image",
    "input_image": "an image",
    "image": "an image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
    "document": "a file",
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
ROLES |= {"function": "tool"}  # its older name


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """`usage`: the last chunk has the usage. `always`: every chunk has the usage so far."""

    usage: bool = False
    always: bool = False


NO_OPTIONS = StreamOptions()


@dataclass(frozen=True, slots=True)
class Generate:
    """A parsed chat request.

    `features`: what it asks for beyond text. `include_reasoning`: whether the reply has the text of the thinking.
    `ignored`: its fields that no model here knows. `legacy_calls`: calls are shown in OpenAI's older form, as
    `function_call`. `names`: of a request of another API, how its body names fields.
    """

    model: str
    request: Request
    stream: bool
    options: StreamOptions = NO_OPTIONS
    features: tuple[str, ...] = ()
    include_reasoning: bool = True
    ignored: tuple[str, ...] = ()
    legacy_calls: bool = False
    names: Names = field(default_factory=dict)


def parse_chat(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate:
    """Check and convert the body of POST /v1/chat/completions. `defaults`: as in Launch. Raises RequestError."""
    model, named = checked_model_of(body, CHAT)
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
    stream = boolean(body, "stream")
    n = integer(body, "n", 1, limits.N.most) or 1
    request = replace(request, n=n, constraint=constraint_of(body), whole=not stream)
    request = replace(request, offer=offer_of(body, request.constraint))
    return Generate(
        model=model,
        request=request,
        stream=stream,
        options=stream_options_of(body),
        features=features_of(body, request),
        include_reasoning=thinking.shown,
        ignored=named,
        legacy_calls=is_legacy(body),
    )


def parse_translated(chat: dict[str, Any], names: Names, defaults: tuple[RoleDefaults, ...] = ()) -> Generate:
    """Convert a chat body that was made of the body of another API.

    `names`: as in Generate. Errors, and reports about the schemas of tools, name the client's fields.
    """
    with client_errors(names):
        asked = parse_chat(chat, defaults)
    offer = asked.request.offer
    if offer is not None:
        offer = replace(offer, where=tuple(client_field(where, names) for where in offer.where))
    return replace(asked, request=replace(asked.request, offer=offer), names=names)


def parse_tokenize(body: Any) -> tuple[str, bool]:
    """Check the body of POST /tokenize. Return the text, and whether to add the model's special tokens."""
    checked_model_of(body, TOKENIZE)
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError("prompt must be a string", param="prompt")
    limits.TOKENIZED.check(len(prompt))
    return prompt, boolean(body, "add_special_tokens")


def parse_detokenize(body: Any) -> list[int]:
    """Check the body of POST /detokenize. Return the token ids."""
    checked_model_of(body, DETOKENIZE)
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(map(is_token, tokens)):
        raise RequestError("tokens must be a list of token ids", param="tokens")
    limits.TOKENS.check(len(tokens))
    return list(map(int, tokens))


@dataclass(frozen=True, slots=True)
class Embed:
    """A parsed request for embeddings of texts or of token ids."""

    model: str
    texts: tuple[str | tuple[int, ...], ...]
    base64: bool
    dimensions: int | None


def parse_embeddings(body: Any) -> Embed:
    """Check and convert the body of POST /v1/embeddings. Raises RequestError with the field."""
    model, _ = checked_model_of(body, EMBEDDINGS)
    form = body.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise RequestError("encoding_format must be float or base64", param="encoding_format")
    given = body.get("input")
    # One text, one list of token ids, or a list of either.
    texts = given if isinstance(given, list) and given and not is_token(given[0]) else [given]
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
    if isinstance(text, list) and text and all(map(is_token, text)):
        return tuple(map(int, text))
    raise RequestError(f"{where} must be a non-empty string or a non-empty list of token ids", param="input")


def is_token(value: Any) -> bool:
    """Whether a value of JSON can be a token id."""
    low, high = limits.TOKEN_IDS
    return is_whole(value) and low <= value <= high


def model_of(body: Any) -> str:
    """Return the model that the body of any route names. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", param="body", code="invalid_json")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("model is missing: name a role, such as 'tool', or a model id", param="model")
    limits.MODEL.check(len(model))
    return model


def unknown_model(name: str, known: Iterable[str], *, state: str) -> RequestError:
    """Return the error for a model that is not here. `known`: the names that are. `state`: what these models are."""
    return RequestError(
        f"model {quoted(name)} is not {state} here: use one of {', '.join(known)}",
        param="model",
        code="model_not_found",
        status=404,
    )


def checked_model_of(body: Any, fields: tuple[Field, ...]) -> tuple[str, tuple[str, ...]]:
    """Check that the body is an object with fields of a route only. Raises RequestError.

    Return the model that it names, and its fields that only other models know.
    """
    named = check_fields(body, fields) if isinstance(body, dict) else ()
    return model_of(body), named


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
    if not isinstance(role, str) or role not in ROLES:
        given = f"{quoted(role)} is not supported" if isinstance(role, str) else "must be a string"
        raise RequestError(f"{where}.role {given}: use one of {', '.join(ROLES)}", param=f"{where}.role")
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
    if ROLES[role] == "tool":
        return history.result(message, content, where)
    return {"role": ROLES[role], "content": content} | thought


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in MEDIA:
                raise RequestError(
                    f"{where}[{i}] is {MEDIA[kind]}: this model is text-only, so send text parts only",
                    param=f"{where}[{i}]",
                    code="unsupported_content",
                )
            if (
                not isinstance(part, dict)
                or kind not in ("text", "input_text")
                or not isinstance(part.get("text"), str)
            ):
                raise RequestError(f"{where}[{i}] must be a text part: only text is served", param=f"{where}[{i}]")
            parts.append(part["text"])
        return "".join(parts)
    raise RequestError(f"{where} must be a string or a list of text parts", param=where)


def stream_options_of(body: dict[str, Any]) -> StreamOptions:
    """Return what a body asks of a stream. Options that cannot change the answer are accepted without effect."""
    value, key = body.get("stream_options"), "stream_options"
    if not isinstance(value, dict | None):
        raise RequestError(f"{key} must be an object", param=key)
    options = value or {}
    try:
        usage, always = (boolean(options, name) for name in ("include_usage", "continuous_usage_stats"))
    except RequestError as exc:
        raise RequestError(f"{key}: {exc}", param=key) from exc
    return StreamOptions(usage, usage and always)
