"""The routes of the document: what each is for, what it takes, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tourkit.server.api.openapi.parts import Schema, text, values, whole

# Statuses of errors, and when they come.
_ERRORS = {
    400: "A field is wrong or cannot be honoured: `param` names it.",
    401: "The key is missing or wrong.",
    403: "The Host or the web page of the request is not allowed.",
    404: "The model is not served here, or a response is not stored.",
    408: "The request came too slowly.",
    409: "Another model has the turn and is pinned.",
    413: "The body is too large.",
    415: "The content-encoding is not supported.",
    429: "Too many requests wait.",
    431: "The header is too large.",
    503: "The worker failed and does not come back in time, or the server is stopping.",
}
_ANYWHERE = (401, 403, 408, 431)
_OF_BODIES = (400, 404, 409, 413, 415, 429, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `id`, `about`: a name in the document, and one line. `reply`: the schema of a JSON answer, empty for plain text.
    `chunk`: the schema of the events of a stream, empty if it never streams. `error`: the schema of errors.
    `answers`: the kind of models that answer: text, embed, rerank, or empty for all. `has_body`: its body is in BODIES.
    `statuses`: of errors, besides those of every route. `or_503`: 503 has an answer of the same form.
    `is_open`: it needs no key. `is_forwarded`: a worker answers.
    `query`: the schemas of the parameters in the URL.
    """

    id: str
    about: str
    reply: str = ""
    chunk: str = ""
    error: str = "Error"
    answers: str = ""
    has_body: bool = False
    statuses: tuple[int, ...] = ()
    or_503: bool = False
    is_open: bool = False

    is_forwarded: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)

    @property
    def errors(self) -> dict[int, str]:
        """The statuses of errors, and when they come."""
        return {status: _ERRORS[status] for status in sorted((*_ANYWHERE, *self.statuses))}


def _of_model(
    id_: str, about: str, reply: str, *, answers: str = "text", chunk: str = "", error: str = "Error"
) -> Operation:
    return Operation(id_, about, reply, chunk, error, answers, True, _OF_BODIES, is_forwarded=True)


def _of_lifecycle(id_: str, about: str) -> Operation:
    return Operation(id_, about, "Lifecycle", has_body=True, statuses=_OF_BODIES)


# Of a list: how many items, in which order, and the id of the item before the first one.
_PAGE = {"limit": whole(1, 100), "order": values(["asc", "desc"]), "after": text()}


def _of_response(id_: str, about: str, reply: str, query: Mapping[str, Schema] | None = None) -> Operation:
    return Operation(id_, about, reply, statuses=(400, 404), query=query or {})


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): _of_model(
        "chat", "Answer a conversation.", "ChatCompletion", chunk="ChatCompletionChunk"
    ),
    ("POST", "/v1/completions"): _of_model("complete", "Continue a text.", "Completion", chunk="CompletionChunk"),
    ("POST", "/v1/responses"): _of_model(
        "respond", "Answer a conversation, which the server may keep.", "Response", chunk="ResponseEvent"
    ),
    ("GET", "/v1/responses/{id}"): _of_response("show_response", "Show a stored response.", "Response"),
    ("DELETE", "/v1/responses/{id}"): _of_response("delete_response", "Forget a stored response.", "ResponseDeleted"),
    ("GET", "/v1/responses/{id}/input_items"): _of_response(
        "list_input_items", "List the input of a stored response.", "ResponseItems", query=_PAGE
    ),
    ("POST", "/v1/messages"): _of_model(
        "message",
        "Anthropic's API: answer messages.",
        "MessageAnswer",
        chunk="MessageEvent",
        error="MessageError",
    ),
    ("POST", "/v1/messages/count_tokens"): _of_model(
        "count_message_tokens", "Anthropic's API: count the tokens of a prompt.", "MessageCount", error="MessageError"
    ),
    ("POST", "/api/chat"): _of_model(
        "ollama_chat", "Ollama's API: answer a conversation.", "OllamaChat", chunk="OllamaChatLine", error="OllamaError"
    ),
    ("POST", "/api/generate"): _of_model(
        "ollama_generate", "Ollama's API: answer a prompt.", "OllamaText", chunk="OllamaTextLine", error="OllamaError"
    ),
    ("POST", "/api/embed"): _of_model(
        "ollama_embed", "Ollama's API: make vectors.", "OllamaEmbed", answers="embed", error="OllamaError"
    ),
    ("POST", "/api/embeddings"): _of_model(
        "ollama_embeddings", "Ollama's API: make one vector.", "OllamaEmbeddings", answers="embed", error="OllamaError"
    ),
    ("POST", "/api/show"): Operation(
        "ollama_show",
        "Ollama's API: show a model.",
        "OllamaModel",
        error="OllamaError",
        has_body=True,
        statuses=_OF_BODIES,
    ),
    ("GET", "/api/tags"): Operation("ollama_tags", "Ollama's API: list the models.", "OllamaTags", error="OllamaError"),
    ("GET", "/api/ps"): Operation(
        "ollama_loaded", "Ollama's API: list the models in memory.", "OllamaLoaded", error="OllamaError"
    ),
    ("GET", "/api/version"): Operation(
        "ollama_version", "Ollama's API: the version.", "OllamaVersion", error="OllamaError"
    ),
    ("POST", "/v1/embeddings"): _of_model("embed", "Make vectors of texts.", "Embeddings", answers="embed"),
    ("POST", "/v1/rerank"): _of_model("rerank", "Sort documents by how well they fit.", "Ranking", answers="rerank"),
    ("POST", "/apply-template"): _of_model(
        "apply_template", "Return the prompt that the chat template makes of messages.", "Prompt"
    ),
    ("POST", "/tokenize"): _of_model("tokenize", "Return the token ids of a text.", "Tokens", answers=""),
    ("POST", "/detokenize"): _of_model("detokenize", "Return the text of token ids.", "Prompt", answers=""),
    ("POST", "/v1/models/load"): _of_lifecycle("load_model", "Load a model. Return when it is loaded."),
    ("POST", "/v1/models/unload"): _of_lifecycle("unload_model", "Unload a model after its running requests."),
    ("POST", "/v1/models/pin"): _of_lifecycle("pin_model", "Load a model and keep it in memory."),
    ("POST", "/v1/models/unpin"): _of_lifecycle("unpin_model", "Let a pinned model be unloaded again."),
    ("GET", "/v1/models"): Operation("list_models", "List the roles and model ids that are served.", "Models"),
    ("GET", "/v1/models/{name}"): Operation("show_model", "Show one role or model id.", "Model", statuses=(404,)),
    ("GET", "/health"): Operation("health", "Say whether every worker answers.", "Health", or_503=True, is_open=True),
    ("GET", "/metrics"): Operation("metrics", "Return the counters of the workers in Prometheus' text format."),
    ("GET", "/version"): Operation("version", "Return the version of tourkit.", "Version"),
    ("GET", "/openapi.json"): Operation("openapi", "Return this document.", "Document"),
    ("GET", "/"): Operation("front_page", "A page for people: the models and the routes.", is_open=True),
}
