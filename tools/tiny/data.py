"""Samples as token ids with labels. The model learns only the assistant's text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.tiny.tasks import Phase, Sample, pieces, sample

IGNORE = -100
CONTEXT = 1024  # tokens of the longest sample; longer samples are skipped


@dataclass(frozen=True, slots=True)
class Row:
    ids: list[int]
    labels: list[int]  # IGNORE at positions that are not learnt; not shifted

    @property
    def learnt(self) -> int:
        """Count the learnt positions. The first token is none: no position predicts it."""
        return sum(label != IGNORE for label in self.labels[1:])


class Encoder:
    """The tokenizer in a folder. `size`: number of its tokens."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.size: int = self._tokenizer.get_vocab_size()

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def row(self, item: Sample) -> Row:
        ids: list[int] = []
        labels: list[int] = []
        for text, learnt in pieces(item.messages):
            part = self.ids(text)
            ids += part
            labels += part if learnt else [IGNORE] * len(part)
        return Row(ids, labels)


def rows(encoder: Encoder, seed: int | str, phase: Callable[[], Phase]) -> Iterator[Row]:
    """Yield training rows without end. `phase` returns the current phase of the training."""
    index = 0
    while True:
        row = encoder.row(sample(seed, index, phase()))
        index += 1
        if len(row.ids) <= CONTEXT:
            yield row


def copy_row(rng: Random, vocabulary: int) -> Row:
    """Return random tokens, then pieces of them in another order. It teaches copying before the real data does."""
    first = [rng.randrange(3, vocabulary) for _ in range(rng.randint(24, 56))]
    ids, labels = list(first), [IGNORE] * len(first)
    while len(ids) < 96:
        start = rng.randrange(len(first) - 4)
        piece = first[start : start + rng.randint(4, 10)]
        ids += piece
        labels += [IGNORE, *piece[1:]]
    return Row(ids[:96], labels[:96])
