"""The engine thread with a runner that needs no model: the same answers in every mode, and one ending per sequence."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from fake_runner import Collected, FakeRunner, alone, hashed, submit

from tourkit.engine.engine import BatchEngine
from tourkit.errors import EngineDead, LocalError, QueueFull
from tourkit.generation import Finish, SamplingParams

PROMPTS = ["one", "two " * 30, "three" * 40, "two two two", "five", "six " * 90, "one", "two " * 30 + "more"]


def copying(history: tuple[int, ...]) -> int:
    """Return mostly the token that followed the same two tokens earlier, and sometimes another token."""
    digest = hashed(history)
    if digest < 97 + 22:
        for at in range(len(history) - 3, 0, -1):
            if history[at - 1 : at + 1] == history[-2:]:
                return history[at + 1]
    return digest


SHAPES = pytest.mark.parametrize(
    "shape",
    [
        {"slots": 1},
        {"slots": 4},
        {"slots": 8, "n_batch": 7},
        {"slots": 3, "n_batch": 512},
        {"slots": 4, "n_ctx": 450},
        {"slots": 4, "n_batch": 512, "prompts_apart": True},
        {"slots": 4, "n_batch": 512, "n_ctx": 450, "prompts_apart": True},
    ],
    ids=["one slot", "four slots", "tiny batches", "big batches", "short of KV cells", "apart", "apart and short"],
)


def test_a_model_that_keeps_all_of_its_cells_or_none_gives_the_same_answers_without_sharing() -> None:
    """Recurrent and hybrid models have one state per sequence: no part of it can be kept, shared or dropped."""
    engine = BatchEngine(FakeRunner(slots=3, partial_kv=False, next_token=copying))

    answers = [collected.wait()[0] for collected in [submit(engine, prompt) for prompt in PROMPTS]]

    stats = engine.stats()
    engine.close()
    assert answers == [alone(prompt, model=copying) for prompt in PROMPTS]
    assert (stats.cached_tokens, stats.drafted_tokens) == (0, 0)


@SHAPES
def test_guessing_changes_no_answer_and_saves_steps(shape: dict[str, Any]) -> None:
    """Prompt lookup with a model that copies gives the same tokens in fewer calls of the model."""
    expected = [alone(prompt, model=copying) for prompt in PROMPTS]
    steps, accepted = [], []
    for speculate in (False, True):
        together = BatchEngine(FakeRunner(**shape, next_token=copying), speculate=speculate)
        answers = [collected.wait()[0] for collected in [submit(together, prompt) for prompt in PROMPTS]]
        together.close()
        # One after the other: how many calls prompts share depends on when each of them comes.
        engine = BatchEngine(FakeRunner(**shape, next_token=copying), speculate=speculate)
        assert [submit(engine, prompt).wait()[0] for prompt in PROMPTS] == answers == expected
        steps.append(engine.stats().decode_steps)
        accepted.append(engine.stats().accepted_tokens)
        engine.close()
    assert accepted[0] == 0 < accepted[1]
    assert steps[1] < steps[0]


def test_a_guess_that_never_comes_true_stops_being_made() -> None:
    """The prompt repeats itself but the model never does: there are few guesses and no additional step."""
    runner = FakeRunner(slots=1, next_token=lambda history: 97 + len(history) % 3 if len(history) % 2 else 120)
    engine = BatchEngine(runner)

    submit(engine, "abcx" * 50, max_tokens=200).wait()

    stats = engine.stats()
    engine.close()
    assert stats.decode_steps <= 204


def test_a_guess_does_not_run_past_max_tokens_or_a_stop_string() -> None:
    engine = BatchEngine(FakeRunner(next_token=lambda history: history[-8]))
    prompt = "abcdefgh" * 4

    limited = submit(engine, prompt, max_tokens=13).wait()
    stopped = submit(engine, prompt, max_tokens=50, stop=("fg",)).wait()

    engine.close()
    assert limited == [("abcdefghabcde", Finish.LENGTH)]
    assert stopped == [("abcde", Finish.STOP)]


@SHAPES
def test_batching_changes_no_answer(shape: dict[str, Any]) -> None:
    """Greedy output is the same alone, batched, in chunks, with shared prefixes and after preemption."""
    engine = BatchEngine(FakeRunner(**shape))

    answers = [collected.wait()[0] for collected in [submit(engine, prompt) for prompt in PROMPTS]]

    engine.close()
    assert answers == [alone(prompt) for prompt in PROMPTS]


def test_preemption_happens_when_cells_run_out_and_is_counted() -> None:
    engine = BatchEngine(FakeRunner(slots=4, n_ctx=450))

    for collected in [submit(engine, prompt) for prompt in PROMPTS]:
        collected.wait()

    stats = engine.stats()
    engine.close()
    assert stats.preemptions > 0
    assert (stats.running, stats.waiting) == (0, 0)


def test_n_samples_prefill_their_prompt_once() -> None:
    runner = FakeRunner(slots=8, n_batch=512)
    engine = BatchEngine(runner)
    prompt = "p" * 300

    answers = submit(engine, prompt, n=8).wait()

    engine.close()
    assert answers == [alone(prompt)] * 8
    prefilled = sum(1 for batch in runner.batches for _, pos, _, _ in batch if pos < len(prompt))
    assert prefilled == len(prompt) + 7  # each other sample decodes the last prompt token again to get its logits


def test_a_prompt_reuses_the_prefix_of_an_ended_one() -> None:
    runner = FakeRunner(slots=2, n_batch=512)
    engine = BatchEngine(runner)
    shared = "system prompt " * 20
    submit(engine, shared + "first").wait()
    before = engine.stats().cached_tokens

    answer = submit(engine, shared + "second").wait()[0]

    cached = engine.stats().cached_tokens - before
    engine.close()
    assert answer == alone(shared + "second")
    assert cached == len(shared)


def test_a_long_prompt_does_not_stall_a_running_stream() -> None:
    """While a 1,000-token prompt is prefilled in chunks, each batch also carries the running sequence's token."""
    gate = threading.Event()  # the model waits until both sequences are submitted
    runner = FakeRunner(slots=2, n_batch=32, next_token=lambda history: 97, gate=gate)
    engine = BatchEngine(runner, speculate=False)
    running = submit(engine, "run", max_tokens=400)
    prompt = submit(engine, "x" * 1000, max_tokens=1)

    gate.set()
    prompt.wait()
    running.wait()

    engine.close()
    chunks = [batch for batch in runner.batches if any(token == ord("x") for token, *_ in batch)]
    assert len(chunks) >= 1000 // 32
    assert all(batch[0][0] != ord("x") for batch in chunks[:-1])


def test_a_stop_string_ends_the_sequence_and_is_not_given_out() -> None:
    engine = BatchEngine(FakeRunner(next_token=lambda history: 97 + len(history) % 26))

    text, finish = submit(engine, "abc", stop=("hij",)).wait()[0]

    engine.close()
    assert (text, finish) == ("defg", Finish.STOP)


def test_text_that_only_looks_like_a_stop_string_is_given_out_in_the_end() -> None:
    engine = BatchEngine(FakeRunner(next_token=lambda history: 97 + len(history) % 26))

    text, finish = submit(engine, "abc", stop=("hijx",), max_tokens=7).wait()[0]

    engine.close()
    assert (text, finish) == ("defghij", Finish.LENGTH)


def test_abort_frees_the_slot_and_ends_the_sequence_once() -> None:
    engine = BatchEngine(FakeRunner(slots=1, next_token=lambda history: 97))
    endless = Collected(1)
    submission = engine.submit([1], SamplingParams(temperature=0), 10**9, endless.deltas.put)
    endless.deltas.get(timeout=60)

    engine.abort(submission)
    engine.abort(submission)
    (_, finish), *_ = endless.wait()
    after = submit(engine, "next", max_tokens=3).wait()

    engine.close()
    assert finish is Finish.ABORT
    assert after == [("aaa", Finish.LENGTH)]


def test_an_abort_reaches_a_sequence_that_is_still_waiting() -> None:
    gate = threading.Event()
    engine = BatchEngine(FakeRunner(slots=1, gate=gate))
    first = submit(engine, "first")
    waiting = Collected(1)
    submission = engine.submit(list(b"second"), SamplingParams(temperature=0), 5, waiting.deltas.put)

    engine.abort(submission)
    gate.set()

    assert waiting.wait() == [("", Finish.ABORT)]
    assert first.wait() == [alone("first")]
    engine.close()


def test_when_the_model_breaks_every_caller_hears_of_it_and_later_ones_are_refused() -> None:
    engine = BatchEngine(FakeRunner(slots=2, fail_at_step=3, next_token=lambda history: 97))

    endings = [collected.wait()[0][1] for collected in [submit(engine, f"prompt {i}") for i in range(6)]]

    assert endings == [Finish.ERROR] * 6
    engine.close()
    with pytest.raises(EngineDead, match="the model broke"):
        submit(engine, "too late")


def test_closing_ends_what_runs_and_what_waits_and_frees_the_model() -> None:
    runner = FakeRunner(slots=1, next_token=lambda history: 97)
    engine = BatchEngine(runner)
    collected = [submit(engine, "endless", max_tokens=10**9) for _ in range(3)]
    collected[0].deltas.get(timeout=60)

    engine.close()

    assert [each.wait()[0][1] for each in collected] == [Finish.ABORT] * 3
    assert runner.closed
    with pytest.raises(EngineDead):
        submit(engine, "too late")


def test_submitting_from_many_threads_while_the_model_breaks_leaves_nobody_without_an_ending() -> None:
    engine = BatchEngine(FakeRunner(slots=4, fail_at_step=40), max_waiting=10_000)
    endings: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def keep_submitting() -> None:
        for i in range(50):
            try:
                submit(engine, f"prompt {i}", max_tokens=5).wait()
            except EngineDead:
                endings.put(True)
                return
            endings.put(True)

    threads = [threading.Thread(target=keep_submitting) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    engine.close()
    assert not any(thread.is_alive() for thread in threads)


def test_a_full_queue_refuses_and_says_so() -> None:
    gate = threading.Event()
    engine = BatchEngine(FakeRunner(slots=1, gate=gate), max_waiting=2)
    accepted = [submit(engine, "a", n=2)]

    with pytest.raises(QueueFull, match="already waiting"):
        submit(engine, "b", n=3)

    gate.set()
    for collected in accepted:
        collected.wait()
    engine.close()


def test_a_sequence_that_can_never_fit_ends_with_an_error_that_says_what_to_do() -> None:
    engine = BatchEngine(FakeRunner(slots=1, n_ctx=50))
    collected = Collected(1)
    engine.submit([5] * 60, SamplingParams(temperature=0), 5, collected.deltas.put)

    last = collected.deltas.get(timeout=60)

    engine.close()
    assert last.finish is Finish.ERROR
    assert "--context" in str(last.error)


def test_all_work_on_a_model_is_done_by_one_thread() -> None:
    """With more than one thread, the OpenMP threads of llama.cpp no longer spin, and decoding is a fifth slower."""
    threads = []

    class Noting(FakeRunner):
        def decode(self) -> bool:
            threads.append(threading.get_ident())
            return super().decode()

    engine = BatchEngine(Noting(), warm_up=lambda: threads.append(threading.get_ident()) or 0)
    submit(engine, "one").wait()
    engine.close()

    assert len(threads) > 2
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1


def test_a_model_that_fails_its_first_batch_is_refused_and_closed() -> None:
    def fail() -> None:
        raise LocalError("no memory")

    runner = FakeRunner()

    with pytest.raises(LocalError, match="no memory"):
        BatchEngine(runner, warm_up=fail)
    assert runner.closed


def test_what_can_wait_is_done_at_the_first_rest_and_the_release_comes_last() -> None:
    done: list[str] = []
    rested = threading.Event()

    def at_rest() -> None:
        done.append("rest")
        rested.set()

    engine = BatchEngine(FakeRunner(), at_rest=at_rest, release=lambda: done.append("release"))
    answer = submit(engine, "one").wait()
    rested.wait()

    assert done == ["rest"]
    assert submit(engine, "one").wait() == answer
    engine.close()
    assert done == ["rest", "release"]
