"""The vocabulary as the trial process needs it: the bytes of each token, as llguidance sees them.

Texts are tokenized greedily there, not as the model's tokenizer does it. Masks are the same: they depend on the bytes
of the tokens only. Counts of tokens differ a little; they are used for the reserve, which has room for this.
"""

from __future__ import annotations

import array
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tourkit.grammar.prepare import Preparer


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The tokens of one model. `tokens`: the bytes of each token; the text of special ones. `special`, `ends`: ids.

    `leading_space`: answers of the model begin with a space.
    """

    tokens: tuple[bytes, ...]
    special: tuple[int, ...]
    ends: tuple[int, ...]
    leading_space: bool

    @staticmethod
    def of_tokenizer(tokenizer: Any, *, leading_space: bool) -> TokenTable:
        """Read the table from llguidance's tokenizer. It takes a tenth of a second for 128k tokens."""
        count = int(tokenizer.vocab_size)
        return TokenTable(
            tuple(tokenizer.decode_bytes([token]) for token in range(count)),
            tuple(token for token in range(count) if tokenizer.is_special_token(token)),
            tuple(tokenizer.eos_tokens),
            leading_space,
        )

    def to_bytes(self) -> bytes:
        """Return the table as bytes: a line of JSON, the lengths of the tokens, their bytes."""
        about = {"special": self.special, "ends": self.ends, "leading_space": self.leading_space}
        lengths = array.array("I", map(len, self.tokens))
        return (
            json.dumps(about).encode()
            + b"\n"
            + len(lengths).to_bytes(4, "big")
            + lengths.tobytes()
            + b"".join(self.tokens)
        )

    @staticmethod
    def of_bytes(content: bytes) -> TokenTable:
        """Read what `to_bytes` of the same machine made."""
        line, _, rest = content.partition(b"\n")
        about = json.loads(line)
        lengths = array.array("I")
        at = 4 + int.from_bytes(rest[:4], "big") * lengths.itemsize
        lengths.frombytes(rest[4:at])
        tokens = []
        for length in lengths:
            tokens.append(rest[at : at + length])
            at += length
        return TokenTable(tuple(tokens), tuple(about["special"]), tuple(about["ends"]), about["leading_space"])

    def tokenizer(self) -> Any:
        """Make llguidance's tokenizer of this table. It tokenizes greedily."""
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        plain = _Plain(self)
        tokenizer = LLTokenizer(TokenizerWrapper(plain), eos_token=list(self.ends))
        plain.greedy = tokenizer.greedy_tokenize
        return tokenizer

    def preparer(self) -> Preparer:
        """Return what prepares constraints for this vocabulary. It takes up to a second."""
        tokenizer = self.tokenizer()
        special = frozenset(self.special)
        pieces = [b"" if token in special else piece for token, piece in enumerate(self.tokens)]
        return Preparer(
            tokenizer, pieces, lambda text: len(tokenizer.greedy_tokenize(text)), leading_space=self.leading_space
        )


class _Plain:
    """The attributes that llguidance reads from a tokenizer in Python."""

    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.eos_token_id = table.ends[0]
        self.tokens: Sequence[bytes] = table.tokens
        self.special_token_ids: Sequence[int] = table.special
        self.greedy: Callable[[str], list[int]] = lambda _text: []  # until there is a tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the tokens of a text that a grammar forces."""
        return self.greedy(text if isinstance(text, str) else text.decode(errors="replace"))
