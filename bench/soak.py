"""A soak: many streaming clients for minutes, while a worker is killed and stopped again and again.

`python bench/soak.py [--minutes 10] [--clients 200]` serves two models of weights/tiny, one for each of two roles.
Three quarters of the clients ask the role `tool`: in each minute its worker is killed once, and stopped by SIGSTOP
once. The others ask the role `brain`, whose worker is left alone. A tenth of the requests is left by its client. It
prints how the requests ended and checks:

1. every request ends exactly once: a whole answer, one error event, or one refusal (429, 503);
2. no request of `brain` ends with an error;
3. at the end all slots are free, and both roles answer;
4. the resident memory of the gateway stays within 5 % from the middle of the run, when it is warm, to the end;
5. no process is left after the server has ended.

The exit status is 1 if one of them does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from launch_server import LaunchServer, launch_server

from tourkit.launch import Launch
from tourkit.planning.plan import Placement

ROOT = Path(__file__).resolve().parents[1]
HARMED, OTHER = "tool", "brain"
MODELS = {HARMED: ("tiny-a", "F16", "tiny-f16.gguf"), OTHER: ("tiny-b", "Q8_0", "tiny-q8_0.gguf")}
SLOTS = 8  # of each worker
OTHERS_SHARE = 0.25  # of the clients
LEFT_SHARE = 0.1  # of the requests
MINUTE = 60.0  # seconds between two kills
KILL_AT, STOP_AT = 15.0, 40.0  # seconds of each minute
PATIENCE = 300.0  # seconds for an answer; one that takes longer has no end
GROWTH = 0.05  # of the gateway's resident memory
WHOLE, ERROR, LEFT, BUSY, AWAY = "whole", "error event", "left by the client", "429", "503"
ENDINGS = (WHOLE, ERROR, LEFT, BUSY, AWAY)
WORDS = "Anna Petrova paid 1200 rubles on 2025-03-14 for paper and ink in Kazan".split()

Process = tuple[int, str]  # id and start time: ids are used again


@dataclass
class Found:
    """What the run has seen. `endings`: how many requests of each role ended how. `bad`: those that ended wrongly."""

    endings: dict[str, Counter[str]] = field(default_factory=lambda: {role: Counter() for role in MODELS})
    bad: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # of the gateway: seconds, bytes
    processes: set[Process] = field(default_factory=set)
    harm: Counter[str] = field(default_factory=Counter)


def placements() -> list[Placement]:
    """Return a worker for each role. Each has one thread: more would wait for each other on a machine with few."""
    folder = ROOT / "weights" / "tiny" / "gguf"
    return [
        Placement(
            (role,), Launch(id_, "llama_cpp", str(folder / file), slots=SLOTS, context=1024, threads=1, quant=quant)
        )
        for role, (id_, quant, file) in MODELS.items()
    ]


# --- clients ----------------------------------------------------------------------------------------------------------


def request_body(role: str, chance: random.Random) -> dict[str, Any]:
    words = " ".join(chance.choices(WORDS, k=chance.choice([5, 20, 100])))
    body = {"model": role, "messages": [{"role": "user", "content": words}], "stream": True}
    return body | {"max_tokens": chance.randint(5, 60), "n": chance.choice([1, 1, 1, 2]), "temperature": 1}


async def client(url: str, role: str, seed: int, end: float, found: Found) -> None:
    """Ask until the end, one request after the other."""
    chance = random.Random(seed)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0, force_close=chance.random() < 0.5)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        while time.monotonic() < end:
            body = request_body(role, chance)
            leave_after = chance.randint(0, 20) if chance.random() < LEFT_SHARE else None
            try:
                ending = await one_request(session, url, body, leave_after)
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as exc:
                ending = f"broken: {type(exc).__name__} {exc}"
            found.endings[role][ending if ending in ENDINGS else "wrong"] += 1
            if ending not in ENDINGS:
                found.bad.append(f"{role}: {ending}")
            if ending in (BUSY, AWAY):
                await asyncio.sleep(chance.uniform(0.5, 2))


async def one_request(session: aiohttp.ClientSession, url: str, body: dict[str, Any], leave_after: int | None) -> str:
    """Return how a request ended. `leave_after`: events until the client hangs up; None if it reads to the end."""
    asked = asyncio.ensure_future(session.post(f"{url}/v1/chat/completions", json=body).__aenter__())
    if leave_after == 0:
        await asyncio.sleep(0.01)
        if not asked.done():
            asked.cancel()
            await asyncio.wait({asked})
            return LEFT
    reply = await asked
    try:
        if reply.status != 200:
            said = json.loads(await reply.read())["error"]["code"]
            return str(reply.status) if str(reply.status) in ENDINGS and said else f"status {reply.status} {said}"
        return await read_stream(reply, body["n"], leave_after)
    finally:
        reply.close() if leave_after is not None else reply.release()


async def read_stream(reply: aiohttp.ClientResponse, n: int, leave_after: int | None) -> str:
    """Read events to the end of the stream, and count its endings."""
    finished: Counter[int] = Counter()
    errors, done, events = 0, 0, 0
    try:
        async for line in reply.content:
            if not line.startswith(b"data:"):
                continue
            events += 1
            if leave_after is not None and events > leave_after:
                return LEFT
            if errors or done:
                return "an event after the end"
            if line == b"data: [DONE]\n":
                done += 1
                continue
            event = json.loads(line[5:])
            errors += "error" in event
            finished.update(choice["index"] for choice in event.get("choices", ()) if choice["finish_reason"])
    except aiohttp.ClientPayloadError:
        if not errors:  # after an error event the connection ends without the last chunk
            raise
    if errors:
        return ERROR
    once = finished == Counter(range(n))
    return WHOLE if done and once else f"{done} [DONE], finished {dict(finished)} of {n}"


# --- the server -------------------------------------------------------------------------------------------------------


async def get(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as reply:
        return await reply.text()


async def worker_pid(session: aiohttp.ClientSession, url: str, role: str) -> int | None:
    """Return the process of a role's worker if it is ready."""
    workers = json.loads(await get(session, f"{url}/health"))["workers"].values()
    [worker] = [each for each in workers if role in each["roles"]]
    return worker["pid"] if worker["state"] == "ready" else None


async def harm(url: str, end: float, found: Found) -> None:
    """Kill and stop the worker of HARMED, each once a minute."""
    start = time.monotonic()
    async with aiohttp.ClientSession() as session:
        for minute in range(int((end - start) // MINUTE) + 1):
            for at, number in ((KILL_AT, signal.SIGKILL), (STOP_AT, signal.SIGSTOP)):
                await asyncio.sleep(max(0.0, start + minute * MINUTE + at - time.monotonic()))
                if time.monotonic() >= end:
                    return
                while (pid := await worker_pid(session, url, HARMED)) is None:
                    await asyncio.sleep(0.2)
                os.kill(pid, number)
                found.harm[number.name] += 1


async def watch(pid: int, found: Found) -> None:
    """Note the memory of the gateway and every process of the server, until cancelled."""
    start = time.monotonic()
    while True:
        found.memory.append((time.monotonic() - start, resident(pid)))
        found.processes |= await asyncio.to_thread(family, pid)
        await asyncio.sleep(2)


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def family(pid: int) -> set[Process]:
    """Return a process and all that it has started."""
    parents: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        starts[int(path.parent.name)] = fields[19]
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, left = set(), [pid]
    while left:
        each = left.pop()
        left += parents.get(each, ())
        if each in starts:
            found.add((each, starts[each]))
    return found


def runs(process: Process) -> bool:
    """Whether a process is still there, and no zombie."""
    try:
        fields = Path(f"/proc/{process[0]}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == process[1] and fields[0] != "Z"


async def is_idle(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether no worker has a sequence."""
    lines = (await get(session, f"{url}/metrics")).splitlines()
    figures = [line for line in lines if line.startswith(("tourkit_sequences_running{", "tourkit_sequences_waiting{"))]
    return len(figures) == 2 * len(MODELS) and all(float(line.split()[-1]) == 0 for line in figures)


async def until_idle(url: str, seconds: float = 120.0) -> bool:
    """Wait until no worker has a sequence. Return False if that takes too long."""
    async with aiohttp.ClientSession() as session:
        for _ in range(int(seconds / 0.2)):
            if await is_idle(session, url):
                return True
            await asyncio.sleep(0.2)
    return False


async def answers(url: str, role: str) -> bool:
    async with aiohttp.ClientSession() as session:
        body = request_body(role, random.Random(0)) | {"n": 1}
        return await one_request(session, url, body, None) == WHOLE


# --- the run ----------------------------------------------------------------------------------------------------------


async def soak(served: LaunchServer, clients: int, seconds: float, found: Found) -> list[str]:
    """Run the clients. Return the promises that are broken, with what was seen."""
    async with aiohttp.ClientSession() as session:
        while None in [await worker_pid(session, served.url, role) for role in MODELS]:
            await asyncio.sleep(0.2)
    end = time.monotonic() + seconds
    others = round(clients * OTHERS_SHARE)
    roles = [OTHER] * others + [HARMED] * (clients - others)
    watching = asyncio.create_task(watch(served.process.pid, found))
    harming = asyncio.create_task(harm(served.url, end, found))
    await asyncio.gather(*(client(served.url, role, seed, end, found) for seed, role in enumerate(roles)))
    await harming
    watching.cancel()
    broken = [f"{len(found.bad)} requests did not end as they should: {found.bad[:5]}"] if found.bad else []
    failed = {name: found.endings[OTHER][name] for name in (ERROR, AWAY) if found.endings[OTHER][name]}
    broken += [f"the role {OTHER} had errors: {failed}"] if failed else []
    broken += [] if await until_idle(served.url) else ["some sequences never ended"]
    broken += [f"the role {role} does not answer" for role in MODELS if not await answers(served.url, role)]
    return broken


def trend(found: Found) -> str:
    """Return the gateway's memory in ten parts of the run, in MiB."""
    sizes = [size / 2**20 for _, size in found.memory]
    parts = [sizes[len(sizes) * i // 10 : len(sizes) * (i + 1) // 10] for i in range(10)]
    return ", ".join(f"{statistics.median(part):.1f}" for part in parts if part)


def grown(found: Found) -> tuple[float, float, float]:
    """Return the gateway's memory in the middle of the run and at its end, in MiB, and the growth."""
    last = found.memory[-1][0]
    early = [size for at, size in found.memory if 0.4 * last <= at <= 0.6 * last]
    late = [size for at, size in found.memory if at >= 0.8 * last]
    before, after = statistics.median(early) / 2**20, statistics.median(late) / 2**20
    return before, after, after / before - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    given = parser.parse_args()
    found = Found()
    with tempfile.TemporaryDirectory(prefix="tourkit-soak-") as name:
        with launch_server(*placements(), log=Path(name) / "log") as served:
            broken = asyncio.run(soak(served, given.clients, given.minutes * MINUTE, found))
        if "Traceback" in (log := (Path(name) / "log").read_text()):
            broken.append(f"a traceback in the log: {log[log.index('Traceback') :][:1500]}")
    time.sleep(1)
    if left := [process for process in found.processes if runs(process)]:
        broken.append(f"processes are left: {left}")
    before, after, growth = grown(found)
    if growth > GROWTH:
        broken.append(f"the gateway's memory has grown by {growth:.1%}")
    for role, endings in found.endings.items():
        print(f"{role}: {endings.total()} requests: {', '.join(f'{count} {name}' for name, count in endings.items())}")
    print(f"harm: {dict(found.harm)}; processes seen: {len(found.processes)}")
    print(f"gateway: {before:.1f} MiB in the middle of the run, {after:.1f} MiB at the end ({growth:+.1%})")
    print(f"gateway, ten parts of the run: {trend(found)} MiB")
    print("\n".join(f"BROKEN: {each}" for each in broken) or "every promise holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
