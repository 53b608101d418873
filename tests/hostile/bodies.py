"""A seeded generator of hostile request bodies: valid bodies of all routes with some parts changed.

Half of the valid bodies are in this module. The other half are made from the schemas of the OpenAPI document, so that
every field of every route is tried.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schema_bodies import Bodies

from tourkit.server.api.openapi.bodies import body_schema
from tourkit.server.api.openapi.document import schemas
from tourkit.server.api.route_fields import ROUTES


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that is put into the JSON unchanged, also where it is not JSON."""

    text: str


_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"enum": [1, 2, None]}},
    "required": ["name"],
    "additionalProperties": False,
}
_SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 7,
    "n": 2,
    "stop": ["\n", "end"],
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {"5": 1, "17": -100.0},
    "user": "me",
}
_MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "name": "me", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]},
]
_PLAIN = [{"role": "user", "content": "Hello"}]
_JSON = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": _SCHEMA}}
_MOST_TOKENS = 2
_ENDING = {"max_tokens": _MOST_TOKENS}
_USUAL = {"max_tokens", "max_output_tokens"}
_LIMITS = _USUAL | {"max_completion_tokens", "num_predict"}
# What a request can do to a model, and the model that it names. A load takes seconds, so no model is unloaded.
_CHANGES = {"load": "tool", "unload": "nobody", "pin": "tool", "unpin": "tool"}
_USAGE = {"include_usage": True, "continuous_usage_stats": True}
_HARMLESS = {
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "safety_identifier": "me",
    "prediction": {"type": "content", "content": "x"},
    "verbosity": "low",
    "keep_alive": "5m",
    "cache_prompt": True,
}
_NEUTRAL = {
    "modalities": ["text"],
    "repetition_penalty": 1.0,
    "repeat_penalty": 1,
    "min_tokens": 0,
    "ignore_eos": False,
    "stop_token_ids": [],
    "top_k": -1,
    "echo": False,
}
_FUNCTION = {"name": "look_up", "description": "In a table.", "strict": True, "parameters": _SCHEMA}
_TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": _FUNCTION}], "parallel_tool_calls": False}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"name": "a"}'}}
_CALLED = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "nothing"},
]
_OLD_CALLED = [
    {"role": "assistant", "content": None, "function_call": {"name": "look_up", "arguments": "{}"}},
    {"role": "function", "name": "look_up", "content": "nothing"},
]
_ONE = {"type": "function", "function": {"name": "look_up"}}
_ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
    },
    {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": '{"name": "a"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "nothing"},
]
_FLAT = {"tools": [{"type": "function", **_FUNCTION}], "tool_choice": {"type": "function", "name": "look_up"}}
_FORM = {"text": {"format": {"type": "json_schema", "name": "it", "schema": _SCHEMA}, "verbosity": "low"}}
_VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "tool", "messages": _MESSAGES, **_ENDING, **_SAMPLING}),
    ("/v1/chat/completions", {"model": "tool", "messages": _PLAIN, "response_format": _JSON, "max_tokens": 20}),
    ("/v1/chat/completions", {"model": "tool", "messages": _PLAIN, "logprobs": True, "top_logprobs": 2, **_ENDING}),
    (
        "/v1/chat/completions",
        {"model": "tool", "messages": _PLAIN, "stream": True, "stream_options": {"include_usage": True}, **_ENDING},
    ),
    (
        "/v1/chat/completions",
        {"model": "tool", "messages": _PLAIN, "tools": [], "metadata": {}, "store": False, "suffix": "", **_ENDING},
    ),
    ("/v1/chat/completions", {"model": "tool", "messages": _PLAIN, **_HARMLESS, **_ENDING}),
    ("/v1/chat/completions", {"model": "tool", "messages": _PLAIN, **_NEUTRAL, **_ENDING}),
    ("/v1/chat/completions", {"model": "tool", "messages": _PLAIN, "guided_json": json.dumps(_SCHEMA), **_ENDING}),
    ("/v1/chat/completions", {"model": "tool", "messages": _PLAIN, "structured_outputs": {"regex": "a+"}, **_ENDING}),
    ("/v1/chat/completions", {"model": "tool", "messages": _CALLED, **_TOOLS, "tool_choice": _ONE, "max_tokens": 20}),
    (
        "/v1/chat/completions",
        {
            "model": "tool",
            "messages": _OLD_CALLED,
            "functions": [_FUNCTION],
            "function_call": "auto",
            "stream": True,
            **_ENDING,
        },
    ),
    ("/v1/completions", {"model": "tool", "prompt": "Once", **_ENDING, **_SAMPLING}),
    ("/v1/completions", {"model": "tool", "prompt": ["Once", [1, 2, 3]], "best_of": 1, "echo": True, **_ENDING}),
    ("/v1/completions", {"model": "tool", "prompt": [1, 2, 3], "logprobs": 2, "echo": True, "max_tokens": 0}),
    ("/v1/completions", {"model": "tool", "prompt": "Once", "suffix": "end", "guided_choice": ["a"], **_ENDING}),
    (
        "/v1/completions",
        {"model": "tool", "prompt": ["a", "b"], "stream": True, "stream_options": _USAGE, "logprobs": 1, **_ENDING},
    ),
    ("/v1/responses", {"model": "tool", "input": _ITEMS, **_FLAT, "reasoning": {"effort": "low"}, "stream": True}),
    ("/v1/responses", {"model": "tool", "input": "Hello", "instructions": "Be short.", **_FORM, "truncation": "auto"}),
    ("/v1/responses", {"model": "tool", "input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    ("/apply-template", {"model": "tool", "messages": _MESSAGES, "chat_template_kwargs": {"a": 1}}),
    ("/v1/completions", {"model": "tool", "prompt": ["Once"], "choice": ["yes", "no"], **_ENDING}),
    ("/v1/completions", {"model": "tool", "prompt": "Once", "regex": "a{1,3}", **_ENDING}),
    ("/v1/completions", {"model": "tool", "prompt": "Once", "grammar": 'start: "a" | "b"', **_ENDING}),
    ("/v1/embeddings", {"model": "embed", "input": "a text", "encoding_format": "base64", "dimensions": 64}),
    ("/v1/embeddings", {"model": "tool", "input": ["a text", [1, 2, 3]], "user": "me"}),
    ("/v1/rerank", {"model": "tool", "query": "a text", "documents": ["a", {"text": "b"}], "top_n": 1}),
    (
        "/v1/rerank",
        {"model": "embed", "query": "a", "documents": [""], "return_documents": False, "max_tokens_per_doc": 3},
    ),
    ("/tokenize", {"model": "tool", "prompt": "a text", "add_special_tokens": True}),
    ("/detokenize", {"model": "tool", "tokens": [1, 2, 3]}),
]

_NUMBERS = [
    *(
        0,
        -0.0,
        1,
        -1,
        1.5,
        129,
        2**31,
        2**32,
        2**53,
        2**63 - 1,
        2**63,
        -(2**63),
        2**64,
        2**64 - 1,
        5e-324,
        1e308,
        -1e308,
    ),
    *map(Raw, ("1" * 400, "-" + "9" * 5_000, "0." + "0" * 5_000 + "1", "1e999")),
]
_TEXTS = [
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\x1b[31m",
        "\ufeff",
        "\u2028",
        "🙂" * 50,
        "١٢٣",
        "null",
        "tool",
        "user",
        "<|im_end|>",
        "x" * 201,
    ),
    *("%s%n{0}", "../../etc/passwd", "1" * 20, "^(a+)+$", Raw(f'"{"x" * 5_000}"'), Raw(f'"{"9" * 70_000}"')),
]
_OTHERS = [
    *(None, True, False, [], {}, [[]], [{}], [None], {"": ""}, {"a": 1}, [1, "a"], [True], {"type": []}, {"text": {}}),
    *({"1" * 5_000: 1}, {"-1": 1}, {"٣": 1}, {"1": "x"}, {"type": "text"}, {"role": []}, {"role": {}, "content": ""}),
    *({"type": "json_schema"}, {"type": "json_object"}, {"type": ["json_schema"]}, {"$schema": []}, {"$schema": 5}),
    *(["a"] * 17, ["x" * 1_001], [0, 1, 2], Raw('{"a":1,"a":2}'), Raw("[0" + ",0" * 3_000 + "]")),
    *(Raw("[[1]" + ",[1]" * 2_048 + "]"), Raw('[{"role":"user"}' + ',{"role":"user","content":"a"}' * 200 + "]")),
    *(Raw("[" * depth + "]" * depth) for depth in (50, 99, 101, 1_025, 3_000)),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in (50, 99, 101, 1_025)),
]
_NOT_JSON = [
    *map(
        Raw,
        (r'"\ud800"', r'"\udc00\ud800"', r'"\u12"', r'"\x"', '"\n"', '"no end', "'single'", "// x", "", ",", "]", "}"),
    ),
    *map(
        Raw, ("NaN", "Infinity", "-1e999", "01", "1.", ".5", "+1", "0x10", "1_000", "1e" + "9" * 30, "[1,]", '{"a":1,}')
    ),
    *map(Raw, ("{1:2}", "[" * 5_000, "{" * 500, '[{"a":' * 500)),
]
_KEYS = [
    *("", "temperatur", "Model", "model\0", "__proto__", "__class__", "ключ", "x" * 33, "x" * 5_000, "$schema", "$id"),
    *("tools", "tool_choice", "metadata", "functions", "logprobs", "echo", "best_of", "suffix", "input", "messages"),
    *("prompt", "response_format", "regex", "grammar", "choice", "stream_options", "n", "stop", "content", "type"),
    *("tool_calls", "tool_call_id", "function", "function_call", "arguments", "parameters", "parallel_tool_calls"),
    *(
        "properties",
        "items",
        "not",
        "const",
        "$ref",
        "pattern",
        "minItems",
        "guided_json",
        "guided_grammar",
        "verbosity",
    ),
    *("structured_outputs", "json_schema", "schema", "modalities", "repetition_penalty", "keep_alive", "include_usage"),
]


def bodies(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield paths and bodies without end, always the same ones for a seed. About one in twenty bodies is valid."""
    chance = random.Random(seed)
    of_schemas = of_routes(seed)
    while True:
        path, valid = chance.choice((chance.choice(_VALID), next(of_schemas)))
        body: Any = copy.deepcopy(valid if valid.keys() & _LIMITS else _short(path, valid))
        for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 2, 3, 5))):
            body = _changed(body, chance)
        raw = _written(body, chance).encode()
        if chance.random() < 0.15:
            raw = _damaged(raw, chance)
        yield chance.choice(_VALID)[0] if chance.random() < 0.05 else path, raw


def of_routes(seed: int) -> Iterator[tuple[str, Any]]:
    """Yield bodies of all routes in turn, with each field in turn, and with a low limit for the length of an answer.

    The document allows nearly all of them.
    """
    made = Bodies(schemas(), seed)
    routes: list[tuple[str, Any]] = [(path, body_schema(path, {"enum": ["tool", "embed"]})) for path in ROUTES]
    routes += [(f"/v1/models/{what}", {"const": {"model": model}}) for what, model in _CHANGES.items()]
    found = [(path, made.likely(schema)) for path, schema in routes]
    while True:
        for path, valid in found:
            yield path, _short(path, next(valid))


def _short(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return a body with a low limit for the length of its answers, and for their number."""
    known = {field.name for field in ROUTES.get(path, ())}
    low: dict[str, Any] = dict.fromkeys(_LIMITS & body.keys(), _MOST_TOKENS) or dict.fromkeys(_USUAL & known, 2)
    if path in ("/api/chat", "/api/generate"):
        options = body.get("options")
        low = {"options": (options if isinstance(options, dict) else {}) | {"num_predict": _MOST_TOKENS}}
    many = {name: 2 for name in ("n", "best_of") if isinstance(body.get(name), int) and body[name] > 2}
    return body | low | many


def _changed(body: Any, chance: random.Random) -> Any:
    """Change one part of the body, at any depth. Sometimes the whole body is replaced."""
    places = list(_places(body))
    if not places or chance.random() < 0.02:
        return _value(chance)
    holder, key = chance.choice(places)
    how = chance.random()
    if key in _LIMITS:  # without it an answer would take minutes
        value = _value(chance) or 1
        # Some APIs lower a limit that does not fit, and -1 is no limit, so most of such values are left out.
        is_high = isinstance(value, int) and not 0 <= value <= 200 and chance.random() < 0.9
        holder[key] = _MOST_TOKENS if is_high else value
    elif key == "options" and how < 0.9:  # the limit of Ollama's API is in it
        holder[key] = _value(chance) or {"num_predict": 1}
    elif how < 0.6:
        holder[key] = _value(chance)
    elif how < 0.7:
        del holder[key]
    elif how < 0.8:
        holder[key] = [holder[key]]
    elif isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(chance.choice((holder[key], _value(chance)))))
    elif how < 0.9:
        holder[chance.choice(_KEYS)] = _value(chance)
    else:
        holder[chance.choice(_KEYS)] = holder.pop(key)
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every part of a body as the list or object that holds it, and its place there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(min(len(value), 20)):
            yield value, key
            yield from _places(value[key])


def _value(chance: random.Random) -> Any:
    kinds = (_NUMBERS, _TEXTS, _OTHERS, _NOT_JSON)
    return copy.deepcopy(chance.choice(chance.choices(kinds, weights=(6, 6, 8, 1))[0]))


def _written(value: Any, chance: random.Random) -> str:
    """Return JSON. Now and then a key of an object is there twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, list):
        return f"[{','.join(_written(each, chance) for each in value)}]"
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)}:{_written(each, chance)}" for key, each in value.items()]
        if pairs and chance.random() < 0.02:
            pairs.append(f"{json.dumps(chance.choice(list(value)))}:{_written(_value(chance), chance)}")
        return f"{{{','.join(pairs)}}}"
    return json.dumps(value, ensure_ascii=chance.random() < 0.5)


def _damaged(raw: bytes, chance: random.Random) -> bytes:
    """Change bytes: cut the body off, flip a bit, or put bytes in that are not UTF-8 or not JSON."""
    at = chance.randrange(len(raw) + 1)
    how = chance.randrange(5)
    if how == 0:
        return raw[:at]
    if how == 1 and at < len(raw):
        return raw[:at] + bytes([raw[at] ^ 1 << chance.randrange(8)]) + raw[at + 1 :]
    if how == 2:
        return chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08", b"\0", b"[")) + raw
    if how == 3:
        return raw + chance.choice((b"\0", b"}", b"{}", b" " * 1_000, b"\xff", raw))
    inserted = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b'"', b"\\", b"\n", b"{", b"]", b"\0")
    return raw[:at] + chance.choice(inserted) + raw[at:]
