"""`kill -9` at any byte loses only unwritten bytes: the next run continues from the end of each file.

The exact promise: the bytes in a part file are never requested again, and a file with its final name is complete. A
kill loses at most, for each running download, one block in the client's memory and the bytes in the kernel's socket
buffers. After any number of kills, the final bundle has the same bytes as after a single run.
"""

import hashlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_hub import FaultyHub, Sent, manifest_toml, noise

from tourkit.bundle import verify
from tourkit.fetch import prefetch
from tourkit.fetch.download import BLOCK
from tourkit.fetch.hub import Hub
from tourkit.manifest import lock, manifest
from tourkit.manifest.resolve import resolve

KILLS = 20
JOBS = 2
FILES = {
    "a-Q4_K_M.gguf": noise(32 * BLOCK + 11, 1),
    "b-Q4_K_M.gguf": noise(20 * BLOCK, 2),
    "c-Q4_K_M.gguf": noise(12 * BLOCK + 7, 3),
    "config.json": b"{}\n",
    "tokenizer.json": noise(300_000, 4),
}
CHILD = """
import sys
from pathlib import Path
from tourkit.fetch import prefetch
from tourkit.manifest import lock, manifest
from tourkit.fetch.hub import Hub
made = manifest.load(Path(sys.argv[1]))
prefetch.prefetch(made, lock.read(lock.path_of(made.path)), Path(sys.argv[2]), Hub(sys.argv[3]), jobs=int(sys.argv[4]))
"""


def shape(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def have(folder: Path) -> dict[str, int]:
    """Return the kept bytes of each file: all bytes of a complete file, else those of its part file."""
    kept = {}
    for name, content in FILES.items():
        part = folder / f"{name}.{hashlib.sha256(content).hexdigest()[:12]}.part"
        whole = (folder / name).is_file()
        kept[name] = len(content) if whole else part.stat().st_size if part.is_file() else 0
    return kept


def socket_buffers() -> int:
    """Return the most bytes that the kernel holds between server and client of one connection."""
    limits = (Path("/proc/sys/net/ipv4") / name for name in ("tcp_rmem", "tcp_wmem"))
    return sum(int(limit.read_text().split()[2]) for limit in limits)


@pytest.mark.starts
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/sys/net/ipv4/tcp_rmem").exists(), reason="bounds are those of Linux sockets")
def test_twenty_kills_change_nothing_but_the_time(tmp_path: Path) -> None:
    with FaultyHub(FILES) as server:
        server.send_buffer = 32 << 10  # so that sent bytes arrive soon
        path = tmp_path / "test-set.toml"
        path.write_text(manifest_toml(server.repo, {"tool": "tiny"}, {"tiny": ["*"]}))
        made = manifest.load(path)
        hub = Hub(server.url)
        pinned = resolve(made, hub).lock
        lock.write(lock.path_of(path), pinned)
        prefetch.prefetch(made, pinned, tmp_path / "at-once", hub)
        root = tmp_path / "killed"
        kept_before = dict.fromkeys(FILES, 0)
        chance = random.Random(20)
        targets = [chance.randrange(100_000, 5_500_000) for _ in range(KILLS)]
        assert sum(targets) < sum(map(len, FILES.values())), "no run may end before it is killed"
        kept_at_kill = []
        for target in targets:
            log = run_until(server, path, root, target)
            kept = have(root / "models/tiny/Q4_K_M")
            check_run(log, kept_before, kept)
            kept_at_kill.append(sum(kept.values()))
            kept_before = kept
        assert kept_at_kill == sorted(kept_at_kill), "a later run never holds less than an earlier one"
        assert len(set(kept_at_kill)) > 5, "resuming is what this is about"
        check_run(run_until(server, path, root, None), kept_before, have(root / "models/tiny/Q4_K_M"))
        assert shape(root) == shape(tmp_path / "at-once")
        assert verify.verify(root).ok


def run_until(server: FaultyHub, path: Path, root: Path, target: int | None) -> list[Sent]:
    """Run a real prefetch; the server kills it after `target` more sent bytes. Return the requests and the bytes."""
    server.log.clear()
    command = [sys.executable, "-c", CHILD, str(path), str(root), server.url, str(JOBS)]
    begin = server.sent_bytes
    with subprocess.Popen(command) as child:
        server.on_sent = lambda total: child.kill() if target is not None and total - begin >= target else None
        code = child.wait()
    server.settle()
    server.on_sent = lambda total: None
    assert code == (0 if target is None else -signal.SIGKILL)
    return list(server.log)


def check_run(log: list[Sent], before: dict[str, int], after: dict[str, int]) -> None:
    """Check that each incomplete file is requested once, from its end, no complete file is, and little is lost."""
    assert len({sent.path for sent in log}) == len(log)
    for sent in log:
        assert sent.start == before[sent.path]
        assert sent.start < len(FILES[sent.path])
        lost = sent.start + sent.sent - after[sent.path]
        assert 0 <= lost <= BLOCK + socket_buffers()
