"""The rehearsal's stand-in for the venue's machine: no network, capped hardware, an empty home, a read-only bundle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tourkit.checks.findings import Finding, ok, warning
from tourkit.checks.venue import Venue
from tourkit.errors import LocalError
from tourkit.hardware import memory_cap
from tourkit.isolation import dead_end, namespaces, trial
from tourkit.isolation.dead_end import DeadEnd
from tourkit.isolation.guard import HOOK
from tourkit.units import counted, size_text

# What a program needs of the surroundings. Nothing else gets in: no cache, no token, no index, no setting of Python.
_KEPT = ("LANG", "LC_ALL", "LC_CTYPE", "TERM", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_REFUSED = re.compile(r"^tourkit: offline: refused a connection to (.+), asked for by (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    output: str
    errors: str

    @property
    def last_words(self) -> str:
        """The last line of stderr, without the name of the program."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return re.sub(r"^(tourkit|install): ", "", lines[-1]) if lines else f"it ended with code {self.code}"


@dataclass(slots=True)
class Desk:
    """`bundle`: where the steps see it. `folder`: a temporary folder. `conditions`: how close this is to the venue."""

    bundle: Path
    folder: Path
    venue: Venue
    network: DeadEnd | None
    environment: dict[str, str]
    conditions: tuple[Finding, ...]
    _refused: Counter[str] = field(default_factory=Counter)
    _logs: dict[Path, int] = field(default_factory=dict)  # how many bytes of each log were read

    @property
    def virtual_environment(self) -> Path:
        return self.folder / "venv"

    def tourkit(self, *arguments: str, offline: bool = False) -> list[str]:
        """Return a command of the installed tourkit. `offline`: `serve` or `run` under the hook alone.

        A namespace of its own would keep its packets from the dead end of this one, which counts them.
        """
        guard = ("--offline", "--guard", HOOK) if offline else ()
        return [str(self.virtual_environment / "bin" / "tourkit"), *arguments, *guard]

    def run(self, command: Sequence[str], **environment: str) -> Done:
        """Run a command in the empty home and wait for its end."""
        done = subprocess.run(
            command,
            cwd=self.folder / "home",
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        errors = done.stderr.decode(errors="replace")
        self._notice(errors)
        return Done(done.returncode, done.stdout.decode(errors="replace"), errors)

    def watch(self, log: Path) -> None:
        """Look for refused connections in a log that a running process writes."""
        self._logs[log] = 0

    def attempts(self) -> Counter[str]:
        """Return what tried to leave this machine since the last call: packets, and what the guard refused."""
        for log, start in self._logs.items():
            with log.open("rb") as file:
                file.seek(start)
                text, newline, _ = file.read().rpartition(b"\n")
            self._logs[log] = start + len(text) + len(newline)
            self._notice(text.decode(errors="replace"))
        found = Counter(self._refused)
        self._refused.clear()
        return found + (self.network.attempts() if self.network is not None else Counter())

    def _notice(self, errors: str) -> None:
        self._refused.update(f"{target}, asked for by {caller}" for target, caller in _REFUSED.findall(errors))


@contextmanager
def desk(bundle: Path, venue: Venue) -> Iterator[Desk]:
    """Turn this process into the venue's machine as far as the system allows it. There is no way back from namespaces.

    Raises LocalError if the temporary folder cannot be written.
    """
    if os.name == "nt":
        raise LocalError("tourkit rehearse runs install.sh, and Windows cannot: rehearse in WSL or on Linux")
    with ExitStack() as stack:
        conditions = [stack.enter_context(_memory(venue.ram)), stack.enter_context(_processors(venue.threads))]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tourkit-", ignore_cleanup_errors=True)))
        for name in ("home", "tmp", "settings", "usb"):
            (folder / name).mkdir()
        network, seen = _network(folder / "settings")
        conditions.append(seen)
        root, seen = stack.enter_context(_drive(bundle.resolve(), folder / "usb", isolated=network is not None))
        conditions.append(seen)
        yield Desk(root, folder, venue, network, _environment(folder), tuple(conditions))


def _network(folder: Path) -> tuple[DeadEnd | None, Finding]:
    what = "network"
    refusal = trial.refusal()
    if refusal:
        detail = f"{refusal}; the offline guard stands in, which sees Python code and no native code"
        return None, warning(what, detail, "rehearse on a Linux that allows user namespaces")
    end = dead_end.isolate(folder)
    detail = "a namespace with loopback and a dead end as default route, whose packets are counted"
    if not end.shows_packets:
        detail = "a namespace with loopback alone; what has no route is counted (no access to /dev/net/tun)"
    if not end.names:
        return end, warning(what, f"{detail}; look-ups of names are not seen", "make /etc/resolv.conf a file")
    return end, ok(what, detail)


@contextmanager
def _drive(bundle: Path, target: Path, *, isolated: bool) -> Iterator[tuple[Path, Finding]]:
    """Mount the bundle read-only at another path. Yields where it is to be used."""
    what = "drive"
    refusal = "" if isolated else "no namespace to mount it in"
    if isolated:
        try:
            namespaces.bind(bundle, target, read_only=True)
        except LocalError as exc:
            refusal = str(exc)
    if refusal:
        yield bundle, warning(what, f"{bundle} is used in place and can be written ({refusal})", "")
        return
    try:
        yield target, ok(what, "the bundle is mounted read-only on another path")
    finally:
        namespaces.unmount(target)


@contextmanager
def _memory(ram: int | None) -> Iterator[Finding]:
    what = "memory cap"
    if ram is None:
        yield ok(what, "none asked; --ram sets one")
        return
    with memory_cap.capped(ram) as cap:
        if cap.refusal:
            yield warning(what, f"{cap.refusal}; only the planner keeps to {size_text(ram)}", "rehearse as root")
        else:
            yield ok(what, f"{size_text(ram)} for everything, by a cgroup")


@contextmanager
def _processors(threads: int | None) -> Iterator[Finding]:
    what = "processors"
    if threads is None:
        yield ok(what, "all of this machine; --cpus limits them")
        return
    if not hasattr(os, "sched_setaffinity"):
        yield warning(what, f"only the planner keeps to {counted(threads, 'thread')}: this system has no affinity", "")
        return
    here = os.sched_getaffinity(0)
    if threads > len(here):
        yield warning(what, f"this machine has only {len(here)} of the venue's {threads}", "expect more speed there")
        return
    os.sched_setaffinity(0, sorted(here)[:threads])
    try:
        yield ok(what, f"{counted(threads, 'thread')} of {len(here)}")
    finally:
        os.sched_setaffinity(0, here)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a machine where nobody has worked yet."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # The Python of this tourkit is found too if it is not on the path, after all others.
    python = Path(getattr(sys, "_base_executable", sys.executable)).parent
    return (
        {"LANG": "C.UTF-8"}
        | kept
        | {
            "PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{python}",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "PIP_NO_INDEX": "1",
            "PYTHONPYCACHEPREFIX": str(folder / "tmp" / "pycache"),  # templates lie on the read-only drive
        }
    )
