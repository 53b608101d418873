"""The gateway's reports: a page for people, the health of its workers, and the models that it serves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tourkit.defaults import defaults_of, stated
from tourkit.server.gateway.supervisor import State, Worker
from tourkit.server.gateway.swapping import Swapper


def front_page(workers: Sequence[Worker], routes: Iterable[str]) -> str:
    """What `GET /` answers, as plain text: what this is, the roles with what answers them, and the `routes`."""
    served = [
        f"  {', '.join(worker.placement.roles)}: {_named(worker)} ({worker.state.name.lower()})" for worker in workers
    ]
    return "\n".join(
        [
            "This is tourkit: an OpenAI-compatible server of local models.",
            "",
            "Give a role or a model id as `model`:",
            *served,
            "",
            "Routes:",
            *(f"  {route}" for route in routes),
            "",
        ]
    )


def _named(worker: Worker) -> str:
    launch = worker.answering.launch
    return f"{launch.model} {launch.quant} on {launch.stack}"


def health(
    workers: Sequence[Worker],
    swapper: Swapper,
    *,
    offline: bool,
    prompt_caches: Mapping[Worker, dict[str, int]] = MappingProxyType({}),
) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body of /health. `prompt_caches`: figures of the workers that have one.

    The status is 200 if every worker answers at once, in its turn, or when it is loaded for a request; 503 if another
    worker is loading, hangs, has died or has failed, and if the server is stopping.
    """
    ready = all(_answers(worker, swapper) for worker in workers) and not swapper.is_closed
    said = "stopping" if swapper.is_closed else "ok" if ready else "not ready"
    body: dict[str, Any] = {"status": said, "offline": offline}
    body["workers"] = {
        f"{each.placement.launch.model} {each.placement.launch.quant}": _of_worker(each, swapper)
        | {"prompt_cache": prompt_caches.get(each) or None}
        for each in workers
    }
    if swapper.takes_turns:
        body["turns"] = {
            "loaded": swapper.loaded.current.launch.title if swapper.loaded is not None else None,
            "phase": swapper.phase.name.lower(),
            "swaps": swapper.swaps,
            "waiting": swapper.waiting,
        }
    return 200 if ready else 503, body


def _answers(worker: Worker, swapper: Swapper) -> bool:
    if worker.state is State.STARTING:
        return swapper.loads_for_requests(worker)
    return worker.state in (State.UNLOADED, State.READY)


def _of_worker(worker: Worker, swapper: Swapper) -> dict[str, Any]:
    idle = swapper.idle_for(worker)
    return {
        "state": worker.state.name.lower(),
        "roles": list(worker.placement.roles),
        "takes_turns": not worker.placement.resident,
        "pinned": swapper.is_pinned(worker),
        "idle_s": None if idle is None else round(idle, 1),
        "pid": worker.pid,
        "restarts": worker.restarts,
        "last_death": worker.last_death,
        "next_start_in_s": _seconds_to_start(worker),
        "error": worker.error,
        "answers": worker.answering.launch.title,
        "passed_over": worker.passed_over,
        "guard": worker.guard or None,
        "prefix_sharing": worker.prefix_sharing or None,
    }


def _seconds_to_start(worker: Worker) -> float | None:
    """Return how long a worker that has died still waits before it is started again; None if it does not wait."""
    return round(max(0.0, worker.next_start - time.monotonic()), 1) if worker.state is State.RESTARTING else None


def model(name: str, worker: Worker, created: int) -> dict[str, Any]:
    """Return the entry of a served name in OpenAI's list of models, with the variant that answers.

    `created`: when the server started, in whole seconds since 1970.
    """
    launch = worker.answering.launch
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tourkit",
        "max_model_len": launch.context,
        "model": launch.model,
        "quant": launch.quant,
        "stack": launch.stack,
        "answers": launch.title,
        "state": worker.state.name.lower(),
        "roles": list(worker.placement.roles),
    }
    if launch.defaults:  # a model that generates no text has none
        row = defaults_of(launch.defaults, name)
        entry["sampling"] = stated(row.sampling)
        entry["sampling_from"] = dict(row.sources)
    return entry
