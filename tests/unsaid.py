"""Refusals of bodies that the OpenAPI document allows, because no schema can say them: patterns of the messages."""

from __future__ import annotations

import re

# Equal values, names of functions in another field, text inside a string.
_OF_VALUES = (
    r"max_tokens and max_completion_tokens differ",
    r"thinking_budget and thinking_token_budget differ",
    r"(thinking and reasoning_content|tool_name and name) are one field",
    r"name: .* is there twice",
    r"there is no tool",
    r"asks for a call, but there are no tools",
    r"cannot be combined with (regex|choice|grammar)",
    r"best_of is \d+, but n is \d+",
    r"prompt has [\d,]+ answers",
    r"^(guided_json|json_schema|structured_outputs\.json)(:| must be a JSON Schema object)",
    r"has too many (lists and objects|keys|values|levels)",
    r"thinking alone is none",
    r"the last message is the assistant's",
    r"after must be the id of an item in the list",
    r"is not stored here|^Previous response with id .* not found",
)
# The model: its vocabulary, its context, its size, its chat template.
_OF_MODEL = (
    r"dimensions is \d+, but embeddings of this model have \d+",
    r"token id \d+ is out of range",
    r"this model has no tokens for fill-in-the-middle",
    r"This model's maximum context length is",
    r"the model's chat template refuses these messages",
)
# Of schemas, in Ollama's errors, which have no code.
_OF_SCHEMAS = (
    r"^the schema (is not a valid JSON Schema|is nested|has [\d,]+|cannot be enforced)",
    r"^no document can meet the schema",
    r"^a reference in the schema names nothing",
    r"^the pattern .* is not a regular expression",
)
UNSAID = re.compile("|".join(_OF_VALUES + _OF_MODEL + _OF_SCHEMAS))
# Of constraints: what the grammars of schemas, regular expressions and grammars can be.
_CODES = {"unsupported_schema", "invalid_schema", "invalid_grammar", "constraint_too_complex", "grammar_limit"}
_SAID = re.compile(r"^\S+ must be a (string|JSON Schema)")  # what a schema can say about schemas


def is_unsaid(message: str, code: str | None) -> bool:
    """Return whether an error may come although the document allows the body."""
    return (code in _CODES and not _SAID.search(message)) or UNSAID.search(message) is not None
