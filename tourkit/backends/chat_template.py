"""Chat templates: Jinja source that comes with a model, rendered in Jinja's immutable sandbox.

A template is downloaded with the weights, so it is not trusted. It can neither read nor change Python objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tourkit.errors import EngineError, RequestError


class ChatTemplate:
    """One compiled template. `special_tokens`: the strings that templates expect (bos_token, eos_token).

    Raises EngineError if the source is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        from jinja2 import TemplateSyntaxError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The same settings as in Hugging Face's own renderer: templates are written for them.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as exc:
            raise EngineError(
                f"the model's chat template is not valid Jinja: line {exc.lineno}: {exc.message}"
            ) from exc
        self._special_tokens = special_tokens

    def render(self, messages: Iterable[dict[str, Any]]) -> str:
        """Return the prompt for these messages, up to the start of the assistant's turn. Raises RequestError."""
        from jinja2 import TemplateError

        plain = [dict(message) for message in messages]
        try:
            return self._template.render(messages=plain, add_generation_prompt=True, **self._special_tokens)
        except (TemplateError, _RefusedError) as exc:
            raise RequestError(
                f"the model's chat template refuses these messages: {exc}", param="messages", code="invalid_messages"
            ) from exc


class _RefusedError(Exception):
    """The error that `raise_exception` in a template raises."""


def _raise_exception(message: str) -> None:
    raise _RefusedError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML characters. That would change the text that the model reads.
    return json.dumps(value, ensure_ascii=False, indent=indent)
