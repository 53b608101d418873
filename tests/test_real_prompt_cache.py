"""SmolLM2: documents asked again have the answers of a first pass, from RAM, from disk and after a restart.

The KV cells that come back are the same bits. The rest of the prompt is computed in a smaller batch than alone, and
llama.cpp's kernels round differently for other sizes of batches. So two tokens that are nearly equally likely may
change places: the answers from RAM, from disk and after a restart are compared with those of a slot that kept its
cells, all of them, and with those of a first pass, nearly all of them.
"""

from __future__ import annotations

import os
import queue
from dataclasses import replace
from pathlib import Path

import pytest

from tourkit.backends.base import Engine
from tourkit.backends.llama_cpp import load
from tourkit.generation import Delta, Request, SamplingParams
from tourkit.launch import Launch

pytestmark = [
    pytest.mark.starts,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("TOURKIT_REAL"), reason="real weights are downloaded: make test-real"),
]

FIRST, QUESTION = "Who wrote the letter?", "Which day of the week was it?"
NAMES = ["Anna Petrova", "Boris Klein", "Clara Jones", "David Moss", "Elena Sokolova", "Frank Adler"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
DOCUMENTS = [
    f"On {day} the committee got a letter from {name}. The letter said that the bridge over the river needed "
    f"{number} new stones before the winter, and that the stones lay ready in the yard behind the old mill."
    for number, (name, day) in enumerate(zip(NAMES, DAYS, strict=True), 11)
]
TOKENS = 12  # in an answer


def asked(engine: Engine, document: str, question: str) -> str:
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    messages = ({"role": "user", "content": f"{document}\n\n{question}"},)
    request = Request(messages=messages, params=SamplingParams(max_tokens=TOKENS, temperature=0))
    engine.submit(request, deltas.put)
    text = ""
    while True:
        delta = deltas.get()
        assert delta.error is None, delta.error
        text += delta.text
        if delta.finish is not None:
            return text


def answers(launch: Launch, *questions: str) -> tuple[list[str], int]:
    """Return the answers to the last question about every document, and the prompt tokens of it that were found."""
    engine = load(launch)
    for question in questions[:-1]:
        for document in DOCUMENTS:
            asked(engine, document, question)
    before = engine.stats().cached_tokens
    texts = [asked(engine, document, questions[-1]) for document in DOCUMENTS]
    found = engine.stats().cached_tokens - before
    engine.close()
    return texts, found


def in_place(launch: Launch) -> list[str]:
    """Return the answers if the slot still has the document: each is asked for twice in a row, and nothing is moved."""
    engine = load(replace(launch, prompt_cache=0))
    texts = []
    for document in DOCUMENTS:
        asked(engine, document, FIRST)
        texts.append(asked(engine, document, QUESTION))
    engine.close()
    return texts


def test_answers_about_documents_asked_again_are_those_of_a_first_pass(smollm2: Path, tmp_path: Path) -> None:
    ram = Launch("smollm2", "llama_cpp", str(smollm2), 4, 1024, len(os.sched_getaffinity(0)), prompt_cache=1 << 30)
    disk = replace(ram, prompt_cache=4 << 20, prompt_cache_dir=str(tmp_path / "kept"))  # RAM has room for one document

    alone, _ = answers(replace(ram, prompt_cache=0), QUESTION)
    kept = in_place(ram)
    from_ram, found_in_ram = answers(ram, FIRST, QUESTION)
    from_disk, found_on_disk = answers(disk, FIRST, QUESTION)
    restarted, found_after_restart = answers(disk, QUESTION)

    same = sum(one == other for one, other in zip(alone, from_ram, strict=True))
    assert from_ram == kept
    assert from_disk == kept
    assert min(found_in_ram, found_on_disk, found_after_restart) > len(DOCUMENTS) * 50
    assert same >= len(DOCUMENTS) - 1
    assert sum(one == other for one, other in zip(alone, restarted, strict=True)) >= len(DOCUMENTS) - 1
