"""verify names exactly what is wrong with a bundle, and never changes it."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundle import FILES, make_bundle

from tourkit.bundle.build import build_index
from tourkit.bundle.index import Index, render_index, write_index
from tourkit.bundle.verify import Report, verify
from tourkit.errors import NotSo, UsageError

BIG = "models/tiny/Q8_0/tiny-Q8_0.gguf"
EVERY = sorted([*FILES, "bundle.json", "SHA256SUMS"])
HAS_BYTES = [path for path in EVERY if FILES.get(path, b"x")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def found(report: Report) -> dict[str, tuple[str, ...]]:
    lists = {"missing": report.missing, "damaged": report.damaged, "extra": report.extra}
    return {kind: paths for kind, paths in lists.items() if paths}


def test_a_whole_bundle_is_ok_and_everything_was_read(root: Path) -> None:
    steps: list[int] = []
    report = verify(root, progress=steps.append)

    assert report.ok
    assert report.problems == ()
    assert report.checked_files == len(FILES) + 2
    own = sum((root / name).stat().st_size for name in ("bundle.json", "SHA256SUMS"))
    assert report.checked_bytes == sum(map(len, FILES.values())) + own
    assert sum(steps) == sum(map(len, FILES.values()))


def test_an_empty_bundle_is_ok_and_still_has_no_room_for_others(tmp_path: Path) -> None:
    write_index(tmp_path, Index("x", "", "", {}, (), (), ()))
    assert verify(tmp_path).ok

    (tmp_path / "guest").write_bytes(b"")
    assert found(verify(tmp_path)) == {"extra": ("guest",)}


@pytest.mark.parametrize("path", HAS_BYTES)
@pytest.mark.parametrize("position", [0, -1], ids=["first", "last"])
def test_a_flipped_bit_is_named_by_verify(root: Path, path: str, position: int) -> None:
    """This includes bundle.json and SHA256SUMS: only the damaged one of them is named."""
    flip(root / path, position)

    assert found(verify(root)) == {"damaged": (path,)}


@pytest.mark.parametrize("name", ["bundle.json", "SHA256SUMS"])
@pytest.mark.parametrize("quick", [True, False])
def test_a_flipped_bit_anywhere_in_the_lists_is_told_apart(root: Path, name: str, quick: bool) -> None:
    good = (root / name).read_bytes()
    for position in range(0, len(good), 61):
        flip(root / name, position)
        assert found(verify(root, quick=quick)) == {"damaged": (name,)}, position
        (root / name).write_bytes(good)


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("quick", [True, False])
def test_a_missing_file_is_named(root: Path, path: str, quick: bool) -> None:
    (root / path).unlink()

    assert found(verify(root, quick=quick)) == {"missing": (path,)}


@pytest.mark.parametrize("path", HAS_BYTES)
@pytest.mark.parametrize("quick", [True, False])
def test_a_cut_off_file_is_named_even_by_quick(root: Path, path: str, quick: bool) -> None:
    with (root / path).open("r+b") as file:
        file.truncate((root / path).stat().st_size - 1)

    assert found(verify(root, quick=quick)) == {"damaged": (path,)}


def test_quick_does_not_read_the_weights(root: Path) -> None:
    flip(root / BIG)

    report = verify(root, quick=True)
    assert report.ok
    own = sum((root / name).stat().st_size for name in ("bundle.json", "SHA256SUMS"))
    assert report.checked_bytes == own


@pytest.mark.parametrize(
    "path",
    [
        "guest",
        "models/tiny/Q8_0/guest.gguf",
        "deep/in/side/guest",
        ".hidden",
        BIG + ".part",
        ".prefetch.lock",
        "START_HERE.md.bad",
        ".DS_Store",
        "models/._README.md",
        "System Volume Information/IndexerVolumeGuid",
        "Thumbs.db",
        "models/bundle.json",
        "models/bundle.sig",
    ],
)
@pytest.mark.parametrize("quick", [True, False])
def test_an_extra_file_is_named_whatever_it_is_called(root: Path, path: str, quick: bool) -> None:
    """No name hides a file: leftovers of tourkit and files of the operating system are named too."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"")

    report = verify(root, quick=quick)
    assert found(report) == {"extra": (path,)}
    assert report.problems[0].detail


def test_what_an_extra_file_probably_is_is_said(root: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "x.part", "x.bad", "x"):
        (root / name).write_bytes(b"")

    details = {problem.path: problem.detail for problem in verify(root, quick=True).problems}
    assert "macOS" in details[".DS_Store"]
    assert "Windows" in details["Thumbs.db"]
    assert "prefetch" in details["x.part"]
    assert "wrong" in details["x.bad"]
    assert details["x"] == "not in the index"


def test_a_signature_belongs_to_the_bundle(root: Path) -> None:
    (root / "bundle.sig").write_bytes(b"{}")

    assert verify(root).ok


def test_empty_folders_are_no_files(root: Path) -> None:
    (root / "lost+found" / "a").mkdir(parents=True)

    assert verify(root).ok


def test_a_link_in_place_of_a_file_is_damage_even_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """A bundle must hold its bytes itself, because it may be copied to a drive without links."""
    shutil.move(root / BIG, tmp_path / "elsewhere")
    (root / BIG).symlink_to(tmp_path / "elsewhere")

    report = verify(root)
    assert found(report) == {"damaged": (BIG,)}
    assert "symbolic link" in report.problems[0].detail


@pytest.mark.starts
def test_links_and_special_files_are_extra_and_never_followed(root: Path, tmp_path: Path) -> None:
    (root / "loop").symlink_to(root)
    (root / "bundle.sig").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        before = Path.cwd()
        os.chdir(root)  # the path of a socket must be short
        try:
            sock.bind("sock")
        finally:
            os.chdir(before)

        assert found(verify(root)) == {"extra": ("bundle.sig", "loop", "pipe", "sock")}


def test_a_linked_folder_holds_none_of_the_bundle(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "templates", tmp_path / "templates")
    (root / "templates").symlink_to(tmp_path / "templates")

    assert found(verify(root)) == {"missing": ("templates/one/one.py",), "extra": ("templates",)}


def test_a_folder_in_place_of_a_file_is_named(root: Path) -> None:
    (root / "START_HERE.md").unlink()
    (root / "START_HERE.md").mkdir()

    assert found(verify(root)) == {"missing": ("START_HERE.md",)}


def test_all_problems_are_told_at_once(root: Path) -> None:
    flip(root / BIG)
    (root / "START_HERE.md").unlink()
    (root / "guest").write_bytes(b"x")

    report = verify(root)
    assert found(report) == {"damaged": (BIG,), "missing": ("START_HERE.md",), "extra": ("guest",)}
    assert not report.ok
    digest = hashlib.sha256((root / BIG).read_bytes()).hexdigest()
    assert digest[:12] in next(problem.detail for problem in report.problems if problem.kind == "damaged")


def test_a_file_renamed_to_another_case_is_named_twice(root: Path) -> None:
    (root / "START_HERE.md").rename(root / "start_here.md")

    assert found(verify(root)) == {"missing": ("START_HERE.md",), "extra": ("start_here.md",)}


def test_a_name_that_is_not_utf_8_is_extra_and_printable(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.gguf")).write_bytes(b"")

    (path,) = verify(root).extra
    path.encode()


# ---- damaged lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", ["flipped", "gone", "junk"])
def test_without_the_index_the_files_are_checked_by_sha256sums(root: Path, hurt: str) -> None:
    if hurt == "flipped":
        flip(root / "bundle.json", 200)
    elif hurt == "gone":
        (root / "bundle.json").unlink()
    else:
        (root / "bundle.json").write_bytes(b"\x00" * 1000)
    flip(root / BIG)
    (root / "START_HERE.md").unlink()
    (root / "guest").write_bytes(b"")

    report = verify(root)
    own = {"missing": ("START_HERE.md", "bundle.json"), "damaged": (BIG,), "extra": ("guest",)}
    if hurt != "gone":
        own |= {"missing": ("START_HERE.md",), "damaged": ("bundle.json", BIG)}
    assert found(report) == own


def test_when_both_lists_are_unreadable_both_are_named(root: Path) -> None:
    flip(root / "bundle.json")
    (root / "SHA256SUMS").write_bytes(b"\xff\x00 junk\n")

    assert found(verify(root)) == {"damaged": ("SHA256SUMS", "bundle.json")}


def test_one_list_gone_and_one_unreadable_are_both_named(root: Path) -> None:
    flip(root / "bundle.json")
    (root / "SHA256SUMS").unlink()

    assert found(verify(root)) == {"damaged": ("bundle.json",), "missing": ("SHA256SUMS",)}


def test_a_bad_line_of_the_list_in_use_is_named_and_the_others_still_serve(root: Path) -> None:
    (root / "bundle.json").unlink()
    flip(root / "START_HERE.md", 0)
    text = (root / "SHA256SUMS").read_text(encoding="utf-8")
    (root / "SHA256SUMS").write_text(text + f"{'0' * 64}  ../../etc/passwd\n", encoding="utf-8")

    assert found(verify(root)) == {"missing": ("bundle.json",), "damaged": ("SHA256SUMS", "START_HERE.md")}


def test_a_list_of_another_bundle_is_damage(root: Path, tmp_path: Path) -> None:
    """Each list is valid, but they are from different bundles."""
    (tmp_path / "other").mkdir()
    write_index(tmp_path / "other", Index("x", "", "", {}, (), (), ()))
    shutil.copy(tmp_path / "other" / "SHA256SUMS", root)

    assert found(verify(root)) == {"damaged": ("SHA256SUMS",)}


def test_a_folder_that_is_no_bundle_is_not_so(tmp_path: Path) -> None:
    with pytest.raises(NotSo, match="tourkit prefetch"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        verify(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="no folder"):
        verify(tmp_path / "file")


def test_an_index_that_points_outside_is_refused_before_anything_is_read(root: Path) -> None:
    index = build_index(root, "x", {}, [], [])
    data = render_index(index).replace(b'"START_HERE.md"', b'"../START_HERE"')
    import orjson

    raw = orjson.loads(data)
    del raw["digest"]
    option = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    raw["digest"] = hashlib.sha256(orjson.dumps(raw, option=option)).hexdigest()
    (root / "bundle.json").write_bytes(orjson.dumps(raw, option=option))

    with pytest.raises(UsageError, match="leaves its folder"):
        verify(root)


# ---- permissions, threads, interrupts ----------------------------------------------------------------


def run_plainly(root: Path) -> str:
    """Return the problems that verify finds in a process without root rights, one line each."""
    code = """
import sys
from pathlib import Path
from tourkit.bundle.verify import verify
for problem in verify(Path(sys.argv[1])).problems:
    print(problem.kind, problem.path, problem.detail, sep="|")
"""
    command = [sys.executable, "-c", code, str(root)]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv (util-linux) is missing, and root may read everything")
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.starts
def test_a_file_that_cannot_be_read_is_damaged_with_the_reason(root: Path) -> None:
    (root / BIG).chmod(0)

    lines = run_plainly(root).splitlines()
    assert lines == [f"damaged|{BIG}|cannot be read: Permission denied"]


@pytest.mark.starts
def test_a_folder_that_cannot_be_read_damages_the_files_in_it(root: Path) -> None:
    (root / "models" / "old").chmod(0)
    (root / "guests").mkdir(mode=0)

    lines = run_plainly(root).splitlines()
    (root / "models" / "old").chmod(0o755)
    assert [line.split("|")[:2] for line in lines] == [
        ["damaged", "models/old/BF16/empty.txt"],
        ["damaged", "models/old/BF16/model.safetensors"],
        ["extra", "guests"],
    ]
    assert all("Permission denied" in line for line in lines)


@pytest.mark.starts
def test_a_read_only_bundle_is_verified_and_left_as_it_was(root: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]}
    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    assert run_plainly(root) == ""
    assert {path: path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]} == before
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)


@pytest.mark.parametrize("jobs", [1, 2, 16])
def test_the_number_of_jobs_changes_nothing(root: Path, jobs: int) -> None:
    flip(root / BIG)

    assert verify(root, jobs=jobs) == verify(root)


def test_an_error_in_progress_ends_the_threads_and_comes_out(root: Path) -> None:
    """Ctrl-C arrives like this: the threads must stop, not hash gigabytes more."""

    def progress(_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        verify(root, progress=progress, jobs=2)
