"""What `prefetch` promises on a bad network: right bytes or no file, no byte twice without need, one clear line."""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import full_disk
import pytest
from faulty_hub import COMMIT, Fault, FaultyHub, manifest_toml, noise

from tourkit import data
from tourkit.bundle import verify
from tourkit.bundle.index import read_index, write_index
from tourkit.defaults import RoleDefaults, Sampling
from tourkit.errors import HubError, LocalError, ManifestError, Unreachable, UsageError, WrongContent
from tourkit.fetch import prefetch
from tourkit.fetch.download import BLOCK
from tourkit.fetch.folder_lock import LOCK_FILE
from tourkit.fetch.http import Patience
from tourkit.fetch.hub import Hub
from tourkit.manifest import lock, manifest
from tourkit.manifest.lock import UnresolvedFile, UnresolvedVariant
from tourkit.manifest.models import PinnedFile
from tourkit.manifest.resolve import resolve

QUICK = Patience(attempts=4, delay_s=0.01, longest_s=0.02, retry_after_s=1.0, stall_s=20.0)
BIG, SMALL, CONFIG = "tiny-Q4_K_M.gguf", "draft-Q4_K_M.gguf", "config.json"
FILES = {
    BIG: noise(3 * BLOCK + 12345, 1),
    SMALL: noise(700_000, 2),
    CONFIG: b'{"model_type": "tiny"}\n',
    "LICENSE": b"Apache License\n",
    "original/NOTICE.txt": b"notice\n",
}
FOLDER = "models/tiny/Q4_K_M"


class Heard:
    """A listener that records all events."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bytes = {"fetched": 0, "checked": 0}
        self.again = 0
        self.started: tuple[int, int] | None = None
        self.gate = threading.Lock()

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        self.started = (total_bytes, to_fetch)

    def on_bytes(self, n: int, kind: str) -> None:
        with self.gate:
            self.bytes[kind] += n

    def on_again(self, n: int) -> None:
        with self.gate:
            self.again += n

    def on_note(self, text: str) -> None:
        with self.gate:
            self.notes.append(text)


class Set:
    """A manifest, its lock, a faulty hub, and a folder to fetch into."""

    def __init__(self, server: FaultyHub, folder: Path, roles: dict[str, str], variants: dict[str, list[str]]) -> None:
        self.server, self.root, self.heard = server, folder / "bundle", Heard()
        path = folder / "test-set.toml"
        path.write_text(manifest_toml(server.repo, roles, variants))
        self.manifest = manifest.load(path)
        with closing(Hub(server.url, patience=QUICK)) as hub:
            self.lock = resolve(self.manifest, hub).lock

    def run(self, *, patience: Patience = QUICK, root: Path | None = None, token: str | None = None, **options: object):
        with closing(Hub(self.server.url, token, patience=patience)) as hub:
            return prefetch.prefetch(
                self.manifest, self.lock, root or self.root, hub, listener=self.heard, **{"jobs": 2, **options}
            )

    def dest(self, name: str) -> Path:
        return self.root / FOLDER / name

    def part(self, name: str) -> Path:
        return self.dest(f"{name}.{hashlib.sha256(FILES[name]).hexdigest()[:12]}.part")

    def starts(self, name: str) -> list[int]:
        return [sent.start for sent in self.server.log if sent.path == name]


@contextlib.contextmanager
def closing(hub: Hub) -> Iterator[Hub]:
    try:
        yield hub
    finally:
        hub.close()


@pytest.fixture
def server() -> Iterator[FaultyHub]:
    with FaultyHub(FILES) as server:
        yield server


@pytest.fixture
def cdn() -> Iterator[FaultyHub]:
    with FaultyHub(FILES) as server:
        yield server


@pytest.fixture
def tiny(server: FaultyHub, tmp_path: Path) -> Set:
    made = Set(server, tmp_path, {"tool": "tiny"}, {"tiny": ["*"]})
    server.log.clear()
    return made


def shape(root: Path) -> dict[str, str]:
    """Return every file below a folder with its hash."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "SECRET" not in text, "a signed link is a credential"
    return text


def assert_whole(made: Set) -> None:
    for name, content in FILES.items():
        assert made.dest(name).read_bytes() == content
    assert verify.verify(made.root).ok, verify.verify(made.root)


def count(made: Set) -> int:
    """Bytes that the listener has counted, without those that came again."""
    return sum(made.heard.bytes.values()) - made.heard.again


# ---- a good network ----------------------------------------------------------------------------------


def test_a_bundle_is_whole_and_verifies(tiny: Set) -> None:
    index = tiny.run()
    assert_whole(tiny)
    assert index == read_index(tiny.root)
    assert index.roles == {"tool": ("tiny",)}
    assert {file.source.commit for file in index.files if file.path.startswith("models/")} == {COMMIT}
    total = sum(map(len, FILES.values()))
    assert tiny.heard.started == (total, total)
    assert tiny.heard.bytes == {"fetched": total, "checked": 0}
    assert not list(tiny.root.rglob("*.part"))
    assert not (tiny.root / LOCK_FILE).exists()


def test_a_good_file_costs_no_request(tiny: Set) -> None:
    tiny.run()
    tiny.server.paths.clear()
    tiny.run()
    assert tiny.server.paths == []
    assert tiny.heard.bytes["checked"] == sum(map(len, FILES.values()))


def test_only_the_hash_is_trusted_not_the_size_or_the_date(tiny: Set) -> None:
    tiny.run()
    wrong = bytearray(FILES[BIG])
    wrong[77] ^= 1
    stat = tiny.dest(BIG).stat()
    tiny.dest(BIG).write_bytes(wrong)
    os.utime(tiny.dest(BIG), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    tiny.server.log.clear()
    tiny.run()
    assert_whole(tiny)
    assert [sent.path for sent in tiny.server.log] == [BIG]


@pytest.mark.parametrize(
    "fault",
    [None, Fault("flip", times=1, at=77), Fault("ignore range", times=1), Fault("truncated", times=1, at=BLOCK)],
)
def test_every_byte_of_a_whole_bundle_is_counted_once_however_often_it_came(tiny: Set, fault: Fault | None) -> None:
    total = sum(map(len, FILES.values()))
    tiny.dest(BIG).parent.mkdir(parents=True)
    tiny.dest(SMALL).write_bytes(bytes(len(FILES[SMALL])))  # damaged: of the right size, all zeros
    tiny.part(BIG).write_bytes(FILES[BIG][:BLOCK])
    if fault is not None:
        tiny.server.faults[BIG] = fault

    tiny.run()

    assert_whole(tiny)
    assert count(tiny) == total
    assert tiny.heard.again >= len(FILES[SMALL])


def test_bytes_behind_a_416_are_counted_once(tiny: Set) -> None:
    tiny.server.faults[BIG] = Fault("status", times=1, status=416)
    tiny.part(BIG).parent.mkdir(parents=True)
    tiny.part(BIG).write_bytes(FILES[BIG][:BLOCK])

    tiny.run()

    assert count(tiny) == sum(map(len, FILES.values()))


def test_two_bundles_are_byte_identical_whatever_the_order(tiny: Set, tmp_path: Path) -> None:
    tiny.run(jobs=1)
    tiny.server.faults[BIG] = Fault("truncated", times=1, at=BLOCK)
    tiny.run(jobs=4, root=tmp_path / "other")
    assert shape(tiny.root) == shape(tmp_path / "other")


def test_a_bundle_fetched_from_a_mirror_of_a_bundle_is_the_same_bundle(tiny: Set, tmp_path: Path) -> None:
    tiny.run()
    code = "import sys; from pathlib import Path; from tourkit.mirror.app import serve; "
    code += "serve(Path(sys.argv[1]), '127.0.0.1', 0, lambda urls: print(urls.here, flush=True))"
    with subprocess.Popen([sys.executable, "-c", code, tiny.root], stdout=subprocess.PIPE, text=True) as mirror:
        try:
            assert mirror.stdout is not None
            with closing(Hub(mirror.stdout.readline().strip(), patience=QUICK)) as hub:
                prefetch.prefetch(tiny.manifest, tiny.lock, tmp_path / "copy", hub)
        finally:
            mirror.terminate()
            mirror.wait()
    assert shape(tiny.root) == shape(tmp_path / "copy")


def test_skeleton_templates_and_licences_travel_and_are_indexed(tiny: Set, tmp_path: Path, monkeypatch) -> None:
    templates, skeleton = tmp_path / "templates", tmp_path / "skeleton"
    (templates / "json_repair" / "__pycache__").mkdir(parents=True)
    (templates / "json_repair" / "json_repair.py").write_text("pass\n")
    (templates / "json_repair" / "__pycache__" / "x.pyc").write_bytes(b"x")
    skeleton.mkdir()
    for name in ("START_HERE.md", "install.sh", "notes.txt"):
        (skeleton / name).write_text(name)
    monkeypatch.setattr(data, "TEMPLATES", templates)
    monkeypatch.setattr(data, "BUNDLE_SKELETON", skeleton)
    tiny.run()
    beside = {path for path in shape(tiny.root) if not path.startswith("models/")}
    assert beside == {
        "START_HERE.md",
        "install.sh",
        "templates/json_repair/json_repair.py",
        "licenses/tiny.txt",
        "licenses/tiny/Q4_K_M/LICENSE",
        "licenses/tiny/Q4_K_M/original/NOTICE.txt",
        "bundle.json",
        "SHA256SUMS",
    }
    note = (tiny.root / "licenses/tiny.txt").read_text()
    assert COMMIT in note
    assert "apache-2.0" in note
    assert verify.verify(tiny.root).ok
    (templates / "json_repair" / "json_repair.py").rename(templates / "renamed.py")
    tiny.run()
    assert verify.verify(tiny.root).ok, "what an earlier run wrote and is gone now must not stay as extra"


def test_the_skeleton_of_a_checkout_is_not_copied_onto_itself(tiny: Set, monkeypatch) -> None:
    tiny.root.mkdir()
    (tiny.root / "START_HERE.md").write_text("hello")
    monkeypatch.setattr(data, "BUNDLE_SKELETON", tiny.root)
    before = (tiny.root / "START_HERE.md").stat()
    tiny.run()
    assert (tiny.root / "START_HERE.md").stat().st_mtime_ns == before.st_mtime_ns
    assert "START_HERE.md" in {file.path for file in read_index(tiny.root).files}


def test_files_that_other_commands_put_there_stay_in_the_index(tiny: Set) -> None:
    index = tiny.run()
    wheel = tiny.root / "wheels/cp311-linux/a.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"wheel")
    entry = PinnedFile("wheels/cp311-linux/a.whl", 5, hashlib.sha256(b"wheel").hexdigest(), None)
    write_index(tiny.root, replace(index, files=(*index.files, entry)))
    assert entry in tiny.run().files
    assert verify.verify(tiny.root).ok


# ---- a part of the lock ------------------------------------------------------------------------------


@pytest.fixture
def two(server: FaultyHub, tmp_path: Path) -> Set:
    return Set(server, tmp_path, {"brain": "tiny", "tool": "draft"}, {"tiny": [BIG], "draft": [SMALL, CONFIG]})


def test_roles_fetched_one_by_one_add_up(two: Set, tmp_path: Path) -> None:
    two.run(roles=["tool"])
    assert two.starts(BIG) == []
    assert read_index(two.root).roles == {"tool": ("draft",)}
    assert verify.verify(two.root).ok
    two.run(roles=["brain"])
    two.run(root=tmp_path / "at-once")
    assert shape(two.root) == shape(tmp_path / "at-once")


def test_the_bundle_has_the_defaults_of_its_roles_and_a_change_of_them_fetches_nothing(two: Set) -> None:
    brain, tool = RoleDefaults("brain", thinking=True), RoleDefaults("tool", sampling=Sampling(top_k=7))
    two.manifest = replace(two.manifest, defaults=(brain, tool))
    two.run(roles=["tool"])
    assert read_index(two.root).defaults == (tool,)
    asked = two.starts(SMALL)
    two.manifest = replace(two.manifest, defaults=(brain,))
    two.run(roles=["tool"])
    assert read_index(two.root).defaults == ()
    assert two.starts(SMALL) == asked


def test_an_earlier_variant_leaves_the_index_when_the_lock_moves_on(two: Set) -> None:
    two.run(roles=["tool"])
    moved = [replace(v, commit="f" * 40) if v.model == "draft" else v for v in two.lock.variants]
    two.lock = lock.new(two.lock.name, two.lock.manifest_sha256, moved)
    index = two.run(roles=["brain"])
    assert [variant.model for variant in index.variants] == ["tiny"]


def test_an_earlier_variant_leaves_the_index_when_its_files_are_gone(two: Set) -> None:
    two.run(roles=["tool"])
    (two.root / "models/draft/Q4_K_M" / SMALL).unlink()
    assert [variant.model for variant in two.run(roles=["brain"]).variants] == ["tiny"]


def test_plan_counts_by_size_and_touches_nothing(two: Set) -> None:
    two.run(roles=["tool"])
    part = Path(f"{two.root / 'models/tiny/Q4_K_M' / BIG}.{hashlib.sha256(FILES[BIG]).hexdigest()[:12]}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[BIG][:1000])
    before, two.server.paths[:] = shape(two.root), []
    plan = prefetch.fetch_plan(two.manifest, two.lock, two.root)
    present = len(FILES[SMALL]) + len(FILES[CONFIG])
    assert plan.total_bytes == present + len(FILES[BIG])
    assert sum(planned.file.size for planned in plan.files if planned.whole) == present
    assert sum(planned.part_bytes for planned in plan.files) == 1000
    assert plan.to_fetch_bytes == len(FILES[BIG]) - 1000
    left = {planned.file.source.path: planned.to_fetch_bytes for planned in plan.files}
    assert left == {SMALL: 0, CONFIG: 0, BIG: len(FILES[BIG]) - 1000}
    assert (shape(two.root), two.server.paths) == (before, [])


@pytest.mark.parametrize(
    ("options", "words"), [({"roles": ["brian"]}, "brian"), ({"stacks": ["vlm"]}, "vlm"), ({"stacks": ["onnx"]}, "no")]
)
def test_a_choice_of_nothing_is_refused_before_the_folder_is_made(two: Set, options, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        two.run(**options)
    one_line(error.value)
    assert not two.root.exists()


def test_an_unresolved_lock_is_refused_with_the_command_that_fixes_it(two: Set) -> None:
    draft, tiny = two.lock.resolved
    files = tuple(UnresolvedFile(file.source.path, file.size, None) for file in draft.files)
    hole = UnresolvedVariant(
        draft.model, draft.quant, draft.format, draft.repo, draft.revision, draft.commit, files, complete=True
    )
    two.lock = lock.new(two.lock.name, two.lock.manifest_sha256, [hole, tiny])
    two.run(roles=["brain"])  # the unresolved variant is not selected
    with pytest.raises(ManifestError, match="tourkit lock"):
        two.run(roles=["tool"])


# ---- faults during the transfer ----------------------------------------------------------------------

PASSING = {
    "flip once": Fault("flip", times=1, at=5000),
    "truncated once": Fault("truncated", times=1, at=BLOCK + 4321),
    "truncated at once": Fault("truncated", times=2, at=0),
    "reset": Fault("reset", times=2, at=BLOCK + 4321),
    "reset before the first byte": Fault("reset", times=2, at=0),
    "500 twice": Fault("status", times=2, status=500),
    "503 with an HTML page": Fault(
        "status", times=1, status=503, body=b"<html>", headers={"Content-Type": "text/html"}
    ),
    "429 now": Fault("status", times=2, status=429, headers={"Retry-After": "0"}),
    "429 date": Fault("status", times=1, status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "408": Fault("status", times=1, status=408),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
@pytest.mark.parametrize("behind_a_cdn", [False, True], ids=["direct", "redirected"])
def test_a_fault_that_passes_costs_a_note_and_nothing_else(
    tiny: Set, cdn: FaultyHub, fault: Fault, behind_a_cdn: bool
) -> None:
    tiny.server.cdn = cdn if behind_a_cdn else None
    (cdn if behind_a_cdn else tiny.server).faults[BIG] = replace(fault)
    tiny.run()
    assert_whole(tiny)
    assert tiny.heard.notes
    for note in tiny.heard.notes:
        assert "SECRET" not in note
    assert not list(tiny.root.rglob("*.bad"))


def test_a_retry_after_of_seconds_is_waited_for_and_said(tiny: Set) -> None:
    tiny.server.faults[BIG] = Fault("status", times=1, status=429, headers={"Retry-After": "1"})
    tiny.run()
    assert_whole(tiny)
    assert any("HTTP 429; retry in 1 s" in note for note in tiny.heard.notes)


def test_a_line_that_drops_every_300_kb_gets_there_without_a_byte_twice(tiny: Set) -> None:
    tiny.server.faults[BIG] = Fault("truncated", at=300_000)
    tiny.run()
    assert_whole(tiny)
    assert tiny.starts(BIG) == list(range(0, len(FILES[BIG]), 300_000))
    assert tiny.heard.bytes["fetched"] == sum(map(len, FILES.values()))


def test_a_server_that_cannot_resume_is_met_from_zero(tiny: Set) -> None:
    tiny.part(BIG).parent.mkdir(parents=True)
    tiny.part(BIG).write_bytes(FILES[BIG][:BLOCK])
    tiny.server.faults[BIG] = Fault("ignore range")
    tiny.run()
    assert_whole(tiny)
    assert tiny.starts(BIG) == [BLOCK]


def test_a_server_that_neither_resumes_nor_finishes_is_given_up(tiny: Set, monkeypatch) -> None:
    """Repeated bytes are no progress: otherwise prefetch would never give up."""
    tiny.server.faults[BIG] = Fault("truncated", at=BLOCK)
    monkeypatch.setattr(tiny.server, "fault_for", lambda path: tiny.server.faults.get(path))
    real = tiny.server.server.RequestHandlerClass

    class NoRange(real):  # type: ignore[misc, valid-type]
        def parse_request(self) -> bool:
            parsed = super().parse_request()
            if parsed:
                del self.headers["Range"]
            return parsed

    tiny.server.server.RequestHandlerClass = NoRange
    with pytest.raises(HubError, match="several attempts"):
        tiny.run()
    assert len(tiny.starts(BIG)) == QUICK.attempts


def test_a_range_other_than_the_one_asked_for_is_never_written(tiny: Set) -> None:
    tiny.part(BIG).parent.mkdir(parents=True)
    tiny.part(BIG).write_bytes(FILES[BIG][:BLOCK])
    tiny.server.faults[BIG] = Fault("shifted")
    with pytest.raises(HubError, match="another range") as error:
        tiny.run()
    one_line(error.value)
    assert tiny.part(BIG).read_bytes() == FILES[BIG][:BLOCK]
    tiny.server.faults.clear()
    tiny.run()
    assert_whole(tiny)


def test_a_silent_connection_is_cut_and_continued(tiny: Set) -> None:
    half = len(FILES[BIG]) // 2
    tiny.server.faults[BIG] = Fault("stall", times=1, at=half)
    tiny.run(patience=replace(QUICK, stall_s=0.3))
    assert_whole(tiny)
    assert tiny.starts(BIG) == [0, half]


def test_bytes_that_are_always_wrong_never_get_the_files_name(tiny: Set) -> None:
    tiny.server.faults[BIG] = Fault("flip", at=5000)
    with pytest.raises(WrongContent) as error:
        tiny.run()
    assert error.value.exit_code == 3
    assert not tiny.dest(BIG).exists()
    [bad] = tiny.dest("x").parent.glob("*.bad")
    assert bad.name in one_line(error.value)
    assert bad.name == f"{BIG}.{hashlib.sha256(bad.read_bytes()).hexdigest()[:12]}.bad"
    assert tiny.dest(SMALL).read_bytes() == FILES[SMALL], "one bad file keeps no other from arriving"
    assert not (tiny.root / "bundle.json").exists()
    tiny.server.faults.clear()
    tiny.run()
    assert_whole(tiny)
    assert not bad.exists(), "what is whole now needs no set-aside copy"


def test_a_part_file_with_zeros_from_a_power_cut_is_fetched_anew(tiny: Set) -> None:
    tiny.part(BIG).parent.mkdir(parents=True)
    tiny.part(BIG).write_bytes(bytes(2 * BLOCK))
    tiny.run()
    assert_whole(tiny)
    assert tiny.starts(BIG) == [2 * BLOCK, 0]


def test_a_part_file_that_is_too_long_is_started_again(tiny: Set) -> None:
    tiny.part(BIG).parent.mkdir(parents=True)
    tiny.part(BIG).write_bytes(FILES[BIG] + b"more")
    tiny.run()
    assert_whole(tiny)


def test_a_416_means_start_again_and_is_not_repeated_for_ever(tiny: Set) -> None:
    tiny.part(BIG).parent.mkdir(parents=True)
    tiny.part(BIG).write_bytes(FILES[BIG][:BLOCK])
    tiny.server.faults[BIG] = Fault("status", status=416, times=1)
    tiny.run()
    assert_whole(tiny)
    assert tiny.starts(BIG) == [BLOCK, 0]


def test_the_part_of_another_version_is_not_continued(tiny: Set) -> None:
    other = tiny.dest(f"{BIG}.{'0' * 12}.part")
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another version")
    tiny.run()
    assert_whole(tiny)
    assert tiny.starts(BIG) == [0]
    assert not other.exists()


def test_a_500_for_ever_ends_with_exit_code_3_and_one_line(tiny: Set) -> None:
    tiny.server.faults[BIG] = Fault("status", status=500)
    with pytest.raises(HubError) as error:
        tiny.run()
    assert error.value.exit_code == 3
    line = one_line(error.value)
    assert BIG in line
    assert "HTTP 500" in line
    assert "HF_ENDPOINT" in line
    assert len(tiny.starts(BIG)) == QUICK.attempts


def test_every_failure_is_counted(tiny: Set) -> None:
    tiny.server.faults = {name: Fault("status", status=500) for name in (BIG, SMALL, CONFIG)}
    with pytest.raises(HubError, match=r"\(and 2 more\)$") as error:
        tiny.run()
    assert len(error.value.details) == 3
    for name in (BIG, SMALL, CONFIG):
        assert any(name in line for line in error.value.details)


def test_a_host_that_does_not_exist_ends_the_prefetch_at_once(
    tiny: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    with (
        closing(Hub("https://hugingface.example", patience=QUICK)) as hub,
        pytest.raises(Unreachable, match="correct HF_ENDPOINT") as error,
    ):
        prefetch.prefetch(tiny.manifest, tiny.lock, tiny.root, hub, listener=tiny.heard)

    one_line(error.value)
    assert error.value.details == ()
    assert tiny.heard.notes == []


def test_a_login_page_is_recognised_before_a_byte_is_written(tiny: Set) -> None:
    page = Fault("status", status=200, body=b"<html>Log in</html>", headers={"Content-Type": "text/html"})
    tiny.server.faults[BIG] = page
    with pytest.raises(WrongContent, match="web page") as error:
        tiny.run()
    one_line(error.value)
    assert not list(tiny.root.rglob("*.bad"))


def test_another_size_than_the_locks_is_wrong_content(tiny: Set) -> None:
    tiny.server.files[BIG] = FILES[BIG] + b"!"
    with pytest.raises(WrongContent, match="the lock says"):
        tiny.run()
    assert tiny.heard.bytes["fetched"] == sum(map(len, FILES.values())) - len(FILES[BIG])


def test_another_hash_announced_by_the_hub_is_wrong_content_before_the_transfer(tiny: Set, cdn: FaultyHub) -> None:
    tiny.server.cdn = cdn
    tiny.server.files[BIG] = FILES[BIG][:-1] + b"!"
    with pytest.raises(WrongContent, match="sha256"):
        tiny.run()
    assert tiny.heard.bytes["fetched"] == sum(map(len, FILES.values())) - len(FILES[BIG])


# ---- links and tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_a_signed_link_that_has_run_out_is_asked_for_again(tiny: Set, cdn: FaultyHub, relative: bool) -> None:
    """The link is valid for one use: each resume after a broken connection needs a new one."""
    tiny.server.cdn = tiny.server if relative else cdn
    tiny.server.relative = relative
    tiny.server.cdn.link_uses = 1
    tiny.server.cdn.faults[BIG] = Fault("truncated", times=2, at=BLOCK)
    tiny.run()
    assert_whole(tiny)


def test_a_link_that_is_refused_for_ever_ends_without_being_shown(tiny: Set, cdn: FaultyHub) -> None:
    tiny.server.cdn = cdn
    cdn.link_uses = 0
    with pytest.raises(HubError, match="HTTP 403 from the storage") as error:
        tiny.run()
    one_line(error.value)
    for note in tiny.heard.notes:
        assert "SECRET" not in note
        assert "Signature" not in note


def test_the_token_goes_to_the_endpoint_and_nowhere_else(tiny: Set, cdn: FaultyHub) -> None:
    tiny.server.cdn, tiny.server.gated = cdn, "hf_right"
    tiny.run(token="hf_right")
    assert_whole(tiny)
    assert {sent.authorization for sent in tiny.server.log} == {"Bearer hf_right"}
    assert {sent.authorization for sent in cdn.log} == {None}


def test_a_gated_repository_names_the_page_and_the_variable(tiny: Set) -> None:
    tiny.server.gated = "hf_right"
    with pytest.raises(HubError) as error:
        tiny.run(token="hf_wrong")
    line = one_line(error.value)
    assert f"{tiny.server.url}/{tiny.server.repo}" in line
    assert "HF_TOKEN" in line
    assert "hf_wrong" not in line
    assert len(tiny.server.paths) < 20, "a refusal is final"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_by_the_endpoint_itself_is_final(tiny: Set, status: int) -> None:
    tiny.server.refuse = (status, {})
    tiny.server.paths.clear()
    with pytest.raises(HubError, match="HF_TOKEN"):
        tiny.run()
    assert len(tiny.server.paths) == len(FILES)


def test_a_file_that_is_gone_says_run_lock(tiny: Set) -> None:
    del tiny.server.files[BIG]
    with pytest.raises(HubError, match="run `tourkit lock`") as error:
        tiny.run()
    one_line(error.value)
    assert tiny.starts(BIG) == []


# ---- files on the drive ------------------------------------------------------------------------------


def test_a_good_old_file_stays_until_its_successor_is_whole(tiny: Set) -> None:
    old = b"the old version, still good for something"
    tiny.dest(BIG).parent.mkdir(parents=True)
    tiny.dest(BIG).write_bytes(old)
    tiny.server.faults[BIG] = Fault("truncated", at=0)
    with pytest.raises(HubError):
        tiny.run()
    assert tiny.dest(BIG).read_bytes() == old
    tiny.server.faults.clear()
    tiny.run()
    assert_whole(tiny)


def test_a_second_prefetch_into_the_folder_is_refused(tiny: Set) -> None:
    half = len(FILES[BIG]) // 2
    tiny.server.faults[BIG] = Fault("stall", times=1, at=half)
    reached = threading.Event()
    tiny.server.on_sent = lambda total: reached.set() if total >= half else None
    first = threading.Thread(target=tiny.run, kwargs={"patience": QUICK})
    first.start()
    assert reached.wait(30)
    with pytest.raises(LocalError, match="another") as error:
        tiny.run()
    assert str(tiny.root) in one_line(error.value)
    tiny.server.release.set()
    first.join()
    assert_whole(tiny)


def test_the_lock_of_a_process_that_was_killed_is_no_lock(tiny: Set) -> None:
    tiny.root.mkdir()
    (tiny.root / LOCK_FILE).touch()
    tiny.run()
    assert_whole(tiny)


def test_a_damaged_index_is_written_anew(tiny: Set) -> None:
    tiny.run()
    (tiny.root / "bundle.json").write_bytes(b"{")
    tiny.run()
    assert_whole(tiny)
    assert any("bundle.json" in note for note in tiny.heard.notes)


def test_too_little_room_is_said_before_the_first_byte(tiny: Set) -> None:
    size = 1 << 50
    files = tuple(replace(f, size=size) if f.source.path == BIG else f for f in tiny.lock.resolved[0].files)
    tiny.lock = lock.new(tiny.lock.name, tiny.lock.manifest_sha256, [replace(tiny.lock.variants[0], files=files)])
    with pytest.raises(LocalError, match=r"1048576\.\d\d GiB needed, \d+\.\d\d GiB free") as error:
        tiny.run()
    one_line(error.value)
    assert tiny.starts(BIG) == []


CHILD = """
import resource, signal, sys
from pathlib import Path
from tourkit.fetch import prefetch
from tourkit.manifest import lock, manifest
from tourkit.manifest.lock import UnresolvedFile, UnresolvedVariant
from tourkit.manifest.models import PinnedFile
from tourkit.manifest.resolve import resolve
from tourkit.errors import TourkitError
from tourkit.fetch.hub import Hub
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore SIGINT in background jobs
limit = int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
made = manifest.load(Path(sys.argv[1]))
hub = Hub(sys.argv[3])
try:
    prefetch.prefetch(made, lock.read(lock.path_of(made.path)), Path(sys.argv[2]), hub, jobs=2)
except TourkitError as exc:
    sys.exit(f"{exc.exit_code} {exc}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are a POSIX thing")
def test_a_file_larger_than_the_file_system_allows_is_one_clear_line(tiny: Set) -> None:
    lock.write(lock.path_of(tiny.manifest.path), tiny.lock)
    command = [sys.executable, "-c", CHILD, tiny.manifest.path, tiny.root, tiny.server.url, str(BLOCK)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("4 ")
    assert "GiB is too large for one file here" in line
    assert tiny.dest(SMALL).read_bytes() == FILES[SMALL]
    tiny.run()
    assert_whole(tiny)


@pytest.mark.skipif(sys.platform != "linux", reason="the small drive is a tmpfs in a namespace")
def test_a_drive_that_fills_up_is_one_clear_line(tiny: Set) -> None:
    lock.write(lock.path_of(tiny.manifest.path), tiny.lock)
    tiny.root.mkdir()
    nobody_looks = "prefetch.check_space = lambda *_: None  # the drive had room when it was asked\n"
    code = CHILD.replace("limit = int", nobody_looks + "limit = int")
    child = [sys.executable, "-c", code, tiny.manifest.path, tiny.root, tiny.server.url, "0"]
    done = subprocess.run([sys.executable, full_disk.__file__, tiny.root, *child], capture_output=True, text=True)
    if done.returncode == full_disk.NOT_ALLOWED:
        pytest.skip(done.stderr)
    [line] = done.stderr.splitlines()
    assert line.startswith("4 ")
    assert "no space left on this drive" in line


FOLDERS = ["models", FOLDER, "templates", "licenses"]
IN_PLACE = ["part", "lock"]  # files that a prefetch writes into


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs, and few may make links there")
@pytest.mark.parametrize("name", [*FOLDERS, *IN_PLACE])
@pytest.mark.parametrize("kind", ["a symbolic link", "a FIFO"])
def test_a_prefetch_does_not_write_through_what_is_no_folder_and_no_plain_file(
    tiny: Set, tmp_path: Path, name: str, kind: str
) -> None:
    path = {"part": tiny.part(BIG), "lock": tiny.root / LOCK_FILE}.get(name, tiny.root / name)
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = tmp_path / "outside"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif name in IN_PLACE:
        outside.write_bytes(b"of somebody else")
        path.symlink_to(outside)
    else:
        outside.mkdir()
        path.symlink_to(outside)

    with pytest.raises(LocalError, match=f"it is {kind}") as caught:
        tiny.run()

    assert str(path) in one_line(caught.value)
    if outside.is_dir():
        assert list(outside.iterdir()) == []
    elif outside.exists():
        assert outside.read_bytes() == b"of somebody else"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no FIFOs, and few may make links there")
@pytest.mark.parametrize("name", [f"{FOLDER}/{BIG}", "bundle.json", "SHA256SUMS"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_link_or_a_fifo_at_a_final_name_is_replaced_and_not_followed(
    tiny: Set, tmp_path: Path, name: str, kind: str
) -> None:
    path = tiny.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = tmp_path / "outside"
    outside.write_bytes(FILES[BIG])  # the right bytes, but not in the bundle
    if kind == "link":
        path.symlink_to(outside)
    else:
        os.mkfifo(path)

    tiny.run()

    assert_whole(tiny)
    assert not path.is_symlink()
    assert path.is_file()
    assert outside.read_bytes() == FILES[BIG]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_line(tiny: Set) -> None:
    tiny.root.mkdir(mode=0o500)
    with pytest.raises(LocalError, match="permission"):
        tiny.run()


def test_a_file_where_the_bundle_should_be_is_one_clear_line(tiny: Set) -> None:
    tiny.root.write_text("a file")
    with pytest.raises(LocalError) as error:
        tiny.run()
    one_line(error.value)


def test_ctrl_c_stops_at_once_and_keeps_what_arrived(tiny: Set) -> None:
    """The hub stays silent: only the interrupt can end the threads before the stall limit of 20 s."""
    half = len(FILES[BIG]) // 2
    tiny.server.faults[BIG] = Fault("stall", at=half)
    lock.write(lock.path_of(tiny.manifest.path), tiny.lock)
    reached = threading.Event()
    tiny.server.on_sent = lambda total: reached.set() if total >= half else None
    command = [sys.executable, "-c", CHILD, tiny.manifest.path, tiny.root, tiny.server.url, "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert reached.wait(60)
        child.send_signal(2)
        _, errors = child.communicate()
    assert "KeyboardInterrupt" in errors
    assert tiny.starts(BIG) == [0]  # after the stall limit they would have asked again
    assert not (tiny.root / LOCK_FILE).exists()
    assert not (tiny.root / "bundle.json").exists()
    had = tiny.part(BIG).stat().st_size
    tiny.server.faults.clear()
    tiny.server.log.clear()
    tiny.run()
    assert_whole(tiny)
    assert tiny.starts(BIG) == [had]
