"""Chat templates: Jinja source that comes with a model, rendered in a sandbox with a budget.

A template is downloaded with the weights, so it is not trusted. It can neither read nor change Python objects, and it
can neither hang nor take memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tourkit.errors import EngineError, RequestError, one_line

_LONGEST_SOURCE = 1 << 18  # characters; the longest templates of published models have 30,000
_LONGEST_PATTERN = 200  # characters of a date format
_MOST_INDENT = 16


class ChatTemplate:
    """One compiled template. `special_tokens`: the strings that templates expect (bos_token, eos_token).

    `reads`: the names of the variables that it may read, among them some of its own.
    Raises EngineError if the source is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        from jinja2 import TemplateSyntaxError
        from jinja2.meta import find_undeclared_variables

        from tourkit.backends.template_sandbox import TemplateSandbox

        if len(source) > _LONGEST_SOURCE:
            raise EngineError(f"the model's chat template has {len(source)} characters: at most {_LONGEST_SOURCE} fit")
        self._sandbox = sandbox = TemplateSandbox()
        sandbox.add_filter("tojson", _tojson)
        sandbox.globals["raise_exception"] = _raise_exception
        sandbox.globals["strftime_now"] = _strftime_now
        try:
            self._template = sandbox.from_string(source)
            self.reads = frozenset(find_undeclared_variables(sandbox.parse(source)))
        except TemplateSyntaxError as exc:
            why = one_line(exc.message or "")
            raise EngineError(f"the model's chat template is not valid Jinja: line {exc.lineno}: {why}") from exc
        except Exception as exc:  # Jinja's parser and Python's compiler raise many kinds: RecursionError, MemoryError…
            raise EngineError(f"the model's chat template cannot be compiled: {_reason(exc)}") from exc
        self.source = source
        self._special_tokens = special_tokens

    def render(
        self, messages: Iterable[dict[str, Any]], *, mark: str = "", options: Mapping[str, Any] | None = None
    ) -> str:
        """Return the prompt for these messages, up to the start of the assistant's turn.

        `mark`: a character that the caller put into the messages; it is left out of error messages. `options`: more
        variables. Raises RequestError, for every exception of the template.
        """
        from tourkit.backends.template_budget import Budget

        plain = [dict(message) for message in messages]
        budget = Budget(len(plain), characters_in(plain) + characters_in(dict(options or {})))
        try:
            with self._sandbox.limited(budget):
                variables = {**(options or {}), **self._special_tokens}
                text = self._template.render(variables, messages=plain, add_generation_prompt=True)
            text.encode()
        except Exception as exc:  # a template can raise any exception
            why = _reason(exc).replace(mark, "") if mark else _reason(exc)
            raise RequestError(
                f"the model's chat template refuses these messages: {why}", param="messages", code="invalid_messages"
            ) from exc
        return text


def characters_in(value: Any) -> int:
    """Return how many characters the texts in a value have: itself, or those in a list or an object."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + characters_in(each) for key, each in value.items())
    return sum(map(characters_in, value)) if isinstance(value, list) else 0


class RefusedError(Exception):
    """The error that `raise_exception` in a template raises."""


def _reason(exc: Exception) -> str:
    """Return an exception of a template as one line."""
    from jinja2 import TemplateError

    from tourkit.backends.template_budget import OverBudget

    if isinstance(exc, OverBudget):
        return f"it does more than a chat needs ({exc})"
    text = one_line(str(exc))
    if isinstance(exc, TemplateError | RefusedError) and text:
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _raise_exception(message: object) -> None:
    raise RefusedError(message if isinstance(message, str) else "no reason is given")


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _LONGEST_PATTERN or re.search(r"%[-_0^#+]*\d{3}", pattern):
        raise ValueError("too long a date format")
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    indent: object = None,
    *,
    ensure_ascii: bool = False,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters. That would change the text that the model reads.
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _MOST_INDENT):
        raise ValueError(f"tojson: indent must be a number from 0 to {_MOST_INDENT}")
    if separators is not None and [each.strip() for each in separators] != [",", ":"]:
        raise ValueError("tojson: separators must be a comma and a colon")
    return json.dumps(
        value, ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )
