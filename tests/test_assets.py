"""Side assets: what a manifest may say, what a lock pins, what a bundle holds, and which variables a worker gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_hub import COMMIT, Fault, FaultyHub, noise

from tourkit.bundle import verify
from tourkit.bundle.environment import variables
from tourkit.bundle.index import BundleAsset, Index, read_index, render_index, write_index
from tourkit.cli import main
from tourkit.errors import ManifestError, TourkitError, Unreachable, UsageError, WrongContent
from tourkit.fetch import prefetch
from tourkit.fetch.http import Patience
from tourkit.fetch.hub import Hub
from tourkit.fetch.web import WebServer
from tourkit.launch import Launch
from tourkit.manifest import lock as locks
from tourkit.manifest import manifest as manifests
from tourkit.manifest.asset_pins import differences, pins_for
from tourkit.manifest.models import Link, Manifest, PinnedFile
from tourkit.manifest.resolve import Resolution, resolve
from tourkit.planning.plan import CPU, Placement, Plan
from tourkit.server.contract import WorkerSpec
from tourkit.server.gateway.launch import placements_at
from tourkit.server.gateway.process import WorkerProcess

QUICK = Patience(attempts=3, delay_s=0.01, longest_s=0.02, retry_after_s=1.0, stall_s=20.0)
WEIGHTS, VOCABULARY, LICENCE = "tiny-Q4_K_M.gguf", "o200k_base.tiktoken", "LICENSE.txt"
FILES = {WEIGHTS: noise(3000, 1), VOCABULARY: noise(300_000, 2), LICENCE: b"Apache License\n"}
PLACE = "assets/harmony/o200k_base.tiktoken"
OTHER = "b" * 64
SET = """\
schema = 1
name = "mine"
[roles]
tool = ["tiny"]
[models.tiny]
repo = "acme/tiny-gguf"
license = "mit"
context = 4096
[[models.tiny.variants]]
format = "gguf"
quant = "Q4_K_M"
repo = "acme/tiny-gguf"
revision = "main"
files = ["*.gguf"]
"""
URL = "https://example.org/o200k_base.tiktoken"


def sha256(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


def asset(**fields: object) -> str:
    """An [[assets]] table. A field that is None is left out."""
    wanted = {"path": "harmony/o200k_base.tiktoken", "url": URL, "env": "TIKTOKEN_ENCODINGS_BASE"} | fields
    lines = [f"{key} = {json.dumps(value)}" for key, value in wanted.items() if value is not None]
    return "\n".join(["[[assets]]", *lines, ""])


# ---- the manifest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "key", "fix"),
    [
        (asset(url="ftp://example.org/x"), "assets[0].url", "is not an http or https address: give the address"),
        (asset(url="o200k_base.tiktoken"), "assets[0].url", "is not an http or https address: give the address"),
        (asset(url="https://example.org"), "assets[0].url", "names no file on a server: give the address"),
        (asset(url="https://example.org:port/x"), "assets[0].url", "is not a valid address: give the address"),
        (asset(url="https://me:secret@example.org/x"), "assets[0].url", "into the bundle: use an open address"),
        (asset(url="http://example.org?key=secret"), "assets[0].url", "names no file on a server: give the address"),
        (asset(url="https://example.org/a b"), "assets[0].url", "has a character that an address cannot have: write"),
        (asset(url=None), "assets[0].url", "missing: give the http or https address"),
        (asset(sha256="abc"), "assets[0].sha256", "give the SHA-256 of the file as 64 lower-case hex digits"),
        (asset(env="tiktoken"), "assets[0].env", "is not the name of a variable: use capital letters"),
        (asset(env=""), "assets[0].env", "is not the name of a variable: use capital letters"),
        (asset(env="LD_PRELOAD"), "assets[0].env", "is not a variable of a library's data: name the variable that"),
        (asset(env="HF_HUB_OFFLINE"), "assets[0].env", "is not a variable of a library's data: name the variable that"),
        (asset(env=None, env_value="file"), "assets[0].env_value", "there is no variable to set: add `env`"),
        (asset(env_value="files"), "assets[0].env_value", "did you mean 'file'?"),
        (asset(stacks=["vlm"]), "assets[0].stacks[0]", "unknown stack 'vlm': did you mean 'vllm'?"),
        (asset(stacks=[]), "assets[0].stacks", "list the stacks that need the file, at least one"),
        (asset(path="o200k_base.tiktoken"), "assets[0].path", "has no folder: write it as folder/file"),
        (asset(path="../x/y"), "assets[0].path", "leaves its folder: write it without '..'"),
        (asset(path="tokens/vocabulary.bin"), "assets[0].path", "is a pickle"),
        (asset(name="harmony"), "assets[0].name", "unknown key: "),
        (asset() + asset(), "assets: 'harmony/o200k_base.tiktoken'", "is named twice: name it once"),
        (asset() + asset(path="Harmony/x"), "assets: ", "are the same name on exFAT, Windows and macOS: leave one out"),
        (asset() + asset(path="other/x"), "assets[1].env", "has another value in assets[0]: put both files into one"),
    ],
)
def test_a_wrong_asset_is_refused_in_one_line_with_its_key_and_the_fix(
    tmp_path: Path, tables: str, key: str, fix: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SET + tables)

    with pytest.raises(ManifestError) as caught:
        manifests.load(path)

    assert str(caught.value).startswith(f"{path}: {key}")
    assert fix in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_two_assets_may_set_one_variable_for_different_stacks_or_to_the_same_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SET + asset(stacks=["vllm"]) + asset(path="harmony/b") + asset(path="c/d", stacks=["onnx"]))
    with pytest.raises(ManifestError, match=r"assets\[2\].env: .* in assets\[1\]"):
        manifests.load(path)

    path.write_text(SET + asset(stacks=["vllm"]) + asset(path="harmony/b", stacks=["vllm"]))
    path.write_text(path.read_text() + asset(path="c/d", stacks=["onnx"]))

    assert [each.path for each in manifests.load(path).assets] == ["c/d", "harmony/b", "harmony/o200k_base.tiktoken"]


def test_a_set_without_assets_keeps_its_digest_and_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SET)
    plain = manifests.load(path)
    path.write_text(SET + asset())
    more = manifests.load(path)

    assert plain.digest == "ac39b66253d5934c55305f6a0d257a2b8ee37b8cddc7364e68a9b84789177be8"
    assert (
        locks.new(plain.name, plain.digest, []).sha256
        == "f05aecf571e5945bc576db0eacbc814988ad3f33ab354055cc5e578b2f3052c3"
    )
    assert more.digest != plain.digest
    assert replace(more, assets=()).digest == plain.digest


# ---- the lock ----------------------------------------------------------------------------------------


class Bench:
    """A set with the tables of `assets`, its lock, and a bundle folder, on a server that has all files."""

    def __init__(self, server: FaultyHub, folder: Path) -> None:
        self.server = server
        self.path = folder / "mine.toml"
        self.root = folder / "bundle"

    def url(self, name: str) -> str:
        return f"{self.server.url}/{self.server.repo}/resolve/{COMMIT}/{name}"

    def write(self, *tables: str) -> None:
        self.path.write_text(SET + "".join(tables))

    def vocabulary(self, **fields: object) -> str:
        return asset(**{"url": self.url(VOCABULARY)} | fields)

    def licence(self, **fields: object) -> str:
        return asset(**{"path": "licences/harmony.txt", "url": self.url(LICENCE), "env": None} | fields)

    def lock(self, **options: object) -> Resolution:
        """Lock the set as `tourkit lock` does."""
        where = locks.path_of(self.path)
        known = locks.read(where) if where.exists() else None
        hub, web = Hub(self.server.url, "", patience=QUICK), WebServer(QUICK)
        try:
            made = resolve(manifests.load(self.path), hub, known=known, web=web, **options)
        finally:
            hub.close()
            web.close()
        locks.write(where, made.lock)
        return made

    def prefetch(self, *, patience: Patience = QUICK, **options: object) -> Index:
        hub = Hub(self.server.url, "", patience=patience)
        try:
            found = manifests.load(self.path), locks.read(locks.path_of(self.path))
            return prefetch.prefetch(*found, self.root, hub, **options)
        finally:
            hub.close()

    def sent(self, name: str) -> list[tuple[int, int]]:
        """The first byte and the bytes sent of each answer for a file since the last call."""
        found = [(sent.start, sent.sent) for sent in self.server.log if sent.path == name]
        self.server.log.clear()
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with FaultyHub(FILES) as server:
        yield Bench(server, tmp_path)


@pytest.mark.starts
def test_a_lock_pins_size_and_sha256_of_an_asset_and_reads_it_once(bench: Bench) -> None:
    bench.write(bench.vocabulary(stacks=["vllm"]), bench.licence(sha256=sha256(LICENCE)))

    made = bench.lock()

    assert made.failed_assets == {}
    assert json.loads(locks.path_of(bench.path).read_bytes())["assets"] == [
        {
            "path": "harmony/o200k_base.tiktoken",
            "url": bench.url(VOCABULARY),
            "env": "TIKTOKEN_ENCODINGS_BASE",
            "env_value": "folder",
            "stacks": ["vllm"],
            "size": len(FILES[VOCABULARY]),
            "sha256": sha256(VOCABULARY),
        },
        {
            "path": "licences/harmony.txt",
            "url": bench.url(LICENCE),
            "env": "",
            "env_value": "folder",
            "stacks": [],
            "size": len(FILES[LICENCE]),
            "sha256": sha256(LICENCE),
        },
    ]
    assert locks.read(locks.path_of(bench.path)) == made.lock
    assert bench.sent(VOCABULARY) == [(0, len(FILES[VOCABULARY]))]

    bench.write(bench.vocabulary(), bench.licence())
    again = bench.lock()

    assert bench.sent(VOCABULARY) == [], "what the lock has is not read again"
    assert locks.changes(made.lock, again.lock) == [f"{PLACE}: its url, variable or stacks changed"]


@pytest.mark.starts
def test_a_file_with_another_sha256_than_the_manifest_is_named_and_the_rest_is_locked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", bench.server.url)
    bench.write(bench.vocabulary(sha256=OTHER), bench.licence())

    ended = main(["lock", str(bench.path)])

    printed = capsys.readouterr()
    assert ended == 3
    assert "1 side asset could not be resolved, the rest is written" in printed.err
    shown = f"sha256 is {sha256(VOCABULARY)[:12]}…, the manifest says {OTHER[:12]}…: correct `url` or `sha256`"
    assert f"{PLACE}: {bench.url(VOCABULARY)}: {shown}" in printed.err
    assert "1 variant, 2 side assets, 1 of them not resolved" in printed.out
    assert [pin.file is None for pin in locks.read(locks.path_of(bench.path)).assets] == [True, False]
    with pytest.raises(ManifestError, match=f"{PLACE}: it is not pinned yet: run `tourkit lock"):
        bench.prefetch()
    assert not bench.root.exists()


@pytest.mark.starts
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault("status", status=404), "HTTP 404 from the server: correct `url` of this asset in the manifest"),
        (Fault("status", status=403), r"asks for a password \(HTTP 403\): use an open address"),
        (Fault("status", status=503), "HTTP 503, it still fails after several attempts: check the network"),
    ],
)
def test_an_asset_that_its_server_does_not_give_has_one_line_that_says_why(
    bench: Bench, fault: Fault, why: str
) -> None:
    bench.server.faults[VOCABULARY] = fault
    bench.write(bench.vocabulary())

    [(path, error)] = bench.lock().failed_assets.items()

    assert path == PLACE
    with pytest.raises(TourkitError, match=why):
        raise error
    assert error.exit_code == 3


@pytest.mark.starts
def test_an_answer_that_breaks_off_is_read_again(bench: Bench) -> None:
    bench.server.faults[VOCABULARY] = Fault("truncated", times=1, at=100_000)
    web = WebServer(QUICK)

    assert web.measure(Link(bench.url(VOCABULARY))) == (len(FILES[VOCABULARY]), sha256(VOCABULARY))

    web.close()


def test_a_lock_whose_assets_do_not_fit_the_manifest_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"

    def load(*tables: str) -> Manifest:
        path.write_text(SET + "".join(tables))
        return manifests.load(path)

    mine = load(asset(stacks=["vllm"]))
    pins, _ = pins_for(mine.assets, None, (), lambda line: None)

    assert [*differences(mine.assets, pins)] == []
    assert [*differences(load().assets, pins)] == [f"it holds {PLACE}, which the manifest no longer names"]
    assert [*differences(mine.assets, ())] == [f"it does not hold {PLACE}, which the manifest names"]
    assert [*differences(load(asset(stacks=["onnx"], sha256=OTHER)).assets, pins)] == [
        f"{PLACE} has stacks ('vllm',), the manifest ('onnx',)",
        f"{PLACE} has another sha256 than the manifest",
    ]
    unlocked = locks.new("mine", mine.digest, [])
    with pytest.raises(ManifestError, match=f"it does not hold tiny Q4_K_M.*: run `tourkit lock {path}`"):
        locks.check_current(mine, unlocked)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("url", "ftp://example.org/x", "assets[0].url: 'ftp://example.org/x' is not an http or https address"),
        ("env", "PYTHONPATH", "assets[0].env: 'PYTHONPATH' is not a variable of a library's data"),
        ("path", "../../x", "assets[0].path: '../../x' leaves its folder"),
        ("size", -1, "assets[0].size: -1 is refused: a size is a whole number of bytes"),
    ],
)
def test_a_lock_with_a_wrong_asset_is_refused(tmp_path: Path, key: str, value: object, problem: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SET + asset())
    mine = manifests.load(path)
    pins, _ = pins_for(mine.assets, None, (), lambda line: None)
    raw = json.loads(locks.render(locks.new("mine", mine.digest, [], pins)))
    raw["assets"][0][key] = value
    (tmp_path / "mine.lock.json").write_text(json.dumps(raw))

    with pytest.raises(ManifestError) as caught:
        locks.read(tmp_path / "mine.lock.json")

    assert str(caught.value).startswith(f"{tmp_path / 'mine.lock.json'}: {problem}")


def test_without_a_network_one_asset_is_asked_for_and_each_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SET + asset() + asset(path="harmony/other"))
    asked = []

    class Nobody:
        def measure(self, source: Link) -> tuple[int, str]:
            asked.append(source.url)
            raise Unreachable("nobody answers")

    pins, failed = pins_for(manifests.load(path).assets, Nobody(), (), lambda line: None)

    assert asked == [URL]
    assert list(failed) == [PLACE, "assets/harmony/other"]
    assert [pin.file for pin in pins] == [None, None]


# ---- the bundle --------------------------------------------------------------------------------------


@pytest.mark.starts
def test_a_bundle_holds_the_assets_in_its_index_and_its_sums(bench: Bench) -> None:
    bench.write(bench.vocabulary(stacks=["vllm"]), bench.licence())
    bench.lock()

    index = bench.prefetch()

    assert (bench.root / PLACE).read_bytes() == FILES[VOCABULARY]
    assert read_index(bench.root) == index
    assert index.assets == (
        BundleAsset(PLACE, bench.url(VOCABULARY), "TIKTOKEN_ENCODINGS_BASE", "folder", ("vllm",)),
        BundleAsset("assets/licences/harmony.txt", bench.url(LICENCE), "", "folder", ()),
    )
    assert f"{sha256(VOCABULARY)}  {PLACE}\n" in (bench.root / "SHA256SUMS").read_text()
    assert verify.verify(bench.root).ok
    (bench.root / PLACE).unlink()
    assert verify.verify(bench.root).missing == (PLACE,)


@pytest.mark.starts
def test_an_interrupted_asset_resumes_at_the_byte_where_it_stopped(bench: Bench) -> None:
    bench.write(bench.vocabulary())
    bench.lock()
    bench.sent(VOCABULARY)
    bench.server.faults[VOCABULARY] = Fault("truncated", times=1, at=100_000)
    with pytest.raises(TourkitError, match="it still fails after several attempts"):
        bench.prefetch(patience=replace(QUICK, attempts=1))
    bench.server.log.clear()

    bench.prefetch()

    assert bench.sent(VOCABULARY) == [(100_000, 200_000)]
    assert (bench.root / PLACE).read_bytes() == FILES[VOCABULARY]
    assert [path.name for path in (bench.root / PLACE).parent.iterdir()] == [VOCABULARY]
    bench.prefetch()
    assert bench.sent(VOCABULARY) == [], "a whole file is not fetched again"


@pytest.mark.starts
def test_a_file_that_changed_on_its_server_is_refused_and_the_bundle_stays_unfinished(bench: Bench) -> None:
    bench.write(bench.vocabulary())
    bench.lock()
    bench.server.files[VOCABULARY] = noise(300_000, 9)

    with pytest.raises(WrongContent, match=r"the lock says .* the file has changed there: correct `url` or `sha256`"):
        bench.prefetch()

    assert not (bench.root / PLACE).exists()
    assert not (bench.root / "bundle.json").exists()
    bench.server.files[VOCABULARY] = b"short"
    with pytest.raises(WrongContent, match="the server offers 5 bytes, the lock says 300000: the file has changed"):
        bench.prefetch()


@pytest.mark.starts
def test_stack_chooses_assets_and_those_of_an_earlier_run_stay_until_the_set_drops_them(bench: Bench) -> None:
    bench.write(bench.vocabulary(stacks=["vllm"]), bench.licence())
    assert [pin.size is None for pin in bench.lock(stacks=["llama_cpp"]).lock.assets] == [True, False]
    bench.lock()

    assert [each.path for each in bench.prefetch(stacks=["llama_cpp"]).assets] == ["assets/licences/harmony.txt"]
    assert not (bench.root / PLACE).exists()
    bench.prefetch()
    assert [each.path for each in bench.prefetch(stacks=["llama_cpp"]).assets] == [PLACE, "assets/licences/harmony.txt"]

    bench.write(bench.licence())
    bench.lock()
    index = bench.prefetch()

    assert [each.path for each in index.assets] == ["assets/licences/harmony.txt"]
    assert verify.verify(bench.root).ok, "no file is left that the index does not have"


@pytest.mark.starts
def test_a_dry_run_lists_the_address_of_an_asset(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", bench.server.url)
    bench.write(bench.vocabulary())
    bench.lock()

    assert main(["prefetch", str(bench.path), "--to", str(bench.root), "--dry-run", "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["files"][-1] == {"path": PLACE, "url": bench.url(VOCABULARY), "size": 300_000}
    assert shown["total_bytes"] == 303_000


def test_an_index_without_assets_has_no_such_key_and_a_wrong_entry_is_refused(tmp_path: Path) -> None:
    empty = Index("x", "", "", {}, (), (), ())
    assert b"assets" not in render_index(empty)

    lost = BundleAsset(PLACE, URL, "", "folder", ())
    with pytest.raises(UsageError, match="is not a file of the index below assets/"):
        write_index(tmp_path, replace(empty, assets=(lost,)))
    there = replace(empty, files=(PinnedFile(PLACE, 1, OTHER, None),), assets=(replace(lost, env="LD_PRELOAD"),))
    with pytest.raises(UsageError, match="'LD_PRELOAD' is not a variable of a library's data"):
        write_index(tmp_path, there)


# ---- the worker --------------------------------------------------------------------------------------


def test_the_worker_of_each_stack_is_started_with_the_variables_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is set already is another folder, which may not have the file: the one of the bundle counts."""
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", "/elsewhere")
    on_gguf = Placement(("tool",), Launch("m", "llama_cpp", "models/m/Q4_K_M/m.gguf", 1, 64, 1))
    on_vllm = replace(on_gguf, launch=replace(on_gguf.launch, stack="vllm"), fallbacks=(on_gguf,))
    needs = BundleAsset(PLACE, URL, "TIKTOKEN_ENCODINGS_BASE", "folder", ("vllm",))

    [placed] = placements_at(tmp_path.joinpath, Plan((on_vllm,), ()), assets=[needs])

    seen = [started_with(each.launch)["TIKTOKEN_ENCODINGS_BASE"] for each in (placed, *placed.fallbacks)]
    assert seen == [str(tmp_path / "assets/harmony"), "/elsewhere"]


def started_with(launch: Launch) -> dict[str, str]:
    """Return the environment of the process that loads `launch`, after the way over the command line."""
    spec = WorkerSpec(launch, ("tool",), "", "secret", offline=True)
    assert WorkerSpec.of_json(spec.to_json()) == spec
    return WorkerProcess(spec, CPU)._environment("/tmp/scratch")


def test_a_worker_gets_the_variables_of_its_stack_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assets = (
        BundleAsset(PLACE, URL, "TIKTOKEN_ENCODINGS_BASE", "folder", ("vllm",)),
        BundleAsset("assets/nltk/punkt.zip", URL, "PUNKT", "file", ()),
        BundleAsset("assets/licences/harmony.txt", URL, "", "folder", ()),
    )

    assert variables(assets, "vllm", Path("bundle").joinpath) == (
        ("PUNKT", str(tmp_path / "bundle/assets/nltk/punkt.zip")),
        ("TIKTOKEN_ENCODINGS_BASE", str(tmp_path / "bundle/assets/harmony")),
    )
    assert [name for name, _ in variables(assets, "llama_cpp", Path("bundle").joinpath)] == ["PUNKT"]
