"""Figures of the workers and of their turns in Prometheus' text exposition format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tourkit.launch import Launch
from tourkit.server.gateway.swapping import Swapper

_GAUGES = {
    "running": "sequences_running Sequences being generated.",
    "waiting": "sequences_waiting Sequences waiting for a slot.",
}
_COUNTERS = {
    "prompt_tokens": "prompt_tokens_total Tokens of prompts.",
    "cached_tokens": "prompt_tokens_cached_total Prompt tokens found in the KV cache.",
    "generated_tokens": "generated_tokens_total Tokens generated.",
    "forced_tokens": "generated_tokens_forced_total Generated tokens that the grammar forced.",
    "drafted_tokens": "draft_tokens_total Tokens guessed by prompt lookup.",
    "accepted_tokens": "draft_tokens_accepted_total Guessed tokens that were right.",
    "decode_steps": "decode_steps_total Calls of the model.",
    "preemptions": "preemptions_total Sequences computed again because the KV cache was full.",
    "offline_refused": "offline_refused_total Connections that the offline guard refused.",
}


def exposition(workers: Iterable[tuple[Launch, dict[str, Any]]]) -> str:
    """Every figure of every worker, one family after the other."""
    rows = list(workers)
    lines: list[str] = []
    for kind, families in (("gauge", _GAUGES), ("counter", _COUNTERS)):
        for key, text in families.items():
            name, _, about = text.partition(" ")
            lines += [f"# HELP tourkit_{name} {about}", f"# TYPE tourkit_{name} {kind}"]
            for launch, figures in rows:
                if key in figures:
                    lines.append(f"tourkit_{name}{{{_labels(launch)}}} {figures[key]}")
    return "\n".join(lines) + "\n"


def of_turns(loaded: Iterable[tuple[Launch, bool]], swapper: Swapper) -> str:
    """Which models are in memory, and what the taking of turns has come to."""
    lines = ["# HELP tourkit_model_loaded Whether the model is in memory.", "# TYPE tourkit_model_loaded gauge"]
    lines += [f"tourkit_model_loaded{{{_labels(launch)}}} {int(is_up)}" for launch, is_up in loaded]
    for name, kind, about, value in (
        ("turn_requests_waiting", "gauge", "Requests that wait for the turn of their model.", swapper.waiting),
        ("turn_swaps_total", "counter", "Times that a model was evicted for another.", swapper.swaps),
    ):
        lines += [f"# HELP tourkit_{name} {about}", f"# TYPE tourkit_{name} {kind}", f"tourkit_{name} {value}"]
    return "\n".join(lines) + "\n"


def _labels(launch: Launch) -> str:
    return f'model="{launch.model}",quant="{launch.quant}",stack="{launch.stack}"'
