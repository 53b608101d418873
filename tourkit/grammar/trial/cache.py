"""What is known of the constraints that were tried: each prepared form or refusal, the latest ones, within a size."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict

from tourkit.generation import Constraint
from tourkit.grammar.prepared import Manner
from tourkit.grammar.trial.jobs import Ending

_MOST_BYTES = 32 * 2**20
_OVERHEAD = 1000  # bytes of an entry beside its texts


def digest(constraint: Constraint, manner: Manner) -> str:
    """Return the key of a constraint in a manner."""
    about = json.dumps([constraint.kind, constraint.source, asdict(manner)])
    return hashlib.sha256(about.encode()).hexdigest()


class Known:
    """The latest endings by digest, at most `most` bytes of them."""

    def __init__(self, most: int = _MOST_BYTES) -> None:
        self._most = most
        self._endings: OrderedDict[str, tuple[Ending, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> Ending | None:
        """Return the ending of a constraint that was tried, None if it was not or is forgotten."""
        found = self._endings.get(key)
        if found is None:
            return None
        self._endings.move_to_end(key)
        return found[0]

    def put(self, key: str, ending: Ending) -> None:
        """Keep an ending; forget the oldest ones beyond the size."""
        size = len(json.dumps(ending)) + _OVERHEAD
        if size > self._most or key in self._endings:
            return
        self._endings[key] = ending, size
        self.bytes += size
        while self.bytes > self._most:
            self.bytes -= self._endings.popitem(last=False)[1][1]
