"""The OpenAPI document: it has every route and field, and says what is accepted and what is answered."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from asgi import Answer, ask
from schema_bodies import Bodies
from unsaid import UNSAID

from tourkit.errors import QueueFull
from tourkit.generation import EngineInfo
from tourkit.server.api.openapi.bodies import BODIES, body_schema
from tourkit.server.api.openapi.request_parts import FILLED, SCHEMAS
from tourkit.server.api.route_fields import ROUTES, Use
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer


class Full:
    """An engine that refuses every request that reaches it with 429, so that the parser alone decides."""

    info = EngineInfo("none", 4096, 1, 1_000)
    recompiles, size = False, 64

    def _full(self, *_: Any, **__: Any) -> Any:
        raise QueueFull("full")

    submit = tokenize = detokenize = embed = manner = apply_template = _full

    def with_calls(self, request: Any) -> Any:
        return request

    def token_table(self) -> Any:
        raise NotImplementedError


def answers(bodies: Iterable[tuple[str, Any]]) -> list[Answer]:
    """Return what a worker without free places answers: 429 if it accepts the body, else 400."""
    app = ModelServer(Full(), "s").app()  # type: ignore[arg-type]

    async def all_of() -> list[Answer]:
        return [await ask(app, path, body, headers={SECRET_HEADER: "s"}) for path, body in bodies]

    return asyncio.run(all_of())


def schema_of(path: str) -> dict[str, Any]:
    return body_schema(path, FILLED | {"maxLength": 200})


PATHS = pytest.mark.parametrize("path", ROUTES)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_every_route_with_a_table_of_fields_has_a_body_and_no_other_has() -> None:
    assert BODIES.keys() == ROUTES.keys()


@PATHS
def test_the_document_has_each_field_that_is_read_and_no_other_schema(path: str) -> None:
    read = {field.name for field in ROUTES[path] if field.use is Use.READ}

    assert {"model", *BODIES[path].read} == read
    assert schema_of(path)["properties"].keys() == {field.name for field in ROUTES[path]}


@PATHS
def test_a_body_that_the_document_allows_is_accepted(path: str) -> None:
    bodies = list(itertools.islice(Bodies(SCHEMAS, 1).valid(schema_of(path)), 300))

    for body, answer in zip(bodies, answers((path, body) for body in bodies), strict=True):
        refused = answer.status == 400 and not UNSAID.search(answer.body["error"]["message"])
        assert answer.status in (400, 429), (answer.status, answer.raw, json.dumps(body)[:2_000])
        assert not refused, (answer.body["error"]["message"], json.dumps(body)[:2_000])


@PATHS
def test_a_body_is_accepted_if_and_only_if_the_document_allows_it(path: str) -> None:
    made = Bodies(SCHEMAS, 2)
    bodies = list(itertools.islice(made.changed(schema_of(path)), 500))
    allowed = made.validator(schema_of(path))

    for body, answer in zip(bodies, answers((path, body) for body in bodies), strict=True):
        said = answer.body["error"]["message"] if answer.status == 400 else ""
        assert answer.status in (400, 429), (answer.status, answer.raw, json.dumps(body)[:2_000])
        assert allowed.is_valid(body) == (not said) or (allowed.is_valid(body) and UNSAID.search(said)), (
            said,
            json.dumps(body)[:2_000],
        )
