"""The trial process: a hostile constraint or check ends there, for the request that sent it alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from idle_engine import IdleEngine
from starlette.requests import Request as HttpRequest
from waiting import until

from tourkit.errors import QueueFull, RequestError
from tourkit.generation import Constraint, Delta, Emit, EngineInfo, Finish, Request, Submission
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.trial.cache import Known
from tourkit.grammar.trial.client import Trial
from tourkit.grammar.trial.frames import Incoming, framed, message
from tourkit.grammar.trial.jobs import Jobs, Limits
from tourkit.grammar.trial.schedule import Schedule, Task
from tourkit.grammar.trial.token_table import TokenTable
from tourkit.server.api.generation import complete
from tourkit.server.api.model import Model
from tourkit.server.api.replies import ChatReply
from tourkit.server.api.requests import Generate
from tourkit.server.http import CLIENT_LEFT

linux = pytest.mark.skipif(sys.platform != "linux", reason="the trial process forks on Linux only")
HERE = Path(__file__).parent
TABLE = TokenTable((*(bytes([byte]) for byte in range(255)), b"<end>"), (255,), (255,), False)
SHORT = Limits(seconds=1, patience=600)
LONG = Limits(seconds=600, patience=600, memory=2**28)
ORDINARY = Constraint.json_schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
MANNER = Manner()
# Python's `re` needs 2**40 steps for it. It has a look-around, so no engine with linear time can read it.
ENDLESS = json.dumps({"not": {"pattern": "^(?=a)(a+)+$"}})
ENDLESS_TEXT = json.dumps("a" * 40 + "b")


def trying(limits: Limits, use: Callable[[Trial], Awaitable[None]], *, forks: bool = True) -> None:
    """Run `use` with a trial process that knows the harmful constraints of trial_faults.py."""

    async def run() -> None:
        trial = Trial(
            lambda: TABLE, limits=limits, forks=forks, command=[sys.executable, str(HERE / "trial_faults.py")]
        )
        await trial.start()
        try:
            await use(trial)
        finally:
            await trial.close()

    asyncio.run(run())


async def come_true(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def slow_states(pid: int) -> str:
    """Return the states of the children that have the lowest priority, sorted: R runs, T is stopped."""
    return "".join(sorted(fields[0] for child in children(pid) if (fields := stat(child)) and fields[16] == "19"))


def is_gone(pid: int) -> bool:
    return stat(pid)[:1] in ([], ["Z"])


# --- without a process ---------------------------------------------------------------------------------------------


def test_a_token_table_goes_over_a_pipe_unchanged() -> None:
    assert TokenTable.of_bytes(TABLE.to_bytes()) == TABLE


def test_frames_come_out_whole_wherever_the_bytes_are_cut() -> None:
    sent = framed(b"one") + message({"two": 2}) + framed(b"")
    incoming = Incoming()

    found = [frame for byte in sent for frame in incoming.take(bytes([byte]))]

    assert found == [b"one", b'{"two":2}', b""]


def test_what_is_known_of_constraints_is_bounded_in_bytes_and_the_oldest_is_forgotten() -> None:
    known = Known(most=10_000)

    for number in range(100):
        known.get("0")
        known.put(str(number), {"over": "x" * 1000})

    assert known.bytes <= 10_000
    assert known.get("0") is not None
    assert known.get("1") is None
    assert known.get("99") is not None


@pytest.mark.parametrize(("library_limits", "ending"), [(False, "prepared"), (True, "refused")])
def test_where_the_stack_compiles_again_a_grammar_must_be_within_the_limits_of_its_library(
    library_limits: bool, ending: str
) -> None:
    class Large:
        """Prepares every constraint as one that needs the larger limits."""

        def prepare(self, constraint: Constraint, manner: Manner) -> Prepared:
            return Prepared("", large=True, reserve=0)

    jobs = Jobs(Large(), Limits(), library_limits=library_limits)  # type: ignore[arg-type]

    assert ending in jobs.do({"kind": "prepare", "constraint": asdict(ORDINARY), "manner": {}})


class FakeChild:
    """A child without a process. Its priority cannot be changed, because there is no process with this id."""

    pid = 2**22 + 1  # above the system's highest id

    def __init__(self) -> None:
        self.stopped = False
        self.used = 0.0

    def processor_seconds(self) -> float:
        return self.used

    def signal(self, number: int) -> None:
        self.stopped = number == signal.SIGSTOP


def running(schedule: Schedule, count: int, now: float) -> list[Task]:
    tasks = [Task(number, b"", now) for number in range(count)]
    for task in tasks:
        child = FakeChild()
        schedule.begin(task, child, now)  # type: ignore[arg-type]
        child.used = 0.1  # a slow one
    return tasks


@linux
def test_slow_jobs_take_turns_and_two_of_them_run() -> None:
    schedule = Schedule(LONG)
    tasks = running(schedule, 5, 0.0)

    for tick in range(1, 101):
        schedule.balance(tick / 10)
        assert sum(not task.child.stopped for task in tasks if task.child) == 2

    shares = [task.runtime(10.0) for task in tasks]
    assert max(shares) - min(shares) < 1
    assert 19 < sum(shares) < 21


@linux
def test_a_job_is_over_when_it_has_run_its_time_and_not_when_it_waited_for_others() -> None:
    schedule = Schedule(Limits(seconds=3, patience=100))
    tasks = running(schedule, 3, 0.0)

    for tick in range(1, 41):
        schedule.balance(tick / 10)

    assert schedule.overdue(4.0) == {}
    assert set(schedule.overdue(5.0).values()) <= {"over"}
    assert schedule.overdue(100.0)
    assert set(schedule.overdue(100.0)) == set(tasks)


@linux
def test_slow_jobs_beyond_the_most_are_ended_and_the_newest_of_them_first() -> None:
    schedule = Schedule(Limits(seconds=50, patience=60, slow=3))
    tasks = running(schedule, 5, 0.0)

    schedule.balance(1.0)

    assert schedule.overdue(1.0) == {tasks[3]: "busy", tasks[4]: "busy"}


def test_few_jobs_run_at_normal_priority_and_the_others_wait() -> None:
    schedule = Schedule(Limits(at_once=2))
    running(schedule, 2, 0.0)
    schedule.waiting.append(Task(9, b"", 0.0))

    assert schedule.next_to_start() is None
    schedule.remove(schedule.running[0])
    next_one = schedule.next_to_start()
    assert next_one is not None
    assert next_one.id == 9


# --- with the process ----------------------------------------------------------------------------------------------


@linux
@pytest.mark.starts
@pytest.mark.parametrize(
    ("kind", "source", "limits", "reason"),
    [
        ("crash", "a chain of rules", LONG, "SIGSEGV"),
        ("hang", "for ever", SHORT, "longer than 1 seconds"),
        ("hog", "all memory", LONG, "more than 256 MiB of memory"),
        ("keep", "200", LONG, "MiB of memory; at most 128 MiB"),
    ],
)
def test_a_constraint_that_does_harm_is_refused_with_the_reason_and_nothing_else_happens(
    kind: str, source: str, limits: Limits, reason: str
) -> None:
    async def use(trial: Trial) -> None:
        pids = trial.pids
        with pytest.raises(RequestError, match=reason) as refused:
            await trial.prepare(Constraint(kind, source), MANNER)

        assert refused.value.code == "constraint_too_complex"
        assert refused.value.status == 400
        assert (await trial.prepare(ORDINARY, MANNER)).level == "strict"
        assert trial.pids == pids

    trying(limits, use)


@linux
@pytest.mark.starts
def test_few_slow_trials_run_at_once_at_the_lowest_priority_and_ordinary_ones_end_meanwhile() -> None:
    async def use(trial: Trial) -> None:
        [pid] = trial.pids
        hanging = [asyncio.create_task(trial.prepare(Constraint("hang", str(i)), MANNER)) for i in range(5)]
        await come_true(lambda: slow_states(pid) == "RRTTT")

        assert (await trial.prepare(ORDINARY, MANNER)).level == "strict"
        assert (await trial.check(ORDINARY.source, '{"n": 1}', may_repair=True)).valid
        await come_true(lambda: slow_states(pid) == "RRTTT")
        for task in hanging:
            task.cancel()
        await come_true(lambda: slow_states(pid) == "")

    trying(LONG, use)


@linux
@pytest.mark.starts
def test_the_process_has_one_thread_because_it_forks_and_dumps_no_core() -> None:
    async def use(trial: Trial) -> None:
        [pid] = trial.pids
        about = Path(f"/proc/{pid}/status").read_text() + Path(f"/proc/{pid}/limits").read_text()

        assert re.search(r"^Threads:\t1$", about, re.MULTILINE)
        assert re.search(r"^Max core file size +0 +0 ", about, re.MULTILINE)

    trying(LONG, use)


@linux
@pytest.mark.starts
def test_with_too_many_slow_trials_the_newest_is_asked_to_come_again() -> None:
    async def use(trial: Trial) -> None:
        [pid] = trial.pids
        first = asyncio.create_task(trial.prepare(Constraint("hang", "first"), MANNER))
        await come_true(lambda: slow_states(pid) == "R")
        with pytest.raises(QueueFull, match="try again later"):
            await trial.prepare(Constraint("hang", "second"), MANNER)
        assert not first.done()

    trying(Limits(seconds=600, patience=600, slow=1), use)


@linux
@pytest.mark.starts
def test_a_trial_ends_when_every_client_that_waits_for_it_has_hung_up() -> None:
    async def use(trial: Trial) -> None:
        [pid] = trial.pids
        left = [asyncio.Event(), asyncio.Event()]
        answers = [asyncio.create_task(answer(trial, Constraint("hang", "one"), each)) for each in left]
        await come_true(lambda: slow_states(pid) == "R")

        left[0].set()
        assert (await answers[0]) == CLIENT_LEFT
        assert slow_states(pid) == "R"
        left[1].set()
        assert (await answers[1]) == CLIENT_LEFT
        await come_true(lambda: slow_states(pid) == "")

    trying(LONG, use)


@linux
@pytest.mark.starts
def test_what_is_known_is_answered_without_a_trial() -> None:
    async def use(trial: Trial) -> None:
        first = await trial.prepare(ORDINARY, MANNER)
        with pytest.raises(RequestError) as refused:
            await trial.prepare(Constraint("keep", "200"), MANNER)
        await trial.close()

        assert await trial.prepare(ORDINARY, MANNER) == first
        with pytest.raises(RequestError, match=str(refused.value)):
            await trial.prepare(Constraint("keep", "200"), MANNER)
        assert trial.pids == []  # no process was started for them

    trying(LONG, use)


@linux
@pytest.mark.starts
def test_the_process_is_started_again_when_it_ends_and_its_jobs_are_done_by_the_new_one() -> None:
    async def use(trial: Trial) -> None:
        [pid] = trial.pids
        hanging = asyncio.create_task(trial.prepare(Constraint("hang", "it"), MANNER))
        await come_true(lambda: slow_states(pid) == "R")
        os.kill(pid, signal.SIGKILL)
        await come_true(lambda: trial.pids not in ([], [pid]) and slow_states(trial.pids[0]) == "R")

        assert (await trial.prepare(ORDINARY, MANNER)).level == "strict"
        hanging.cancel()

    trying(LONG, use)


@linux
@pytest.mark.starts
def test_an_answer_whose_check_does_not_end_is_not_valid_and_the_next_check_is_done() -> None:
    async def use(trial: Trial) -> None:
        verdict = await trial.check(ENDLESS, ENDLESS_TEXT, may_repair=True)

        assert (verdict.valid, verdict.text) == (False, ENDLESS_TEXT)
        assert verdict.errors == ("the answer could not be checked: it takes longer than 1 seconds",)
        repaired = await trial.check(ORDINARY.source, '{"n": "1"}', may_repair=True)
        assert (repaired.valid, repaired.text, len(repaired.repaired)) == (True, '{"n": 1}', 1)

    trying(SHORT, use)


@linux
@pytest.mark.starts
def test_a_worker_that_is_killed_leaves_no_process_behind() -> None:
    command = [sys.executable, str(HERE / "trial_parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        until(lambda: slow_states(pid) == "R")
        processes = [pid, *children(pid)]
        worker.kill()

        until(lambda: all(map(is_gone, processes)))


@pytest.mark.starts
def test_where_a_process_cannot_fork_it_is_killed_and_replaced() -> None:
    # `quick` is time on the clock here: a short one would end processes that only wait for a busy processor.
    limits = Limits(seconds=1.5, patience=600, quick=1.5)

    async def use(trial: Trial) -> None:
        first = trial.pids
        assert (await trial.prepare(ORDINARY, MANNER)).level == "strict"
        assert sorted(trial.pids) == sorted(first)  # both are warm
        with pytest.raises(RequestError, match="takes longer"):
            await trial.prepare(Constraint("hang", "it"), MANNER)
        assert (await trial.prepare(Constraint("regex", "[ab]"), MANNER)).level == "strict"
        await come_true(lambda: len(trial.pids) == 2)
        assert len({*first, *trial.pids}) == 3

    trying(limits, use, forks=False)


# --- answers -------------------------------------------------------------------------------------------------------


class Echo(IdleEngine):
    """An engine that answers `{"n": 1}`, and keeps what was prepared for it."""

    info = EngineInfo("echo", 100, 1, 256)
    recompiles = False

    def __init__(self) -> None:
        self.prepared: list[Prepared | None] = []

    def with_calls(self, request: Request) -> Request:
        return request

    def manner(self, request: Request) -> Manner:
        return MANNER

    def token_table(self) -> TokenTable:
        return TABLE

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        self.prepared.append(prepared)
        emit(Delta(0, '{"n": 1}', 5, Finish.STOP))
        return Submission(1, 7)


async def answer(trial: Trial, constraint: Constraint, left: asyncio.Event, engine: Echo | None = None) -> int:
    """Return the status of the answer to a client that hangs up when `left` is set."""

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    asked = Generate(model="tool", request=Request(prompt="Q", constraint=constraint), stream=False)
    http = HttpRequest({"type": "http", "headers": []}, receive=receive)
    response = await complete(Model(engine or Echo(), trial), asked, ChatReply("id", 0, "tool"), http)
    return response.status_code


@linux
@pytest.mark.starts
def test_an_engine_gets_what_the_trial_has_prepared_and_answers_are_checked_there() -> None:
    async def use(trial: Trial) -> None:
        engine = Echo()

        assert await answer(trial, ORDINARY, asyncio.Event(), engine) == 200
        assert engine.prepared == [await trial.prepare(ORDINARY, MANNER)]

    trying(LONG, use)
