"""The prompt cache on a disk: what RAM drops comes back, the disk is never filled, and no wrong cells are read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tourkit.engine import prompt_cache
from tourkit.engine.costs import Costs
from tourkit.engine.prompt_cache import PromptCache
from tourkit.engine.run_store import RunStore, open_store

LENGTH, LONGEST = 60, 20  # tokens of a prompt and of a run; a cell has 100 bytes


class Kept:
    """A prompt cache with a store in a folder, as an engine uses it. `say` gets what it prints."""

    def __init__(self, root: Path, *, ram: int = 100, limit: int | None = None) -> None:
        self.said: list[str] = []
        store = open_store(root, "model", self.said.append)
        self.store = store
        if store is not None and limit is not None:
            store.limit = limit * 100
        self.cache = PromptCache(LONGEST, Costs(lambda: 1.0), most_bytes=ram * 100, store=store)

    def put(self, *prompts: list[int]) -> None:
        for tokens in prompts:
            self.cache.look_up(tokens)
            for run in self.cache.missing(tokens):
                self.cache.add(run, bytearray(bytes(run.tokens.tolist()) * 100))

    def get(self, tokens: list[int]) -> list[int]:
        """Return the tokens whose cells are found, as the cells say it."""
        found: list[int] = []
        for step in self.cache.look_up(tokens):
            cells = self.cache.load(step.run)
            if cells is None:
                break
            found += list(cells[: len(cells) // 100])[: step.end - step.run.start]
        return found

    def close(self) -> None:
        self.cache.close()


def prompt(number: int) -> list[int]:
    return [7] * 30 + [number] * 30


def files(root: Path) -> list[Path]:
    return sorted((root / "model").glob("*.run"))


def test_what_was_written_is_found_after_a_restart(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    first.put(prompt(1), prompt(2))
    first.close()

    again = Kept(tmp_path)

    assert [again.get(prompt(number)) for number in (1, 2, 3)] == [prompt(1), prompt(2), prompt(3)[:30]]
    assert again.cache.disk_bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert again.said == []
    again.close()


def test_prompts_that_begin_alike_share_their_files(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(prompt(1), prompt(2), prompt(3))
    kept.close()

    assert sum(path.stat().st_size for path in files(tmp_path)) < 100 * (60 + 30 + 30 + 15)


def test_what_ram_drops_comes_back_from_the_disk(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ram=80)
    kept.put(prompt(1))
    kept.close()  # every file is written

    kept = Kept(tmp_path, ram=80)
    for number in range(20, 30):
        kept.put([number] * LENGTH)

    assert kept.cache.n_bytes <= 80 * 100
    assert kept.get(prompt(1)) == prompt(1)
    kept.close()


def test_the_files_keep_within_their_limit_and_the_beginnings_stay(tmp_path: Path) -> None:
    for numbers in ((1, 2, 3), (4, 5, 6), (7, 8, 9)):
        kept = Kept(tmp_path, limit=200)
        kept.put(*map(prompt, numbers))
        kept.close()

    again = Kept(tmp_path)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 200 * 100
    assert again.get(prompt(0)) == [7] * 30
    again.close()


def test_the_number_of_files_is_limited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cache, "_MOST_FILES", 6)
    kept = Kept(tmp_path)
    kept.put(*map(prompt, range(20)))
    kept.close()

    assert len(files(tmp_path)) <= 6


def test_half_of_what_is_free_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = [40_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    kept = Kept(tmp_path)
    assert kept.store is not None
    assert kept.store.limit == 20_000

    free[0] = 20_500  # other programs have filled the disk
    kept.put(prompt(1))
    kept.close()

    assert files(tmp_path) == []


def test_a_disk_that_fails_costs_nothing_but_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RunStore, run: Any, cells: bytearray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunStore, "_write_file", fail)
    kept = Kept(tmp_path)
    kept.put(prompt(1))

    assert kept.get(prompt(1)) == prompt(1)
    kept.close()
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_file_is_dropped_with_all_that_goes_on_from_it(tmp_path: Path, damage: str) -> None:
    kept = Kept(tmp_path)
    kept.put(prompt(1))
    kept.close()
    again = Kept(tmp_path)
    middle = again.cache.look_up(prompt(1))[1].run
    path = tmp_path / "model" / f"{middle.name.hex()}.run"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bit" else content[:-100])

    assert again.get(prompt(1)) == prompt(1)[:20]
    again.put(prompt(1))
    assert again.get(prompt(1)) == prompt(1)
    again.close()

    third = Kept(tmp_path)
    assert third.get(prompt(1)) == prompt(1)
    third.close()


def test_foreign_and_wrong_files_are_left_alone_with_one_line(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(prompt(1))
    kept.close()
    folder, target = tmp_path / "model", tmp_path / "target"
    target.write_text("of another program")
    (folder / "notes.txt").write_text("mine")
    (folder / f"{'0' * 32}.run").write_bytes(files(tmp_path)[0].read_bytes())  # its name is not the one it says
    (folder / f"{'1' * 32}.run").write_bytes(b"tkitrun1")
    (folder / f"{'2' * 32}.run").symlink_to(target)
    os.mkfifo(folder / f"{'3' * 32}.run")
    (folder / f"{'4' * 32}.run").mkdir()

    again = Kept(tmp_path)

    assert again.get(prompt(1)) == prompt(1)
    assert len(again.said) == 1
    assert "6 files" in again.said[0]
    again.close()
    assert (folder / "notes.txt").read_text() == "mine"
    assert target.read_text() == "of another program"


def test_a_kill_in_the_middle_of_a_file_leaves_the_others(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(prompt(1))
    kept.close()
    cut = tmp_path / "model" / f"{'5' * 32}.run.part"
    cut.write_bytes(b"half")

    again = Kept(tmp_path)

    assert not cut.exists()
    assert again.get(prompt(1)) == prompt(1)
    assert again.said == []
    again.close()


WRITER = """
import itertools, sys
from pathlib import Path
from test_run_store import Kept, prompt
kept = Kept(Path(sys.argv[1]), ram=1 << 20)
for number in itertools.count(100):
    kept.put([number % 200] * 60 + [number // 200] * 60)
    if number == 140:
        print("begun", flush=True)
"""


@pytest.mark.starts
def test_a_process_that_is_killed_while_it_writes_leaves_a_usable_store(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for _ in range(2):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()

        again = Kept(tmp_path)
        for step in again.cache.look_up([100] * 60 + [0] * 60):
            assert again.cache.load(step.run) is not None
        again.put(prompt(1))
        assert again.get(prompt(1)) == prompt(1)
        assert again.said == []
        again.close()


def test_a_file_whose_beginning_is_gone_is_removed(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put([1] * 20 + [2] * 20)
    kept.close()
    again = Kept(tmp_path)
    first, second = (step.run.name for step in again.cache.look_up([1] * 20 + [2] * 20))
    again.close()
    (tmp_path / "model" / f"{first.hex()}.run").unlink()

    third = Kept(tmp_path)
    third.close()

    assert not (tmp_path / "model" / f"{second.hex()}.run").exists()


def test_a_second_server_does_without_the_folder_and_says_so(tmp_path: Path) -> None:
    first, second = Kept(tmp_path), Kept(tmp_path)

    assert second.store is None
    assert "another server uses" in second.said[0]
    first.close()
    third = Kept(tmp_path)
    assert third.store is not None
    third.close()


@pytest.mark.parametrize("in_the_way", ["file", "link"])
def test_a_folder_that_cannot_be_used_is_said_once(tmp_path: Path, in_the_way: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if in_the_way == "file":
        (tmp_path / "kept").write_text("not a folder")
    else:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "model").symlink_to(elsewhere)

    kept = Kept(tmp_path / "kept")

    assert kept.store is None
    assert len(kept.said) == 1
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_files_are_for_their_user_alone(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "new")
    kept.close()

    assert (tmp_path / "new" / "model").stat().st_mode & 0o077 == 0
