"""all-MiniLM-L6-v2 on the stack transformers: the vectors of the model itself, and texts found by them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_texts

from tourkit import backends
from tourkit.backends.base import Embedder
from tourkit.launch import NO_LAYERS, Launch

pytestmark = [
    pytest.mark.starts,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("TOURKIT_REAL"), reason="real weights are downloaded: make test-real"),
]
torch = pytest.importorskip("torch", reason="torch is not installed here: make test-real")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here: make test-real")

TEXTS = real_texts.texts(50)
SAME = 0.999  # the least cosine
# Question → the passage that answers it. They have few words in common.
FOUND = {
    "When does the museum open?": "The gallery welcomes visitors from 10 a.m., Tuesday to Sunday.",
    "How much is the rent?": "The tenant shall transfer 850 euros to the landlord on the first day of each month.",
    "Who runs the company?": "Maria Keller has been chief executive since 2019.",
    "Is the device waterproof?": "It may be kept under a metre of liquid for half an hour.",
    "How do I reset my password?": "Choose 'I cannot sign in' and follow the link in the e-mail.",
    "What is the weather like in winter?": "From December to February, snow and frost are usual.",
    "Can I bring my dog?": "Animals are not allowed on the premises.",
    "How long is the warranty?": "Defects are repaired free of charge for 24 months after the purchase.",
    "Where does the train leave from?": "Departures to the north are from platform 4 of the central station.",
    "What does the soup contain?": "Ingredients: carrots, potatoes, cream, salt.",
    "Which language is the program written in?": "The source code is Rust, with some parts in C.",
    "How many people work there?": "The staff consists of 120 employees.",
}


@pytest.fixture(scope="module")
def engine(minilm: Path) -> Iterator[Any]:
    engine: Any = backends.load(
        Launch("minilm", "transformers", str(minilm), slots=8, context=512, threads=2, gpu_layers=NO_LAYERS)
    )
    assert isinstance(engine, Embedder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def own_vectors(minilm: Path) -> Callable[[list[str]], np.ndarray]:
    """Vectors as the card of the model computes them: transformers, and the mean over the tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()

    def vectors(texts: list[str]) -> np.ndarray:
        given = tokenizer(texts, padding=True, truncation=False, return_tensors="pt")
        with torch.inference_mode():
            states = model(**given).last_hidden_state
        mask = given["attention_mask"][:, :, None]
        mean = (states * mask).sum(1) / mask.sum(1)
        found: np.ndarray = torch.nn.functional.normalize(mean, dim=1).numpy()
        return found

    return vectors


def test_50_texts_have_the_vectors_of_the_models_own_mean_pooling(
    engine: Any, own_vectors: Callable[[list[str]], np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    found = engine.embed(TEXTS).result().vectors
    cosines = (found * own_vectors(TEXTS)).sum(1)

    with capsys.disabled():
        sys.stdout.write(f"\nMiniLM: cosine with transformers' own vectors of 50 texts: {cosines.min():.6f} or more\n")
    assert cosines.min() >= SAME


def test_passages_are_ranked_as_by_the_models_own_vectors(
    engine: Any, own_vectors: Callable[[list[str]], np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    questions, passages = list(FOUND), list(FOUND.values())
    ranks = ranked(*(engine.embed(texts).result().vectors for texts in (questions, passages)))
    right = int((ranks[:, 0] == np.arange(len(FOUND))).sum())

    with capsys.disabled():
        sys.stdout.write(f"\nMiniLM: {right} of {len(FOUND)} questions find their passage first\n")
    assert (ranks == ranked(*(own_vectors(texts) for texts in (questions, passages)))).all()
    assert right >= len(FOUND) - 1  # "Who runs the company?" finds the number of its employees first


def ranked(questions: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Return the passages' numbers for each question, the nearest first."""
    found: np.ndarray = (-questions @ passages.T).argsort(1)
    return found
