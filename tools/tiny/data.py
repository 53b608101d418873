"""Samples as token ids with labels: only what the assistant writes is learnt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.tiny.tasks import Phase, Sample, pieces, sample

IGNORE = -100
CONTEXT = 1024  # tokens of the longest sample; longer ones are passed over


@dataclass(frozen=True, slots=True)
class Row:
    ids: list[int]
    labels: list[int]  # IGNORE where nothing is learnt; not shifted

    @property
    def learnt(self) -> int:
        """How many positions are learnt: the first token has no position before it."""
        return sum(label != IGNORE for label in self.labels[1:])


class Encoder:
    """The tokenizer of a folder; `size` counts its tokens."""

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
    """Endless training rows of the phase that `phase` gives at the moment."""
    index = 0
    while True:
        row = encoder.row(sample(seed, index, phase()))
        index += 1
        if len(row.ids) <= CONTEXT:
            yield row


def copy_row(rng: Random, vocabulary: int) -> Row:
    """Random tokens, then pieces of them again in another order: teaches copying before the real data do."""
    first = [rng.randrange(3, vocabulary) for _ in range(rng.randint(24, 56))]
    ids, labels = list(first), [IGNORE] * len(first)
    while len(ids) < 96:
        start = rng.randrange(len(first) - 4)
        piece = first[start : start + rng.randint(4, 10)]
        ids += piece
        labels += [IGNORE, *piece[1:]]
    return Row(ids[:96], labels[:96])
