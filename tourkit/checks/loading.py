"""Loads every planned variant and every fallback in turn, in worker processes, and asks each for one answer."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from tourkit import scratch
from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.errors import EngineDead, one_line
from tourkit.planning.plan import Placement
from tourkit.server.gateway.supervisor import Worker
from tourkit.server.gateway.upstream import Asked, Upstream

_WHAT = "load"
_EMBED, _RERANK = "embed", "rerank"
_WORDS = ("yes", "no")
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": list(_WORDS)}},
    "required": ["answer"],
    "additionalProperties": False,
}
_QUESTION = "Is water wet? Answer with JSON."
_FIX = "run `tourkit verify` on the bundle; if memory is short, serve with `--context 2048 --slots 2` or fewer roles"


@dataclass(frozen=True, slots=True)
class Link:
    """One variant to load. `fallback_of`: the title of the planned variant that it replaces; "" if it is planned."""

    placement: Placement
    fallback_of: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What happened. `error`: why there is no answer; "" if there is one. Times in seconds."""

    error: str = ""
    loading: float = 0.0
    answering: float = 0.0


def links(placements: tuple[Placement, ...]) -> tuple[Link, ...]:
    """Return every planned variant, then every fallback that is not the same load as one before it."""
    planned = [Link(replace(each, fallbacks=())) for each in placements]
    fallbacks = [Link(link, each.launch.title) for each in placements for link in each.fallbacks]
    distinct = {(link.placement.launch, link.placement.device): link for link in reversed([*planned, *fallbacks])}
    return tuple(reversed(distinct.values()))


def findings(placements: tuple[Placement, ...], *, only_gpu: bool = False) -> Iterator[Finding]:
    """Load one link after the other and yield the finding for each.

    `placements` have absolute paths. `only_gpu`: this process sees one GPU alone, as in WorkerProcess.
    """
    with scratch.folder("load") as folder:
        for number, link in enumerate(links(placements)):
            uds = f"{folder}/{number}.sock" if hasattr(socket, "AF_UNIX") else ""
            yield finding(link, asyncio.run(_load(link.placement, uds, only_gpu=only_gpu)))


def finding(link: Link, loaded: Loaded) -> Finding:
    """Return the finding. A planned variant that does not load is a failure, a fallback a warning."""
    placement = link.placement
    kind = f", fallback of {link.fallback_of}" if link.fallback_of else ""
    about = f"{', '.join(placement.roles)}: {placement.launch.title} on {placement.device}{kind}"
    if loaded.error:
        return (warning if link.fallback_of else failure)(_WHAT, f"{about}: {loaded.error}", _FIX)
    return ok(_WHAT, f"{about}: loaded in {loaded.loading:.1f} s, answered in {loaded.answering:.1f} s")


async def _load(placement: Placement, uds: str, *, only_gpu: bool) -> Loaded:
    """Start a worker as the gateway does, ask it once, and end it."""
    worker, upstream = Worker(placement, uds=uds, offline=True, only_gpu=only_gpu), Upstream()
    start = time.perf_counter()
    worker.start()
    try:
        await worker.ready()
        ready = time.perf_counter()
        error = await _ask(worker, upstream, _request(placement))
        return Loaded(error, ready - start, time.perf_counter() - ready)
    except EngineDead as exc:
        return Loaded(str(exc))
    finally:
        await upstream.close()
        await worker.stop()


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    body: dict[str, Any]


def _request(placement: Placement) -> _Request:
    """Return the request: an embedding, a ranking, or an answer that a grammar constrains and top_p samples."""
    role = placement.roles[0]
    if placement.roles == (_EMBED,):
        return _Request("/v1/embeddings", {"model": role, "input": _QUESTION})
    if placement.roles == (_RERANK,):
        return _Request("/v1/rerank", {"model": role, "query": _QUESTION, "documents": list(_WORDS)})
    json_schema = {"name": "answer", "schema": _SCHEMA, "strict": True}
    return _Request(
        "/v1/chat/completions",
        {
            "model": role,
            "messages": [{"role": "user", "content": _QUESTION}],
            "response_format": {"type": "json_schema", "json_schema": json_schema},
            "temperature": 0.8,
            "top_p": 0.9,
            "seed": 1,
            "max_tokens": 32,
        },
    )


async def _ask(worker: Worker, upstream: Upstream, request: _Request) -> str:
    """Send a request. Return what is wrong with the answer; "" if it is right."""
    try:
        async with upstream.post(worker, Asked(request.path, orjson.dumps(request.body))) as reply:
            return wrong_with(reply.status, await reply.read())
    except aiohttp.ClientError as exc:
        return f"loaded, but its process ended while it answered ({one_line(str(exc))})"


def wrong_with(status: int, body: bytes) -> str:
    """Return what is wrong with an answer.

    Return "" if it is an embedding, a ranking of all documents, or a chat completion that follows the schema.
    """
    try:
        answer = json.loads(body)
        if status != 200:
            return f"loaded, but answers {status}: {one_line(answer['error']['message'])}"
        if "results" in answer:
            ranked = [result["relevance_score"] for result in answer["results"]]
            return "" if len(ranked) == len(_WORDS) else f"loaded, but it ranked {len(ranked)} of {len(_WORDS)} texts"
        if "choices" not in answer:
            return "" if answer["data"][0]["embedding"] else "loaded, but its embedding is empty"
        text = answer["choices"][0]["message"]["content"]
        right = json.loads(text)["answer"] in _WORDS
    except (ValueError, KeyError, IndexError, TypeError):
        return f"loaded, but its answer breaks the schema ({one_line(body.decode(errors='replace'))})"
    return "" if right else f"loaded, but its answer breaks the schema ({text})"
