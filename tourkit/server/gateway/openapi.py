"""GET /openapi.json: the document of this server, with the names of its models."""

from __future__ import annotations

from collections.abc import Mapping

from tourkit.manifest.models import CHAT_ROLES
from tourkit.server.api.openapi.document import document
from tourkit.server.gateway.supervisor import Worker


def names_of(workers: Mapping[str, Worker]) -> dict[str, tuple[str, ...]]:
    """Return the served names for each kind of models, as `document` takes them. `workers`: by their names."""
    roles = {name: set(worker.placement.roles) for name, worker in workers.items()}
    return {
        "": tuple(roles),
        "text": tuple(name for name, found in roles.items() if found & set(CHAT_ROLES)),
        "embed": tuple(name for name, found in roles.items() if "embed" in found),
        # A model that writes text ranks documents too.
        "rerank": tuple(name for name, found in roles.items() if found & {*CHAT_ROLES, "rerank"}),
    }


def document_of(workers: Mapping[str, Worker], *, needs_key: bool) -> dict[str, object]:
    """Return the document of a server. `needs_key`: whether requests need a key."""
    return document(names_of(workers), needs_key=needs_key)
