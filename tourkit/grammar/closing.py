"""Chooses the tokens that lead to the end of a document fastest, for when the tokens run out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from tourkit.grammar.prepared import Prepared

_FAR = 1000
_LOOK_AHEAD = 0.03  # seconds of CPU time for the masks of one choice; then the best known token is taken


@dataclass(frozen=True, slots=True)
class ClosingRanks:
    """A rank for each token of a vocabulary: the lower, the faster it leads to the end of a JSON document.

    There are two orders, `outside` and `inside` a string: a bracket ends an array only outside a string. `letters` are
    the tokens of one printable ASCII character, `ends` those that end a string or the whole text.
    """

    outside: np.ndarray
    inside: np.ndarray
    pieces: tuple[bytes, ...]
    letters: np.ndarray
    ends: np.ndarray
    eog: np.ndarray

    @staticmethod
    def of(pieces: list[bytes], eog: frozenset[int]) -> ClosingRanks:
        import numpy as np

        outside = np.array([_rank(piece, b"]}", b'"') for piece in pieces], dtype=np.int16)
        inside = np.array([_rank(piece, b'"', b"") for piece in pieces], dtype=np.int16)
        for ranks in (outside, inside):
            ranks[sorted(eog)] = 0
        letters = [token for token, piece in enumerate(pieces) if len(piece) == 1 and 32 <= piece[0] < 127]
        return ClosingRanks(
            outside,
            inside,
            tuple(pieces),
            np.array([token for token in letters if pieces[token] != b"\\"], dtype=np.int64),
            np.array([*sorted(eog), *(token for token in letters if pieces[token] == b'"')], dtype=np.int64),
            np.array(sorted(eog), dtype=np.int64),
        )

    def letter(self, character: str) -> int:
        """Return the token of one printable ASCII character, -1 if there is none."""
        found = [token for token in self.letters.tolist() if self.pieces[token] == character.encode()]
        return found[0] if found else -1


def _rank(piece: bytes, first: bytes, second: bytes) -> int:
    """Return the rank of a token. The best have only `first`, then `second` too, then separators, then short values."""
    if not piece:
        return _FAR
    if piece.isspace():
        return 900
    if not piece.strip(first):
        return 1
    if not piece.strip(first + second):
        return 2
    if not piece.strip(b'"]},: '):
        return 3
    if piece.strip() == b"null":
        return 4
    if piece.isdigit() and piece[:1] != b"0":
        return 5 + len(piece)
    if piece[:1] in b"{[\\":
        return 500
    return 50 + min(len(piece), 100)


class Closing:
    """Closes out one text. It follows the written tokens to know whether the text is inside a JSON string."""

    def __init__(self, ranks: ClosingRanks, prepared: Prepared) -> None:
        self._ranks = ranks
        self._samples = prepared.samples
        self._after = prepared.after
        self._text_ends = [list(tokens) for tokens in prepared.ends]
        self._ends = ranks.ends if prepared.json_text else ranks.eog
        self._plan: list[int] = []  # tokens that are known to end the string, written one by one
        self._json_text = prepared.json_text
        self._in_string = not prepared.json_text
        self._escaped = False
        self._written: list[int] = []  # tokens not followed yet
        self._seen: set[int] = set()  # hashes of the allowed tokens in each state of the current string

    def follow(self, tokens: list[int]) -> None:
        self._written += tokens

    def choose(self, matcher: Any, allowed: np.ndarray, mask: Callable[[Any], np.ndarray], logits: np.ndarray) -> int:
        """Return the allowed token that leads to the end fastest; of equal ones, the likeliest.

        `allowed` must have at least one token. `mask` returns the tokens that a matcher allows.
        """
        import numpy as np

        self._catch_up()
        if self._plan and allowed[self._plan[0]]:
            return self._plan.pop(0)
        if self._ended_by_text(matcher):
            return self._plan.pop(0)
        ranks = self._ranks.inside if self._in_string else self._ranks.outside
        candidates = np.flatnonzero(allowed)
        best = candidates[ranks[candidates] == ranks[candidates].min()]
        if self._in_string and not allowed[self._ends].any():
            letters = self._ranks.letters[allowed[self._ranks.letters]]
            if letters.size > 1:
                self._seen.add(hash(allowed.tobytes()))
                deadline = time.thread_time() + _LOOK_AHEAD
                best, ended = self._way_out(matcher, letters, mask, deadline)
                if not ended and self._ended_by_sample(matcher, mask, deadline + _LOOK_AHEAD):
                    return self._plan.pop(0)
        return int(best[np.argmax(logits[best])])

    def _ended_by_text(self, matcher: Any) -> bool:
        """Plan to write a text that ends something here. Return whether there is one."""
        for tokens in self._text_ends:
            if matcher.validate_tokens(tokens) < len(tokens):
                continue
            ahead = matcher.deep_copy()
            ahead.consume_tokens(tokens)
            if ahead.validate_tokens(tokens) < len(tokens):  # else it is a part of a string
                self._plan = tokens.copy()
                return True
        return False

    def _ended_by_sample(self, matcher: Any, mask: Callable[[Any], np.ndarray], deadline: float) -> bool:
        """Plan to write a sample of the patterns, or the end of one, if that ends this string. Return if it does.

        Try no more samples after `deadline`, seconds of CPU time.
        """
        for sample in self._samples:
            tokens = [self._ranks.letter(character) for character in sample]
            if any(token < 0 for token in tokens):
                continue
            for start in range(len(tokens)):
                if time.thread_time() > deadline:
                    return False
                rest = tokens[start:]
                if matcher.validate_tokens(rest) < len(rest):
                    continue
                ahead = matcher.deep_copy()
                ahead.consume_tokens(rest)
                if mask(ahead)[self._ends].any():
                    self._plan = rest
                    return True
        return False

    def _way_out(
        self, matcher: Any, letters: np.ndarray, mask: Callable[[Any], np.ndarray], deadline: float
    ) -> tuple[np.ndarray, bool]:
        """Return the letters after which the string may end, and True.

        If there are none, return the letters that lead to a new state, or else all letters, and False. In a pattern
        such as an e-mail address most letters lead back to the same state: only "@", then a dot, leads further. Try no
        more letters after `deadline`, seconds of CPU time.
        """
        import numpy as np

        ends, further = [], []
        for letter in letters.tolist():
            if time.thread_time() > deadline:
                break
            ahead = matcher.deep_copy()
            ahead.consume_token(letter)
            allowed = mask(ahead)
            if allowed[self._ends].any():
                ends.append(letter)
            elif hash(allowed.tobytes()) not in self._seen:
                further.append(letter)
        return np.array(ends or further or letters.tolist(), dtype=np.int64), bool(ends)

    def _catch_up(self) -> None:
        """Follow the tokens written since the last call."""
        if not self._json_text:
            return
        for byte in self._new_bytes():
            if self._escaped:
                self._escaped = False
            elif self._in_string and byte == 0x5C:
                self._escaped = True
            elif byte == 0x22:
                self._in_string = not self._in_string
                self._seen.clear()
        self._written.clear()

    def _new_bytes(self) -> bytes:
        """Return the bytes of the tokens written since the last call that belong to the JSON."""
        tokens, after = self._written, self._after
        if isinstance(after, int):
            tokens = tokens[tokens.index(after) + 1 :] if after in tokens else tokens
        written = b"".join(self._ranks.pieces[token] for token in tokens)
        if isinstance(after, str) and after:
            written = written.partition(after.encode())[2]
        self._after = ""
        return written
