"""The calls of llama.cpp and the engine over them, with a real GGUF (tiny, random weights)."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import rewrite, write_sliding

from tourkit.backends.llama_cpp import load
from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.errors import EngineError, LocalError, RequestError, UsageError
from tourkit.generation import Constraint, Delta, Finish, Request, SamplingParams
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch

pytestmark = pytest.mark.starts


@pytest.fixture
def runner(tiny_gguf: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(tiny_gguf, slots=2, context=128, n_batch=32, threads=1)
    yield runner
    runner.close()


@pytest.fixture
def engine(tiny_gguf: Path) -> Iterator[RunnerEngine]:
    engine = RunnerEngine(LlamaRunner(tiny_gguf, slots=4, context=512, threads=1), "llama_cpp")
    yield engine
    engine.close()


def ask(engine: RunnerEngine, request: Request) -> list[tuple[str, Finish]]:
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    engine.submit(request, deltas.put)
    texts, endings = [""] * request.n, {}
    while len(endings) < request.n:
        delta = deltas.get(timeout=60)
        texts[delta.index] += delta.text
        if delta.finish:
            endings[delta.index] = delta.finish
    return [(texts[i], endings[i]) for i in range(request.n)]


def greedy(text: str, max_tokens: int = 20, n: int = 1) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    return Request(messages=({"role": "user", "content": text},), params=params, n=n)


@pytest.mark.parametrize("text", ["", "the name and the date", "Счёт № 42 на сумму 1 200,50 ₽", "emoji 🙂", "a\x00b"])
def test_text_survives_tokens(runner: LlamaRunner, text: str) -> None:
    tokens = runner.tokenize(text, add_special=False, parse_special=False)

    assert b"".join(runner.piece(token) for token in tokens).decode() == text


def test_control_tokens_in_a_plain_prompt_are_only_text(runner: LlamaRunner) -> None:
    plain = runner.tokenize("<|end|>", add_special=False, parse_special=False)
    special = runner.tokenize("<|end|>", add_special=False, parse_special=True)

    assert len(plain) > 1
    assert special == sorted(runner.eog)


def test_a_batch_is_never_written_past_its_end(runner: LlamaRunner) -> None:
    """llama.cpp itself does not check this. It would write beyond its arrays."""
    for pos in range(32):
        runner.add(5, pos, 0, logits=False)

    with pytest.raises(EngineError, match="holds 32 tokens"):
        runner.add(5, 32, 0, logits=False)


@pytest.mark.parametrize(("token", "slot"), [(5, 2), (5, -1), (10**6, 0), (-1, 0)])
def test_a_token_or_slot_out_of_range_is_refused(runner: LlamaRunner, token: int, slot: int) -> None:
    with pytest.raises(EngineError, match="out of range"):
        runner.add(token, 0, slot, logits=False)


def test_no_room_in_the_kv_cache_is_an_answer_not_an_error(runner: LlamaRunner) -> None:
    filled = 0
    while True:
        for pos in range(filled, filled + 32):
            runner.add(5, pos, 0, logits=False)
        if not runner.decode():
            break
        filled += 32

    assert filled == runner.n_ctx
    assert runner.truncate(0, filled - 32)
    runner.add(5, filled - 32, 0, logits=True)
    assert runner.decode()


def test_shared_cells_give_the_logits_of_cells_of_ones_own(runner: LlamaRunner) -> None:
    prompt = runner.tokenize("the name and the date", add_special=False, parse_special=False)
    for pos, token in enumerate(prompt):
        runner.add(token, pos, 0, logits=pos == len(prompt) - 1)
    runner.decode()
    own = runner.logits(len(prompt) - 1).copy()

    runner.share(0, 1, len(prompt) - 1)
    runner.add(prompt[-1], len(prompt) - 1, 1, logits=True)
    runner.decode()

    # One row and many rows use different kernels, which round float16 weights differently.
    assert abs(runner.logits(0) - own).max() < 0.01 * abs(own).max()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all"], ids=["empty", "cut", "other"])
def test_a_file_that_is_no_model_is_named_with_the_mend(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)

    with pytest.raises(LocalError, match=r"broken\.gguf: .*tourkit verify") as failed:
        LlamaRunner(path)

    assert "\n" not in str(failed.value)


def test_what_is_wrong_with_a_model_is_told_not_only_that_it_failed(tiny_gguf: Path, tmp_path: Path) -> None:
    """The last line of llama.cpp's log only says that it failed. The line before it gives the reason."""
    odd = rewrite(tiny_gguf, tmp_path / "odd.gguf", feed_forward_length=96)

    with pytest.raises(LocalError, match="wrong shape"):
        load(Launch(model="odd", stack="llama_cpp", path=str(odd), slots=1, context=64, threads=1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no such file"):
        LlamaRunner(tmp_path / "gone.gguf")


def test_a_greedy_answer_is_the_same_alone_in_a_batch_and_from_the_prefix_cache(engine: RunnerEngine) -> None:
    first = ask(engine, greedy("the name"))

    again = ask(engine, greedy("the name"))
    batched = ask(engine, greedy("the name", n=4))

    assert again == first
    assert batched == first * 4
    assert engine.stats().cached_tokens > 0


def test_guessing_changes_no_greedy_answer_under_a_schema(tiny_gguf: Path) -> None:
    """Here no other token is within rounding of the tiny model's likeliest token, so the texts are exactly equal."""
    schema = {
        "type": "object",
        "properties": {
            "names": {
                "type": "array",
                "items": {"type": "string", "minLength": 9, "maxLength": 12},
                "minItems": 6,
                "maxItems": 8,
            }
        },
        "required": ["names"],
    }
    texts, stats = [], []
    for speculate in (False, True):
        engine = RunnerEngine(LlamaRunner(tiny_gguf, slots=2, context=512, threads=1), "llama_cpp", speculate=speculate)
        params = SamplingParams(max_tokens=400, temperature=0)
        messages = ({"role": "user", "content": "the name and the date and the name and the date"},)
        texts.append(ask(engine, Request(messages=messages, params=params, constraint=Constraint.json_schema(schema))))
        stats.append(engine.stats())
        engine.close()

    assert texts[0] == texts[1]
    assert stats[1].drafted_tokens > 0


@pytest.mark.parametrize(
    ("text", "max_tokens", "param"),
    [("x", 600, "max_tokens"), ("long " * 600, None, "messages")],
    ids=["answer", "prompt"],
)
def test_what_does_not_fit_the_context_is_refused_not_cut(
    engine: RunnerEngine, text: str, max_tokens: int | None, param: str
) -> None:
    request = Request(messages=({"role": "user", "content": text},), params=SamplingParams(max_tokens=max_tokens))

    with pytest.raises(RequestError) as refused:
        engine.submit(request, lambda delta: None)

    assert (refused.value.param, refused.value.code) == (param, "context_length_exceeded")


def test_without_max_tokens_the_answer_may_fill_the_context(engine: RunnerEngine) -> None:
    request = Request(messages=({"role": "user", "content": "x"},), params=SamplingParams(temperature=0, stop=()))

    (_, finish), *_ = ask(engine, request)

    assert finish in (Finish.LENGTH, Finish.STOP)


# --- how a model is loaded ------------------------------------------------------------------------------------------

SCHEMA = Constraint.json_schema(
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
)


@pytest.fixture(scope="module")
def wide_heads(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with heads of 32 numbers, because q8_0 has blocks of 32."""
    heads = {"attention__head_count": 2, "attention__head_count_kv": 1, "rope__dimension_count": 32}
    return rewrite(tiny_gguf, tmp_path_factory.mktemp("wide") / "wide.gguf", **heads)


def prefill(runner: LlamaRunner, text: str) -> np.ndarray:
    """Put `text` into slot 0 and return the logits after it."""
    tokens = runner.tokenize(text, add_special=False, parse_special=False)
    for pos, token in enumerate(tokens):
        runner.add(token, pos, 0, logits=pos == len(tokens) - 1)
    assert runner.decode()
    return runner.logits(len(tokens) - 1).copy()


def test_a_q8_0_cache_takes_about_half_the_memory_and_says_nearly_the_same(wide_heads: Path) -> None:
    sizes, logits = [], []
    for cache_type in ("f16", "q8_0"):
        runner = LlamaRunner(wide_heads, slots=2, context=256, threads=1, cache_type=cache_type)
        logits.append(prefill(runner, "the name and the date " * 10))
        sizes.append(len(runner.read_cells(0, 0, 40)))
        runner.close()

    assert 0.5 < sizes[1] / sizes[0] < 0.56  # 34 bytes for 32 numbers instead of 64; both also have data for each cell
    assert abs(logits[0] - logits[1]).max() < 0.05 * abs(logits[0]).max()
    assert logits[0].argmax() == logits[1].argmax()


def test_a_q8_0_cache_is_shared_cut_and_reused_like_any_other(wide_heads: Path) -> None:
    engine = load(Launch("x", "llama_cpp", str(wide_heads), 4, 256, 1, cache_type="q8_0"))
    assert isinstance(engine, RunnerEngine)

    first, again, batched = (ask(engine, greedy("the name", n=n)) for n in (1, 1, 4))
    params = SamplingParams(max_tokens=60, seed=1)
    (structured, finish), *_ = ask(engine, Request(prompt="the name", params=params, constraint=SCHEMA))

    stats = engine.stats()
    engine.close()
    assert again == first
    assert batched == first * 4
    assert stats.cached_tokens > 0
    assert (set(json.loads(structured)), finish) == ({"name"}, Finish.STOP)


def test_a_cache_type_that_does_not_suit_the_model_is_refused_with_the_mend(tiny_gguf: Path) -> None:
    with pytest.raises(LocalError, match=r"q8_0 cache .*n_embd_head_k=16.*use the f16 cache") as refused:
        LlamaRunner(tiny_gguf, cache_type="q8_0")

    assert "\n" not in str(refused.value)


def test_an_unknown_cache_type_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(UsageError, match="choose from f16, q8_0"):
        LlamaRunner(tiny_gguf, cache_type="q3")


def test_a_batch_has_room_for_every_slot(tiny_gguf: Path) -> None:
    """Without this, llama.cpp would end the process."""
    runner = LlamaRunner(tiny_gguf, slots=16, context=64, n_batch=8, threads=1)

    prefill(runner, "the name and the date")

    assert runner.n_batch == 17  # and for the sequence through which cells are moved
    runner.close()


def test_flash_attention_changes_nothing_but_rounding(tiny_gguf: Path) -> None:
    logits = []
    for flash_attention in (None, True, False):
        runner = LlamaRunner(tiny_gguf, slots=1, context=256, threads=1, flash_attention=flash_attention)
        logits.append(prefill(runner, "the name and the date " * 10))
        runner.close()

    assert max(abs(other - logits[0]).max() for other in logits) < 0.01 * abs(logits[0]).max()


@pytest.mark.parametrize("gpu_layers", [ALL_LAYERS, NO_LAYERS, GpuLayers(1)])
def test_layers_for_a_gpu_that_is_not_there_are_no_error(tiny_gguf: Path, gpu_layers: GpuLayers) -> None:
    """A plan for a GPU still runs on a CPU. Only a machine with a GPU can show that layers go to the GPU."""
    runner = LlamaRunner(tiny_gguf, slots=1, context=64, threads=1, gpu_layers=gpu_layers)

    prefill(runner, "the name")

    runner.close()


def test_a_split_model_is_loaded_in_place_and_is_the_whole_one(tiny_gguf: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_gguf, tmp_path / "split.gguf", parts=3)
    logits = []
    for path in (tiny_gguf, first):
        runner = LlamaRunner(path, slots=1, context=64, threads=1)
        logits.append(prefill(runner, "the name and the date"))
        runner.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"split-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    assert (logits[0] == logits[1]).all()


def test_a_missing_part_of_a_split_model_is_named(tiny_gguf: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_gguf, tmp_path / "split.gguf", parts=3)
    (tmp_path / "split-00002-of-00003.gguf").unlink()

    with pytest.raises(LocalError, match=r"split-00002-of-00003\.gguf: no such file"):
        LlamaRunner(first)


def test_a_later_part_of_a_split_model_asks_for_the_first(tiny_gguf: Path, tmp_path: Path) -> None:
    rewrite(tiny_gguf, tmp_path / "split.gguf", parts=3)

    with pytest.raises(LocalError, match="part 2 of 3: give the first part"):
        LlamaRunner(tmp_path / "split-00002-of-00003.gguf")


def held_to(schema: dict[str, object], n: int = 1) -> Request:
    return replace(greedy("Write it.", max_tokens=60, n=n), constraint=Constraint.json_schema(schema))


def test_an_answer_that_leaves_no_choice_asks_the_model_nothing(engine: RunnerEngine) -> None:
    fixed = held_to({"const": {"kind": "fixed", "count": 3}}, n=2)
    ask(engine, fixed)  # before its first JSON answer, the model is asked how it writes JSON
    before = engine.stats().decode_steps

    answers = ask(engine, fixed)

    assert answers == [('{"kind":"fixed","count":3}', Finish.STOP)] * 2
    assert engine.stats().decode_steps == before


@pytest.mark.parametrize(
    ("answers", "spaced"),
    [
        ([], False),  # random weights write no JSON; the model in tests/test_tiny_model.py writes spaces
        (["None."], False),
        (['{"a":1}'], False),
        (['{"a":1}', '{"b":"c"}'], False),
        (['{"a":1}', '{"a": 2}'], True),
        (['{\n  "a":\n 1}'], True),
    ],
)
def test_an_answer_is_spaced_as_those_before_it_are(engine: RunnerEngine, answers: list[str], spaced: bool) -> None:
    asked = {"role": "user", "content": 'Write {"kind":"","count":0}.'}
    turns = [turn for answer in answers for turn in ({"role": "assistant", "content": answer}, asked)]
    params = SamplingParams(max_tokens=60, temperature=0)
    held = Request(params=params, constraint=Constraint.json_schema({"const": {"kind": "fixed", "count": 3}}))

    in_chat = ask(engine, replace(held, messages=(asked, *turns)))
    as_text = ask(engine, replace(held, prompt=" ".join(["Write it.", *answers])))

    text = '{"kind": "fixed", "count": 3}' if spaced else '{"kind":"fixed","count":3}'
    assert in_chat == as_text == [(text, Finish.STOP)]


def test_an_answer_to_a_first_question_has_no_spaces_where_the_model_writes_none(engine: RunnerEngine) -> None:
    """This model has random weights and writes no JSON. The model in tests/test_tiny_model.py writes spaces."""
    assert ask(engine, held_to({"const": [1, {"a": 2}]})) == [('[1,{"a":2}]', Finish.STOP)]


def test_what_a_grammar_forces_at_the_start_is_computed_once_with_the_prompt(engine: RunnerEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"a_name_that_takes_many_tokens": {"enum": ["yes", "no"]}},
        "required": ["a_name_that_takes_many_tokens"],
        "additionalProperties": False,
    }
    ask(engine, held_to({"const": 1}))  # before its first JSON answer, the model is asked how it writes JSON
    before = engine.stats()

    ask(engine, replace(held_to(schema, n=4), messages=None, prompt="Write it."))

    stats = engine.stats()
    one_prompt = (stats.prompt_tokens - before.prompt_tokens) // 4
    assert stats.cached_tokens - before.cached_tokens == 3 * (one_prompt - 1)
    assert one_prompt > len(engine.tokenize("Write it.", add_special=False)) + 10


def test_cells_that_were_read_out_give_the_same_logits_when_written_back(runner: LlamaRunner) -> None:
    tokens = runner.tokenize("the name and the date of the day", add_special=True, parse_special=False)

    def last_logits(slot: int, start: int) -> np.ndarray:
        rows = [runner.add(t, pos, slot, logits=pos == len(tokens) - 1) for pos, t in enumerate(tokens) if pos >= start]
        assert runner.decode()
        assert rows[-1] is not None
        return runner.logits(rows[-1]).copy()

    whole = last_logits(0, 0)
    middle, last = len(tokens) // 2, len(tokens) - 1
    first, second = runner.read_cells(0, 0, middle + 1), runner.read_cells(0, middle, last + 1)
    runner.truncate(0, 0)
    assert runner.write_cells(1, first, 0, middle)  # a part of what was read
    assert runner.write_cells(1, second, middle, last)

    assert runner.read_cells(1, 0, middle + 1) == first  # bit for bit
    assert np.allclose(last_logits(1, last), whole, atol=1e-4)


class Slots:
    """A runner of a model with a sliding window of 128 tokens, and the tokens that its slots get."""

    def __init__(self, path: Path) -> None:
        self.runner = LlamaRunner(path, slots=3, context=1024, n_ctx=2048, n_batch=512, threads=1)

    def add(self, slot: int, start: int, end: int, seed: int = 0) -> np.ndarray:
        """Compute tokens [start, end) of a text in a slot. Return the logits after them."""
        for pos in range(start, end):
            self.runner.add((pos * 7 + seed) % 200 + 5, pos, slot, logits=pos == end - 1)
        assert self.runner.decode()
        return self.runner.logits(end - start - 1).copy()


@pytest.fixture(scope="module")
def sliding(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sliding(tmp_path_factory.mktemp("sliding") / "sliding.gguf", tiny_gguf, window=128)


def test_a_sliding_window_loses_no_cells_when_they_are_moved(sliding: Path) -> None:
    """llama.cpp leaves out of a sequence's state what its last token no longer attends to. A run is never so long."""
    slots = Slots(sliding)
    slots.add(0, 0, 400)
    runs = [(start, min(400, start + 128)) for start in range(0, 400, 128)]
    cells = [slots.runner.read_cells(0, *run) for run in runs]
    slots.runner.truncate(0, 200)
    again = slots.add(0, 200, 210, seed=3)
    slots.runner.truncate(0, 0)

    assert slots.runner.longest_run == 128
    for (start, end), data in zip(runs[:2], cells, strict=False):
        assert slots.runner.write_cells(1, data, start, min(200, end))
    assert np.allclose(slots.add(1, 200, 210, seed=3), again, atol=1e-3)
    slots.runner.close()


def test_cells_that_a_sliding_window_has_lost_are_not_used_again(sliding: Path) -> None:
    """llama.cpp gives the cells of slot 1 that are outside its window to slot 0, though other cells are free."""
    slots = Slots(sliding)
    slots.add(0, 0, 20)
    slots.add(1, 0, 400)
    slots.runner.truncate(0, 0)
    slots.add(0, 0, 100, seed=3)

    assert slots.runner.read_cells(1, 0, 100) == bytearray()
    assert not slots.runner.share(1, 2, 150)
    assert slots.runner.share(1, 2, 399)
    assert not slots.runner.truncate(1, 150)  # now the slot is empty
    slots.add(1, 0, 10)
    slots.add(2, 399, 405)
    slots.runner.close()


def test_cells_that_do_not_fit_leave_the_slot_as_it_was(tiny_gguf: Path) -> None:
    runner = LlamaRunner(tiny_gguf, slots=2, context=128, n_ctx=256, n_batch=256, threads=1)
    for slot, length in ((0, 150), (1, 50)):
        for pos in range(length):
            runner.add(5, pos, slot, logits=False)
    assert runner.decode()
    cells = runner.read_cells(0, 0, 150)
    fits = runner.write_cells(1, cells, 50, 150)
    for pos in range(50, 100):
        runner.add(5, pos, 1, logits=False)
    decoded = runner.decode()
    runner.close()

    assert not fits
    assert decoded


def test_an_engine_that_nobody_asks_gets_ready_for_grammars_and_ends_all_the_same(tiny_gguf: Path) -> None:
    begun = threading.Event()

    class Noting(LlamaRunner):
        def grammar_tokenizer(self) -> Any:
            begun.set()
            return super().grammar_tokenizer()

    engine = RunnerEngine(Noting(tiny_gguf, slots=1, context=64, threads=1), "llama_cpp")

    begun.wait()
    engine.close()
