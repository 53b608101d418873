"""How long a call of onnxruntime-genai takes: it holds Python's lock, and a worker without beats is ended."""

from __future__ import annotations

import pytest

from tourkit.backends.onnx import CallSize


def after(size: CallSize, rate: float, calls: int) -> int:
    """Return the tokens of a call after some full calls on a machine that computes `rate` tokens a second."""
    for _ in range(calls):
        size.took(size.tokens, size.tokens / rate)
    return size.tokens


@pytest.mark.parametrize("rate", [3, 20, 100, 400])
def test_a_call_takes_a_second_whatever_the_model_and_the_machine(rate: float) -> None:
    assert after(CallSize(512), rate, calls=4) == pytest.approx(rate, rel=0.1)


def test_a_fast_model_gets_whole_batches() -> None:
    assert after(CallSize(341), 10_000, calls=3) == 341


def test_a_machine_that_gets_slow_gets_short_calls_at_once() -> None:
    size = CallSize(512)
    after(size, 10_000, calls=4)

    assert after(size, 50, calls=1) <= 50


def test_single_tokens_say_nothing_about_prompts() -> None:
    size = CallSize(512)
    after(size, 10_000, calls=4)
    size.took(1, seconds=0.9)

    assert size.tokens == 512
