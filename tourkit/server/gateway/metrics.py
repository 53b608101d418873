"""Metrics of the workers and of their turns in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from tourkit.launch import Launch
from tourkit.server.gateway.swapping import Swapper

_LABELS = ("model", "quant", "stack")
_GAUGES = {  # a worker's figure → the name of the metric and its description
    "running": ("sequences_running", "Sequences being generated."),
    "waiting": ("sequences_waiting", "Sequences waiting for a slot."),
    "prompt_cache_bytes": ("prompt_cache_bytes", "RAM that KV cells of earlier prompts take."),
    "prompt_cache_limit_bytes": ("prompt_cache_limit_bytes", "RAM that they may take."),
    "prompt_cache_disk_bytes": ("prompt_cache_disk_bytes", "Disk space that they take."),
    "prompt_cache_entries": ("prompt_cache_entries", "Pieces of prompts whose KV cells are in RAM or on disk."),
}
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens_total", "Tokens of prompts."),
    "cached_tokens": ("prompt_tokens_cached_total", "Prompt tokens found in the KV cache."),
    "generated_tokens": ("generated_tokens_total", "Tokens generated."),
    "forced_tokens": ("generated_tokens_forced_total", "Generated tokens that the grammar forced."),
    "drafted_tokens": ("draft_tokens_total", "Tokens guessed by prompt lookup."),
    "accepted_tokens": ("draft_tokens_accepted_total", "Guessed tokens that were right."),
    "decode_steps": ("decode_steps_total", "Decode calls of the model."),
    "preemptions": ("preemptions_total", "Sequences computed again because the KV cache was full."),
    "prompt_cache_hits_total": ("prompt_cache_hits_total", "Prompts that got KV cells back from RAM or disk."),
    "prompt_cache_tokens_total": ("prompt_cache_tokens_total", "Prompt tokens that these cells covered."),
    "offline_refused": ("offline_refused_total", "Connections that the offline guard refused."),
}
_PROMPT_CACHE = "prompt_cache_"  # figures of the prompt cache begin like this
_Family = GaugeMetricFamily | CounterMetricFamily


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """The metrics of one worker. `launch`: what it has loaded or would load. `figures`: empty if it is not up."""

    launch: Launch
    is_loaded: bool
    figures: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.launch.model, self.launch.quant, self.launch.stack


@dataclass(frozen=True, slots=True, eq=False)  # a registry keeps collectors by identity
class _Scrape:
    """A collector with the metrics of one answer."""

    families: tuple[_Family, ...]

    def collect(self) -> Iterable[_Family]:
        return self.families


def prompt_cache_of(figures: dict[str, Any]) -> dict[str, int]:
    """Return a worker's figures of its prompt cache, by their names without the common beginning."""
    return {
        name.removeprefix(_PROMPT_CACHE): value for name, value in figures.items() if name.startswith(_PROMPT_CACHE)
    }


def exposition(workers: Iterable[WorkerFigures], swapper: Swapper) -> bytes:
    """Return the answer to one scrape: all figures of all workers, which models are in memory, and the turns so far.

    Each answer has its own registry, because the workers keep the figures.
    """
    found = tuple(workers)
    families = (*_of_workers(found), _of_memory(found), *_of_turns(swapper))
    registry = CollectorRegistry()
    registry.register(_Scrape(families))
    return generate_latest(registry)


def _of_workers(workers: tuple[WorkerFigures, ...]) -> Iterable[_Family]:
    for kind, families in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for key, (name, about) in families.items():
            family = kind(f"tourkit_{name}", about, labels=_LABELS)
            for worker in workers:
                if key in worker.figures:
                    family.add_metric(worker.labels, worker.figures[key])
            yield family


def _of_memory(workers: tuple[WorkerFigures, ...]) -> _Family:
    family = GaugeMetricFamily("tourkit_model_loaded", "Whether the model is in memory.", labels=_LABELS)
    for worker in workers:
        family.add_metric(worker.labels, worker.is_loaded)
    return family


def _of_turns(swapper: Swapper) -> tuple[_Family, ...]:
    waiting = "Requests that wait for the turn of their model."
    swaps = "Swaps: one model evicted, another one loaded."
    return (
        GaugeMetricFamily("tourkit_turn_requests_waiting", waiting, value=swapper.waiting),
        CounterMetricFamily("tourkit_turn_swaps_total", swaps, value=swapper.swaps),
    )
