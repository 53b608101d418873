"""What the gateway answers of Ollama's API: the models that are served, what is known of one, and those in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tourkit import __version__
from tourkit.defaults import defaults_of, stated
from tourkit.errors import RequestError, TourkitError
from tourkit.planning.plan import CPU, Placement
from tourkit.server.api.dialects import OLLAMA_CHAT as DIALECT
from tourkit.server.api.off_loop import parsed
from tourkit.server.api.replies import error_response, json_response
from tourkit.server.api.requests import model_of
from tourkit.server.api.route_fields import OLLAMA_SHOW, check_fields
from tourkit.server.gateway import bodies
from tourkit.server.gateway.supervisor import Worker
from tourkit.server.http import CLIENT_LEFT
from tourkit.stacks import STACKS

_API = "0.12.11"  # the version of Ollama whose API this is; clients refuse versions that are too old
_ARCHITECTURE = "tourkit"  # the gateway does not read the headers of weights
_FOREVER = "9999-12-31T23:59:59Z"


class OllamaModels:
    """Belongs to the gateway's event loop.

    `workers`: returns the workers by role and model id. `find`: returns the worker of a role or model id, or raises
    RequestError. `created`: when the server started, in whole seconds since 1970.
    """

    def __init__(
        self, workers: Callable[[], Mapping[str, Worker]], find: Callable[[str], Worker], created: int
    ) -> None:
        self._workers = workers
        self._find = find
        self._created = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/api/tags", self.tags, methods=["GET"]),
            Route("/api/ps", self.running, methods=["GET"]),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/version", self.version, methods=["GET"]),
        ]

    async def tags(self, request: Request) -> Response:
        """Return every role and model id that is served."""
        found = [
            _entry(name, worker.answering) | {"modified_at": self._created} for name, worker in self._workers().items()
        ]
        return json_response(200, {"models": found})

    async def running(self, request: Request) -> Response:
        """Return those that are in memory. They stay there, unless the server has an idle time-out or turns."""
        found = [
            _entry(name, worker.answering) | _memory(worker.answering)
            for name, worker in self._workers().items()
            if (worker.stand_in or worker).answers_itself
        ]
        return json_response(200, {"models": found})

    async def show(self, request: Request) -> Response:
        """Return what is known of one model."""
        try:
            bodies.check_headers(request.scope)
            name = await parsed(await bodies.read_body(request), _asked)
            return json_response(200, _about(name, self._find(name).answering) | {"modified_at": self._created})
        except ClientDisconnect:  # in the middle of its body
            return Response(status_code=CLIENT_LEFT)
        except TourkitError as exc:
            return error_response(exc)

    async def version(self, request: Request) -> Response:
        return json_response(200, {"version": _API, "tourkit": __version__})


def _asked(body: Any) -> str:
    """Return the model of a body. Older clients send it as `name`. Raises RequestError."""
    if isinstance(body, dict):
        check_fields(body, OLLAMA_SHOW)
        if body.get("model") is None:
            body = {"model": body.get("name")}
        elif body.get("name") is not None:
            raise RequestError("name is the older name of model: give one of them", param="name")
    return model_of(body).removesuffix(DIALECT.tag)


def _entry(name: str, placement: Placement) -> dict[str, Any]:
    """Return the entry of a name in a list. The digest is that of the variant's name: the weights are not hashed."""
    title, tagged = placement.launch.title, f"{name}{DIALECT.tag}"
    about = {"name": tagged, "model": tagged, "size": placement.size}
    return about | {"digest": hashlib.sha256(title.encode()).hexdigest(), "details": _details(placement)}


def _details(placement: Placement) -> dict[str, Any]:
    launch = placement.launch
    return {
        "parent_model": "",
        "format": STACKS[launch.stack].format,
        "family": launch.model,
        "families": [launch.model],
        "parameter_size": "",
        "quantization_level": launch.quant,
    }


def _memory(placement: Placement) -> dict[str, Any]:
    sizes = {memory.device: memory.total for memory in placement.memory}
    total = sum(sizes.values()) or placement.size
    return {
        "size": total,
        "size_vram": total - sizes.get(CPU, 0) if sizes else 0,
        "expires_at": _FOREVER,
        "context_length": placement.launch.context,
    }


def _about(name: str, placement: Placement) -> dict[str, Any]:
    launch = placement.launch
    settings = stated(defaults_of(launch.defaults, name).sampling) if launch.defaults else {}
    return {
        "modelfile": f"FROM {launch.model}\n",
        "parameters": "\n".join(f"{key} {value}" for key, value in settings.items()),
        "template": "",
        "details": _details(placement),
        "model_info": {
            "general.architecture": _ARCHITECTURE,
            "general.basename": launch.model,
            f"{_ARCHITECTURE}.context_length": launch.context,
        },
        "capabilities": ["completion", "tools"] if launch.defaults else ["embedding"],
    }
