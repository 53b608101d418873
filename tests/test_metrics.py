"""The text of /metrics: the names, labels and types that dashboards use."""

from __future__ import annotations

from dataclasses import asdict

from prometheus_client.parser import text_string_to_metric_families

from tourkit.generation import EngineStats
from tourkit.launch import Launch
from tourkit.server.gateway.metrics import WorkerFigures, exposition
from tourkit.server.gateway.swapping import Swapper

UP = Launch("a", "llama_cpp", "a.gguf", slots=1, context=64, threads=1, quant="F16")
DOWN = Launch("b", "vllm", "b", slots=1, context=64, threads=1, quant="BF16")
CACHE = {
    "prompt_cache_bytes": 7,
    "prompt_cache_limit_bytes": 8,
    "prompt_cache_disk_bytes": 9,
    "prompt_cache_entries": 10,
    "prompt_cache_hits_total": 11,
    "prompt_cache_tokens_total": 12,
}
FIGURES = asdict(EngineStats(running=1, waiting=2, prompt_tokens=3, cached_tokens=4, generated_tokens=5)) | CACHE
TEXT = """\
# HELP tourkit_sequences_running Sequences being generated.
# TYPE tourkit_sequences_running gauge
tourkit_sequences_running{model="a",quant="F16",stack="llama_cpp"} 1.0
# HELP tourkit_sequences_waiting Sequences waiting for a slot.
# TYPE tourkit_sequences_waiting gauge
tourkit_sequences_waiting{model="a",quant="F16",stack="llama_cpp"} 2.0
# HELP tourkit_prompt_cache_bytes RAM that KV cells of earlier prompts take.
# TYPE tourkit_prompt_cache_bytes gauge
tourkit_prompt_cache_bytes{model="a",quant="F16",stack="llama_cpp"} 7.0
# HELP tourkit_prompt_cache_limit_bytes RAM that they may take.
# TYPE tourkit_prompt_cache_limit_bytes gauge
tourkit_prompt_cache_limit_bytes{model="a",quant="F16",stack="llama_cpp"} 8.0
# HELP tourkit_prompt_cache_disk_bytes Disk space that they take.
# TYPE tourkit_prompt_cache_disk_bytes gauge
tourkit_prompt_cache_disk_bytes{model="a",quant="F16",stack="llama_cpp"} 9.0
# HELP tourkit_prompt_cache_entries Pieces of prompts whose KV cells are in RAM or on disk.
# TYPE tourkit_prompt_cache_entries gauge
tourkit_prompt_cache_entries{model="a",quant="F16",stack="llama_cpp"} 10.0
# HELP tourkit_prompt_tokens_total Tokens of prompts.
# TYPE tourkit_prompt_tokens_total counter
tourkit_prompt_tokens_total{model="a",quant="F16",stack="llama_cpp"} 3.0
# HELP tourkit_prompt_tokens_cached_total Prompt tokens found in the KV cache.
# TYPE tourkit_prompt_tokens_cached_total counter
tourkit_prompt_tokens_cached_total{model="a",quant="F16",stack="llama_cpp"} 4.0
# HELP tourkit_generated_tokens_total Tokens generated.
# TYPE tourkit_generated_tokens_total counter
tourkit_generated_tokens_total{model="a",quant="F16",stack="llama_cpp"} 5.0
# HELP tourkit_generated_tokens_forced_total Generated tokens that the grammar forced.
# TYPE tourkit_generated_tokens_forced_total counter
tourkit_generated_tokens_forced_total{model="a",quant="F16",stack="llama_cpp"} 0.0
# HELP tourkit_draft_tokens_total Tokens guessed by prompt lookup.
# TYPE tourkit_draft_tokens_total counter
tourkit_draft_tokens_total{model="a",quant="F16",stack="llama_cpp"} 0.0
# HELP tourkit_draft_tokens_accepted_total Guessed tokens that were right.
# TYPE tourkit_draft_tokens_accepted_total counter
tourkit_draft_tokens_accepted_total{model="a",quant="F16",stack="llama_cpp"} 0.0
# HELP tourkit_decode_steps_total Decode calls of the model.
# TYPE tourkit_decode_steps_total counter
tourkit_decode_steps_total{model="a",quant="F16",stack="llama_cpp"} 0.0
# HELP tourkit_preemptions_total Sequences computed again because the KV cache was full.
# TYPE tourkit_preemptions_total counter
tourkit_preemptions_total{model="a",quant="F16",stack="llama_cpp"} 0.0
# HELP tourkit_prompt_cache_hits_total Prompts that got KV cells back from RAM or disk.
# TYPE tourkit_prompt_cache_hits_total counter
tourkit_prompt_cache_hits_total{model="a",quant="F16",stack="llama_cpp"} 11.0
# HELP tourkit_prompt_cache_tokens_total Prompt tokens that these cells covered.
# TYPE tourkit_prompt_cache_tokens_total counter
tourkit_prompt_cache_tokens_total{model="a",quant="F16",stack="llama_cpp"} 12.0
# HELP tourkit_offline_refused_total Connections that the offline guard refused.
# TYPE tourkit_offline_refused_total counter
tourkit_offline_refused_total{model="a",quant="F16",stack="llama_cpp"} 6.0
# HELP tourkit_model_loaded Whether the model is in memory.
# TYPE tourkit_model_loaded gauge
tourkit_model_loaded{model="a",quant="F16",stack="llama_cpp"} 1.0
tourkit_model_loaded{model="b",quant="BF16",stack="vllm"} 0.0
# HELP tourkit_turn_requests_waiting Requests that wait for the turn of their model.
# TYPE tourkit_turn_requests_waiting gauge
tourkit_turn_requests_waiting 0.0
# HELP tourkit_turn_swaps_total Swaps: one model evicted, another one loaded.
# TYPE tourkit_turn_swaps_total counter
tourkit_turn_swaps_total 0.0
"""


def test_every_figure_has_its_name_labels_and_type() -> None:
    workers = [WorkerFigures(UP, True, FIGURES | {"offline_refused": 6}), WorkerFigures(DOWN, False, {})]

    assert exposition(workers, Swapper(())).decode() == TEXT


def test_labels_are_escaped() -> None:
    odd = Launch('a "quoted" \\ model\n', "llama_cpp", "a.gguf", slots=1, context=64, threads=1, quant="F16")

    families = text_string_to_metric_families(exposition([WorkerFigures(odd, True, {})], Swapper(())).decode())

    [loaded] = [sample for family in families for sample in family.samples if sample.name == "tourkit_model_loaded"]
    assert loaded.labels["model"] == odd.model
