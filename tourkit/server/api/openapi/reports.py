"""Schemas of what the gateway answers itself: health, models, version."""

from __future__ import annotations

from tourkit.server.api.openapi.answers import TEXTS
from tourkit.server.api.openapi.parts import (
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    Schema,
    array,
    nullable,
    record,
    ref,
    values,
    whole_record,
)

_STATE = values(["unloaded", "starting", "ready", "hung", "restarting", "failed", "stopped"])
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_MODEL = whole_record(
    {
        "id": TEXT,
        "object": {"const": "model"},
        "created": COUNT,
        "owned_by": TEXT,
        "max_model_len": COUNT,
        "model": TEXT,
        "quant": TEXT,
        "stack": TEXT,
        "answers": TEXT,
        "state": ref("WorkerState"),
        "roles": TEXTS,
        "sampling": whole_record(dict.fromkeys(_SAMPLING, NUMBER), optional=_SAMPLING),
        "sampling_from": whole_record(dict.fromkeys(_SAMPLING, TEXT), optional=_SAMPLING),
    },
    optional=["sampling", "sampling_from"],
) | {"description": "A role or model id that is served, and the variant that answers."}
_WORKER = whole_record(
    {
        "state": ref("WorkerState"),
        "roles": TEXTS,
        "takes_turns": FLAG,
        "pinned": FLAG,
        "idle_s": nullable(NUMBER),
        "pid": nullable(COUNT),
        "restarts": COUNT,
        "last_death": nullable(TEXT),
        "next_start_in_s": nullable(NUMBER),
        "error": nullable(TEXT),
        "answers": TEXT,
        "passed_over": TEXTS,
        "guard": nullable(TEXT),
        "prefix_sharing": nullable(TEXT),
        "prompt_cache": {"type": ["object", "null"], "additionalProperties": COUNT},
    }
)
_TURNS = whole_record(
    {"loaded": nullable(TEXT), "phase": values(["open", "draining", "swapping"]), "swaps": COUNT, "waiting": COUNT}
)
SCHEMAS: dict[str, Schema] = {
    "WorkerState": _STATE,
    "Model": _MODEL,
    "Models": whole_record({"object": {"const": "list"}, "data": array(ref("Model"))}),
    "Lifecycle": whole_record({"model": TEXT, "state": ref("WorkerState"), "answers": TEXT, "pinned": FLAG}),
    "Health": whole_record(
        {
            "status": values(["ok", "not ready", "stopping"]),
            "offline": FLAG,
            "workers": {"type": "object", "additionalProperties": _WORKER},
            "turns": _TURNS,
        },
        optional=["offline", "workers", "turns"],  # without the key, the status alone
    ),
    "Version": whole_record({"version": TEXT}),
    "Document": record({"openapi": TEXT}, ["openapi"]),
}
