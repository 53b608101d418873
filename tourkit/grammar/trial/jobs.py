"""What the trial process is asked to do, and how it ends; plain data that goes over pipes as JSON.

A job is a dictionary with its `kind`: "prepare" (`constraint`, `manner`) or "check" (`source`, `text`, `may_repair`).
An ending has a key that says how the job ended: "prepared", "verdict", "refused" (the fields of a RequestError),
"over" (a limit, or a crash: the reason), "busy" (no place for the job), "failed" (a fault of tourkit). With the key
"again" too, the same job may end otherwise another time.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tourkit.errors import RequestError, one_line
from tourkit.generation import Constraint
from tourkit.grammar.own_memory import resident
from tourkit.grammar.prepare import Preparer
from tourkit.grammar.prepared import Manner
from tourkit.grammar.trial.answers import judge

MIB = 2**20
PREPARE, CHECK = "prepare", "check"

_SMALL = (
    ("json_schema", '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 0}}}'),
    ("regex", "[a-z]+"),
    ("choice", '["a", "b"]'),
    ("grammar", 'start: "a"'),
)

_TOO_LARGE = "the grammar is too large for this stack, whose library has smaller limits: write a simpler one"

Job = dict[str, Any]
Ending = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one job.

    `seconds`: how long it may run. `patience`: seconds until it is ended if others kept it from running so long.
    `memory`: bytes of address space beyond what the process has before it. `kept`: bytes that a prepared constraint may
    keep. `quick`: seconds of processor time at normal priority; a job that needs more is a slow one. `at_once`: jobs
    that run at the same time, quick and slow ones each. `slow`: slow jobs that have not ended, running or stopped.
    """

    seconds: float = 10.0
    patience: float = 14.0
    memory: int = 512 * MIB
    kept: int = 128 * MIB
    quick: float = 0.05
    at_once: int = 2
    slow: int = 8


LIMITS = Limits()


class Jobs:
    """Does jobs, one at a time. `library_limits`: refuse what needs more than llguidance's own limits.

    A stack whose library compiles the grammar again does this under these limits. What is not `large` is within them.
    """

    def __init__(self, preparer: Preparer, limits: Limits, *, library_limits: bool = False) -> None:
        self.preparer = preparer
        self._limits = limits
        self._library_limits = library_limits
        self.kinds: dict[str, Callable[[Job], Ending]] = {PREPARE: self._prepare, CHECK: self._check}

    def warm_up(self) -> None:
        """Do a small job of each kind, so that the next job finds modules loaded and memory in its place."""
        for kind, source in _SMALL:
            self.do({"kind": PREPARE, "constraint": {"kind": kind, "source": source}, "manner": {}})
        self.do({"kind": CHECK, "source": _SMALL[0][1], "text": '{"a": "1"}', "may_repair": True})

    def do(self, job: Job) -> Ending:
        """Do a job and return how it ended. Only a limit or a crash of the process prevents this."""
        try:
            return self.kinds[job["kind"]](job)
        except RequestError as exc:
            return {"refused": {"message": str(exc), "param": exc.param, "code": exc.code, "status": exc.status}}
        except MemoryError:
            return {"over": over_memory(self._limits)}
        except Exception as exc:  # noqa: BLE001 - process boundary: the worker must get an answer
            where = traceback.extract_tb(exc.__traceback__)[-1]
            return {"failed": one_line(f"{type(exc).__name__}: {exc} ({where.name}, line {where.lineno})")}

    def _prepare(self, job: Job) -> Ending:
        before = resident()
        prepared = self.preparer.prepare(Constraint(**job["constraint"]), Manner(**job["manner"]))
        if self._library_limits and prepared.large:
            raise RequestError(_TOO_LARGE, code="grammar_limit")
        grown = max(0, resident() - before)
        if grown > self._limits.kept:
            return {
                "over": f"it takes {grown // MIB} MiB of memory; at most {self._limits.kept // MIB} MiB are allowed"
            }
        return {"prepared": prepared.to_json()}

    def _check(self, job: Job) -> Ending:
        return {"verdict": asdict(judge(job["source"], job["text"], may_repair=job["may_repair"]))}


def over_memory(limits: Limits) -> str:
    """Return the reason why a job ended that needed too much memory."""
    return f"it takes more than {limits.memory // MIB} MiB of memory"
