"""`tourkit wheels` and `prefetch --wheels` against a package index on loopback: right bytes, one list, one lock."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_bundle
from faulty_hub import Fault, FaultyHub, manifest_toml, noise
from wheel_index import WheelIndex, basic, make_wheel, only_index

from tourkit.bundle import verify
from tourkit.bundle.index import read_index, write_index
from tourkit.cli import main
from tourkit.fetch.download import BLOCK
from tourkit.hardware.machine import Hardware
from tourkit.hardware.machine_file import machine_json

pytestmark = pytest.mark.starts

LINUX, WINDOWS = "cp312-manylinux_2_31_x86_64", "cp312-win_amd64"
BIG = "big-1.0-cp312-cp312-manylinux_2_31_x86_64.whl"
LLAMA = "llama_cpp_python-0.3.99-py3-none-any.whl"
WHEELS = dict(
    [
        make_wheel("openai", "3.1", requires=["small>=1"]),
        make_wheel("pip", "30.0"),
        make_wheel("small", "1.2", requires=["colorama; sys_platform == 'win32'"]),
        make_wheel("small", "2.0", requires=["absent"], tag="cp313-cp313-win_amd64"),
        make_wheel("colorama", "0.4"),
        make_wheel("big", tag="cp312-cp312-manylinux_2_31_x86_64", payload=2 * BLOCK),
        make_wheel("big", tag="cp312-cp312-win_amd64"),
        make_wheel("big"),
    ]
)
# What every command gets by --wheel here, in place of the wheel of this checkout and a build of llama.cpp.
OURS = [
    make_wheel("tourkit", "9.0", requires=["big", "llama-cpp-python; extra == 'llama'"], extras=["llama"]),
    make_wheel("llama-cpp-python", "0.3.99"),
]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WheelIndex]:
    """A package index that pip's variables name, and no other setting of the developer's."""
    with only_index(WHEELS, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    small_bundle.make_bundle(root)
    shutil.rmtree(root / "models")  # no real weights: nothing asks llama.cpp about them
    index = read_index(root)
    kept = tuple(file for file in index.files if not file.path.startswith("models/"))
    write_index(root, replace(index, files=kept, variants=(), models=(), roles={}))
    return root


@pytest.fixture
def ours(tmp_path: Path) -> list[str]:
    """The options that give tourkit's wheel and llama.cpp's."""
    return [option for name, content in OURS for option in ("--wheel", written(tmp_path / "ours", name, content))]


def written(folder: Path, name: str, content: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listed(bundle: Path, target: str = LINUX) -> dict[str, str]:
    """The lines of a list: the hash of each `name==version`."""
    lines = (bundle / "wheels" / f"{target}-cpu.txt").read_text().splitlines()
    assert lines == sorted(lines)
    return dict(line.split(" --hash=sha256:") for line in lines)


def refused(capsys: pytest.CaptureFixture[str], code: int, ended: int, *words: str) -> None:
    """The command ended with this code and one line that has these words."""
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended == code, line
    assert line.startswith("tourkit: ")
    for each in words:
        assert each in line


# ---- what a bundle gets ------------------------------------------------------------------------------


def test_wheels_lie_once_and_each_target_has_a_hashed_list(index: WheelIndex, bundle: Path, ours: list[str]) -> None:
    assert main(["wheels", LINUX, WINDOWS, "--bundle", str(bundle), *ours]) == 0

    pool = {path.name: path.read_bytes() for path in (bundle / "wheels" / "files").iterdir()}
    common = {"openai-3.1-py3-none-any.whl", "pip-30.0-py3-none-any.whl", "small-1.2-py3-none-any.whl", LLAMA}
    own = {BIG, "big-1.0-cp312-cp312-win_amd64.whl", "colorama-0.4-py3-none-any.whl", OURS[0][0]}
    assert pool.keys() == common | own
    assert all(pool[name] == content for name, content in (WHEELS | dict(OURS)).items() if name in pool)
    assert listed(bundle) == {
        "big==1.0": sha256(WHEELS[BIG]),
        "llama-cpp-python==0.3.99": sha256(OURS[1][1]),
        "openai==3.1": sha256(WHEELS["openai-3.1-py3-none-any.whl"]),
        "pip==30.0": sha256(WHEELS["pip-30.0-py3-none-any.whl"]),
        "small==1.2": sha256(WHEELS["small-1.2-py3-none-any.whl"]),
        "tourkit==9.0": sha256(OURS[0][1]),
    }
    assert listed(bundle, WINDOWS).keys() - listed(bundle).keys() == {"colorama==0.4"}
    assert verify.verify(bundle).ok
    assert {f"wheels/pylock.{LINUX}-cpu.toml", f"wheels/{LINUX}-cpu.txt"} <= {f.path for f in read_index(bundle).files}


def test_pip_installs_the_list_without_an_index(index: WheelIndex, bundle: Path, ours: list[str]) -> None:
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}-manylinux_2_31_x86_64"
    assert main(["wheels", here, "--bundle", str(bundle), *ours]) == 0

    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(bundle / "wheels" / "files")]
    more = ["--target", str(bundle.parent / "site"), "--require-hashes", "-r", f"{bundle}/wheels/{here}-cpu.txt"]
    subprocess.run([*pip, *more, "--quiet", "--disable-pip-version-check"], check=True)

    assert (bundle.parent / "site" / "tourkit_stub.py").is_file()


def test_next_week_gives_the_same_wheels(index: WheelIndex, bundle: Path, ours: list[str], capsys) -> None:
    command = ["wheels", LINUX, "--bundle", str(bundle), *ours]
    assert main(command) == 0
    before = listed(bundle)
    index.files |= dict([make_wheel("openai", "4.0")])
    index.log.clear()

    assert main(command) == 0

    assert listed(bundle) == before
    assert index.log == [], "what is whole is not fetched again"
    assert f"from the lock pylock.{LINUX}-cpu.toml" in capsys.readouterr().err


def test_a_lock_that_was_made_for_something_else_is_not_used(index: WheelIndex, bundle: Path, tmp_path: Path) -> None:
    old = make_wheel("tourkit", "9.0", requires=["big"])
    llama = written(tmp_path / "ours", *OURS[1])
    given = ["--wheel", written(tmp_path / "old", *old), "--wheel", llama]
    assert main(["wheels", LINUX, "--bundle", str(bundle), *given]) == 0
    index.files |= dict([make_wheel("extra", "5.0")])
    new = make_wheel("tourkit", "9.0", requires=["big", "extra"])

    given[1] = written(tmp_path / "new", *new)
    assert main(["wheels", LINUX, "--bundle", str(bundle), *given]) == 0

    assert "extra==5.0" in listed(bundle)


def test_other_lists_take_the_new_hash_of_a_wheel_that_was_replaced(
    index: WheelIndex, bundle: Path, ours: list[str], tmp_path: Path
) -> None:
    assert main(["wheels", WINDOWS, "--bundle", str(bundle), *ours]) == 0
    name, content = make_wheel("tourkit", "9.0", requires=["big", "llama-cpp-python; extra == 'llama'"], payload=50)

    given = ["--wheel", written(tmp_path / "new", name, content), *ours[2:]]
    assert main(["wheels", LINUX, "--bundle", str(bundle), *given]) == 0

    assert listed(bundle, WINDOWS)["tourkit==9.0"] == listed(bundle)["tourkit==9.0"] == sha256(content)
    assert verify.verify(bundle).ok


def test_dry_run_prints_packages_and_bytes_and_writes_nothing(
    index: WheelIndex, bundle: Path, ours: list[str], capsys
) -> None:
    before = sorted(bundle.rglob("*"))

    assert main(["wheels", LINUX, WINDOWS, "--bundle", str(bundle), "--dry-run", *ours]) == 0

    out = capsys.readouterr().out
    assert f"2.7 MiB  {BIG}" in out
    assert f"{LINUX}:cpu: 2.7 MiB in 6 packages" in out
    assert "in 8 wheels" in out, "a wheel of two targets counts once"
    assert sorted(bundle.rglob("*")) == before
    assert main(["wheels", LINUX, "--bundle", str(bundle), "--dry-run", "--json", *ours]) == 0
    (row,) = json.loads(capsys.readouterr().out)["targets"]
    assert row["total_bytes"] == sum(package["size"] for package in row["packages"])
    assert index.log == []


def test_a_machine_file_names_the_target(index: WheelIndex, bundle: Path, ours: list[str], tmp_path: Path) -> None:
    venue = Hardware(8, 1 << 35, glibc="2.31", system="linux", arch="x86_64", python="3.12")
    (tmp_path / "venue.json").write_text(json.dumps({"machine": machine_json(venue)}))

    given = ["--machine", str(tmp_path / "venue.json"), *ours]
    assert main(["wheels", "--bundle", str(bundle), *given]) == 0

    assert "big==1.0" in listed(bundle)


def test_a_system_without_a_llama_wheel_is_resolved_without_it_and_says_so(
    index: WheelIndex, bundle: Path, ours: list[str], capsys
) -> None:
    assert main(["wheels", WINDOWS, "--bundle", str(bundle), *ours[:2]]) == 0

    assert "llama-cpp-python==0.3.99" not in listed(bundle, WINDOWS)
    lines = [line for line in capsys.readouterr().err.splitlines() if "llama.cpp" in line]
    assert len(lines) == 1
    assert f"{WINDOWS}:cpu: without llama.cpp" in lines[0]


def test_an_extra_index_can_have_the_llama_wheel(index: WheelIndex, bundle: Path, ours: list[str]) -> None:
    with WheelIndex(dict([OURS[1]])) as upstream:
        extra = ["--extra-index", upstream.simple]
        assert main(["wheels", LINUX, "--bundle", str(bundle), *ours[:2], *extra]) == 0

    assert listed(bundle)["llama-cpp-python==0.3.99"] == sha256(OURS[1][1])


def test_a_wheel_of_an_extra_index_that_cannot_run_is_refused_with_the_reason(
    index: WheelIndex, bundle: Path, ours: list[str], capsys
) -> None:
    """Upstream's wheels for CUDA promise no glibc: their tag is linux_x86_64."""
    name, content = make_wheel(
        "llama-cpp-python", "0.3.99", tag="py3-none-linux_x86_64", library=b"\x7fELF and no more"
    )
    with WheelIndex({name: content}) as upstream:
        extra = ["--extra-index", upstream.simple]
        ended = main(["wheels", LINUX, "--bundle", str(bundle), *ours[:2], *extra])

    refused(capsys, 1, ended, LINUX, name, "cannot be read as a wheel")
    assert not (bundle / "wheels" / "files" / name).exists()
    assert not (bundle / "wheels" / f"{LINUX}-cpu.txt").exists()


# ---- the index ---------------------------------------------------------------------------------------


def test_an_older_index_without_sizes_is_asked_for_them(index: WheelIndex, bundle: Path, ours: list[str]) -> None:
    index.states_sizes = False

    assert main(["wheels", LINUX, "--bundle", str(bundle), *ours]) == 0

    assert verify.verify(bundle).ok


def test_a_password_goes_to_the_index_and_into_no_file(
    index: WheelIndex, bundle: Path, ours: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.password = ("me", "s3cr/t")
    with WheelIndex(WHEELS) as storage:
        index.storage = storage
        monkeypatch.setenv("PIP_INDEX_URL", index.simple.replace("http://", "http://me:s3cr%2Ft@"))
        assert main(["wheels", LINUX, "--bundle", str(bundle), *ours]) == 0

        assert basic("me", "s3cr/t") in index.passwords
        assert set(storage.passwords) == {None}
    assert not [path for path in bundle.rglob("*") if path.is_file() and b"s3cr" in path.read_bytes()]


def test_netrc_has_the_password_too(index: WheelIndex, bundle: Path, ours: list[str], tmp_path: Path) -> None:
    index.password = ("me", "secret")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)

    assert main(["wheels", LINUX, "--bundle", str(bundle), *ours]) == 0


def test_a_package_that_is_nowhere_is_one_line(index: WheelIndex, bundle: Path, ours: list[str], capsys) -> None:
    del index.files["pip-30.0-py3-none-any.whl"]

    refused(capsys, 1, main(["wheels", LINUX, "--bundle", str(bundle), *ours]), LINUX, "pip was not found")


def test_too_old_a_glibc_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    ended = main(["wheels", "cp312-manylinux_2_28_x86_64"])

    refused(capsys, 2, ended, "glibc 2.28 is too old, llguidance has no wheel for less than 2.31")


def test_cuda_for_llama_needs_a_wheel_of_the_user(index: WheelIndex, bundle: Path, ours: list[str], capsys) -> None:
    ended = main(["wheels", f"{LINUX}:cuda-llama", "--bundle", str(bundle), *ours[:2]])

    refused(capsys, 2, ended, "no wheel of llama.cpp with CUDA", "--wheel FILE", "--extra-index URL")


def test_a_wheel_that_fits_no_target_is_refused_with_the_reason(
    index: WheelIndex, bundle: Path, ours: list[str], tmp_path: Path, capsys
) -> None:
    stranger = written(tmp_path / "ours", *make_wheel("llama-cpp-python", tag="py3-none-macosx_11_0_arm64"))

    ended = main(["wheels", LINUX, "--bundle", str(bundle), *ours[:2], "--wheel", stranger])

    refused(capsys, 1, ended, Path(stranger).name, LINUX)


def test_a_model_that_the_carried_llama_cpp_does_not_know_is_named_at_home(
    index: WheelIndex, ours: list[str], tmp_path: Path, capsys
) -> None:
    """The bundle is written all the same: its other models run."""
    root = tmp_path / "with-models"
    small_bundle.make_bundle(root)

    ended = main(["wheels", LINUX, "--bundle", str(root), *ours])

    refused(capsys, 1, ended, "the wheels are there, but not every model runs", LLAMA)
    assert verify.verify(root).ok
    assert "openai==3.1" in listed(root)


# ---- transfers ---------------------------------------------------------------------------------------


def test_a_killed_download_goes_on_where_it_stopped(index: WheelIndex, bundle: Path, ours: list[str]) -> None:
    command = [sys.executable, "-m", "tourkit", "wheels", LINUX, "--bundle", str(bundle), "--jobs", "1", *ours]
    index.faults[BIG] = Fault("stall", times=1, at=BLOCK + 300_000)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        part = bundle / "wheels" / "files" / f"{BIG}.{sha256(WHEELS[BIG])[:12]}.part"
        while not (part.is_file() and part.stat().st_size >= BLOCK):
            assert process.poll() is None, "the process waits for the rest of the file"
        process.send_signal(signal.SIGKILL)
    had = part.stat().st_size
    index.files |= dict([make_wheel("openai", "4.0")])

    assert main(command[3:]) == 0

    assert [sent.start for sent in index.log if sent.path == BIG] == [0, had]
    assert (bundle / "wheels" / "files" / BIG).read_bytes() == WHEELS[BIG]
    assert "openai==3.1" in listed(bundle), "the lock was written before the first wheel"
    assert verify.verify(bundle).ok


def test_wrong_bytes_never_become_a_wheel(index: WheelIndex, bundle: Path, ours: list[str], capsys) -> None:
    index.faults[BIG] = Fault("flip", at=1000)

    refused(capsys, 3, main(["wheels", LINUX, "--bundle", str(bundle), *ours]), "sha256 is", "the lock says")

    assert not (bundle / "wheels" / "files" / BIG).exists()
    assert not (bundle / "wheels" / f"{LINUX}-cpu.txt").exists()


def test_one_flipped_byte_of_a_wheel_is_found_by_verify(index: WheelIndex, bundle: Path, ours: list[str]) -> None:
    assert main(["wheels", LINUX, "--bundle", str(bundle), *ours]) == 0
    path = bundle / "wheels" / "files" / BIG
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    assert verify.verify(bundle).damaged == (f"wheels/files/{BIG}",)


def test_a_folder_that_is_no_bundle_gets_nothing(index: WheelIndex, tmp_path: Path, ours: list[str], capsys) -> None:
    (tmp_path / "empty").mkdir()

    refused(capsys, 1, main(["wheels", LINUX, "--bundle", str(tmp_path / "empty"), *ours]), "no bundle.json")

    assert not list((tmp_path / "empty").iterdir())


# ---- wheels that people bring ------------------------------------------------------------------------


def test_wheels_put_in_by_hand_are_indexed_and_verify_then_accepts_them(bundle: Path, capsys) -> None:
    for name, content in list(WHEELS.items())[:3]:
        written(bundle / "wheels", name, content)
    refused(capsys, 1, main(["verify", str(bundle)]), f"tourkit wheels --add {bundle}/wheels --bundle {bundle}")

    assert main(["wheels", "--add", str(bundle / "wheels"), "--bundle", str(bundle)]) == 0

    assert "3 wheels are in the index" in capsys.readouterr().out
    assert main(["verify", str(bundle)]) == 0
    assert sorted(path.name for path in (bundle / "wheels").iterdir()) == ["files"]


def test_wheels_of_another_folder_are_copied_and_a_target_gets_its_list_without_a_network(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    brought = WHEELS | dict(OURS)
    for name, content in brought.items():
        written(tmp_path / "brought", name, content)

    assert main(["wheels", LINUX, "--add", str(tmp_path / "brought"), "--bundle", str(bundle)]) == 0

    assert listed(bundle)["tourkit==9.0"] == sha256(OURS[0][1])
    assert listed(bundle)["big==1.0"] == sha256(WHEELS[BIG])
    assert len(list((tmp_path / "brought").iterdir())) == len(brought), "the folder stays as it is"
    assert not list((bundle / "wheels").glob("pylock.*")), "a lock names addresses, and these wheels have none"
    assert verify.verify(bundle).ok


def test_a_torn_wheel_and_a_name_that_is_taken_are_refused(bundle: Path, tmp_path: Path, capsys) -> None:
    written(tmp_path / "torn", BIG, WHEELS[BIG][:1000])
    add = ["wheels", "--bundle", str(bundle), "--add"]
    refused(capsys, 2, main([*add, str(tmp_path / "torn")]), "not a whole wheel")

    written(tmp_path / "one", BIG, WHEELS[BIG])
    written(tmp_path / "two", *make_wheel("big", tag="cp312-cp312-manylinux_2_31_x86_64"))
    assert main([*add, str(tmp_path / "one")]) == 0
    refused(capsys, 2, main([*add, str(tmp_path / "two")]), f"the bundle has another {BIG}")
    refused(capsys, 2, main([*add, str(bundle / "templates")]), "no wheels")
    assert verify.verify(bundle).ok


# ---- prefetch ----------------------------------------------------------------------------------------


@pytest.fixture
def manifest(index: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A manifest with its lock, on a hub on loopback; tourkit's wheel is the small one."""
    monkeypatch.setattr("tourkit.fetch.wheels.choose.own_wheel", lambda folder: Path(written(folder / "own", *OURS[0])))
    path = tmp_path / "test-set.toml"
    with FaultyHub({"model.gguf": noise(1000, 1)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        path.write_text(manifest_toml(hub.repo, {"tool": "tiny"}, {"tiny": ["*"]}))
        assert main(["lock", str(path)]) == 0
        yield path


def test_prefetch_collects_wheels_and_keeps_the_lock_beside_the_manifest(
    manifest: Path, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "usb"
    command = ["prefetch", str(manifest), "--to", str(root), "--wheels", WINDOWS]
    assert main([*command, "--dry-run", "--json"]) == 0
    printed = capsys.readouterr().out
    shown = json.loads(printed[printed.index("{") :])
    assert shown["wheels"]["total_bytes"] > 0
    assert not root.exists()

    assert main(command) == 0

    lock = f"pylock.{WINDOWS}-cpu.toml"
    beside = tmp_path / "test-set.wheels" / lock
    assert beside.read_bytes() == (root / "wheels" / lock).read_bytes()
    assert "big==1.0" in listed(root, WINDOWS)
    assert verify.verify(root).ok
    assert main(command[:4]) == 0, "a prefetch without wheels keeps them"
    assert verify.verify(root).ok
    shutil.rmtree(root)
    capsys.readouterr()
    assert main(command) == 0
    assert f"from the lock {lock}" in capsys.readouterr().err


def test_where_the_manifests_folder_cannot_be_written_the_bundle_has_the_lock(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "test-set.wheels").write_text("in the way, as a read-only folder is")

    assert main(["prefetch", str(manifest), "--to", str(tmp_path / "usb"), "--wheels", WINDOWS]) == 0

    assert (tmp_path / "usb" / "wheels" / f"pylock.{WINDOWS}-cpu.toml").is_file()
