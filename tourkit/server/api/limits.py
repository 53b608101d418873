"""The limits of a request. Each is checked before any work is done. docs/http-api.md shows this table."""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.errors import RequestError


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that a request may have of one thing.

    `field`: the request field, as in the error's `param`. `unit`: what is counted. `code`, `status`: of the error.
    `route`: the only route that it is for; empty for all routes that have the field.
    """

    field: str
    most: int
    unit: str
    code: str | None = None
    status: int = 400
    route: str = ""

    def check(self, found: int, where: str | None = None) -> None:
        """Raise RequestError if `found` is over the limit. `where`: the exact field, such as `stop[3]`."""
        if found > self.most:
            raise self.error(f"has {found:,} {self.unit}", where)

    def error(self, found: str, where: str | None = None) -> RequestError:
        """Return the error for a request that is over the limit. `found`: what it has, in words."""
        where = where or self.field
        message = f"{where} {found}: give at most {self.most:,}"
        return RequestError(message, param=where, code=self.code, status=self.status)


# The whole request.
BODY = Limit("body", 16 * 1024 * 1024, "bytes", "body_too_large", 413)
HEADER = Limit("header", 64 * 1024, "bytes", "header_too_large", 431)
# All parts of the body together. These bound the memory of the parsed body, whatever its bytes are.
DEPTH = Limit("body", 100, "levels of lists and objects", "body_too_complex")
CONTAINERS = Limit("body", 100_000, "lists and objects", "body_too_complex")
KEYS = Limit("body", 200_000, "keys", "body_too_complex")
VALUES = Limit("body", 1_000_000, "values", "body_too_complex")
# Single fields.
FIELDS = Limit("body", 100, "fields")
MODEL = Limit("model", 200, "characters")
MESSAGES = Limit("messages", 10_000, "messages")
MESSAGE_FIELDS = Limit("messages[i]", 100, "fields")
N = Limit("n", 128, "answers")
STOPS = Limit("stop", 16, "strings")
STOP_LENGTH = Limit("stop[i]", 1_000, "characters")
BIASES = Limit("logit_bias", 10_000, "token ids")
TOP_LOGPROBS = Limit("top_logprobs", 20, "tokens")
CHOICES = Limit("choice", 10_000, "strings")
TOOLS = Limit("tools", 256, "functions")
TEMPLATE_KWARGS = Limit("chat_template_kwargs", 100, "fields")
PROMPTS = Limit("prompt", 2_048, "answers", route="/v1/completions")
TEXTS = Limit("input", 2_048, "texts", route="/v1/embeddings")
TEXT_LENGTH = Limit("input[i]", 1024 * 1024, "characters", route="/v1/embeddings")
ITEMS = Limit("input", 10_000, "items", route="/v1/responses")
QUERY = Limit("query", 1024 * 1024, "characters", route="/v1/rerank")
DOCUMENTS = Limit("documents", 2_048, "texts", route="/v1/rerank")
DOCUMENT_LENGTH = Limit("documents[i]", 1024 * 1024, "characters", route="/v1/rerank")
TOKENIZED = Limit("prompt", 1024 * 1024, "characters", route="/tokenize")
TOKENS = Limit("tokens", 262_144, "token ids")

# The lowest and the highest value of numbers.
INT_32, INT_64 = 2**31 - 1, 2**63 - 1
TOKEN_IDS = (0, INT_32)
SEEDS = (-INT_64, INT_64)  # the parser of JSON rounds lower numbers to -2**63
TEMPERATURES = (0, 2)
PORTIONS = (0, 1)  # top_p and min_p
TOP_KS = (0, INT_32)
PENALTIES = (-2, 2)
BIAS_VALUES = (-100, 100)
THINKING_BUDGETS = (0, INT_32)  # tokens

LIMITS = (
    *(BODY, HEADER, DEPTH, CONTAINERS, KEYS, VALUES, FIELDS, MODEL, MESSAGES, MESSAGE_FIELDS, N, STOPS, STOP_LENGTH),
    *(BIASES, TOP_LOGPROBS, CHOICES, TOOLS, TEMPLATE_KWARGS, PROMPTS, TEXTS, TEXT_LENGTH, ITEMS, QUERY, DOCUMENTS),
    *(DOCUMENT_LENGTH, TOKENIZED, TOKENS),
)
