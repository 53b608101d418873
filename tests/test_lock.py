"""A lock says which bytes a manifest means. A lock that no longer fits the manifest is refused."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tourkit.errors import HubError, LocalError, ManifestError, Unreachable
from tourkit.manifest import lock, manifest, models
from tourkit.manifest import resolve as resolving
from tourkit.manifest.lock import LockedVariant, UnresolvedFile, UnresolvedVariant
from tourkit.manifest.models import HubFile, PinnedFile, Source, VariantId

FIRST, SECOND = "1" * 40, "2" * 40
SHA = "a" * 64


@dataclass(frozen=True, slots=True)
class RepoInfo:
    commit: str


@dataclass(slots=True)
class FolderHub:
    """A hub made of folders, <root>/<owner>/<name>/<commit>/..., with branches in `heads`. It records its calls.

    Files that end in .gguf or .safetensors are "LFS": their SHA-256 is in the tree.
    """

    root: Path
    heads: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    extra: list[HubFile] = field(default_factory=list)

    def info(self, repo: str, revision: str) -> RepoInfo:
        self.calls.append(f"info {repo}@{revision}")
        return RepoInfo(self.heads.get(revision, revision))

    def tree(self, repo: str, commit: str) -> tuple[HubFile, ...]:
        self.calls.append(f"tree {repo}@{commit}")
        root = self.root / repo / commit
        files = [self._file(path, path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file()]
        return (*files, *self.extra)

    def read(self, repo: str, commit: str, file: HubFile) -> bytes:
        self.calls.append(f"read {file.path}")
        return (self.root / repo / commit / file.path).read_bytes()

    def _file(self, path: Path, name: str) -> HubFile:
        content = path.read_bytes()
        lfs = path.suffix in (".gguf", ".safetensors")
        return HubFile(name, len(content), hashlib.sha256(content).hexdigest() if lfs else None)

    def put(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = self.root / repo / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


WEIGHTS = {
    "m-Q4_K_M.gguf": b"four",
    "m-Q4_K_M-fp16.gguf": b"mixed",
    "m-Q8_0.gguf": b"eight!",
    "README.md": b"# m\n",
}
TENSORS = {
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "original/params.json": b"[]",
    "pytorch_model.bin": b"pickle",
}


@pytest.fixture
def hub(tmp_path):
    made = FolderHub(tmp_path / "hub", heads={"main": FIRST})
    made.put("me/m-GGUF", FIRST, WEIGHTS)
    made.put("me/m", FIRST, TENSORS)
    return made


def variant(quant="Q4_K_M", format_="gguf", repo="me/m-GGUF", revision="main", files=("m-Q4_K_M.gguf",)):
    return (
        f'[[models.m.variants]]\nformat = "{format_}"\nquant = "{quant}"\nrepo = "{repo}"\n'
        f'revision = "{revision}"\nfiles = {json.dumps(list(files))}\n'
    )


BF16 = variant("BF16", "safetensors", "me/m", files=("model-*.safetensors", "*.json"))


@pytest.fixture
def load(tmp_path):
    """Write a set with one model that has the given variants, and load it."""

    def write(*variants: str, name: str = "set") -> models.Manifest:
        path = tmp_path / f"{name}.toml"
        head = f'schema = 1\nname = "{name}"\n[roles]\ntool = ["m"]\n'
        model = '[models.m]\nrepo = "me/m"\nlicense = "mit"\ncontext = 8\n'
        path.write_text(head + model + "".join(variants or (variant(),)), encoding="utf-8")
        return manifest.load(path)

    return write


def refusal(call, *args) -> str:
    with pytest.raises(ManifestError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def resolve(*args, **options) -> lock.Lock:
    """The lock that resolving makes; every variant that was asked for is resolved."""
    made = resolving.resolve(*args, **options)
    assert made.failed == {}
    return made.lock


# resolve


def test_resolve_pins_commit_size_and_sha256_of_exactly_the_matching_files(load, hub):
    wanted = load(variant(), BF16)

    made = resolve(wanted, hub)

    bf16, q4 = made.variants
    assert made.name == "set"
    assert made.manifest_sha256 == wanted.digest
    source = Source("me/m-GGUF", FIRST, "m-Q4_K_M.gguf")
    weights = PinnedFile("models/m/Q4_K_M/m-Q4_K_M.gguf", 4, hashlib.sha256(b"four").hexdigest(), source)
    assert q4 == LockedVariant("m", "Q4_K_M", "gguf", "me/m-GGUF", "main", FIRST, (weights,))
    assert [file.source.path for file in bf16.files] == sorted(TENSORS.keys() - {"pytorch_model.bin"})
    assert {file.source.path: file.sha256 for file in bf16.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in TENSORS.items() if path[-4:] != ".bin"
    }
    assert made.resolved == made.variants


def test_the_hub_is_asked_once_per_repository_and_revision_and_reads_only_small_files_that_are_taken(load, hub):
    wanted = load(
        variant(), variant("Q8_0", files=["m-Q8_0.gguf", "README.md"]), variant("F16", files=["*fp16*", "*.md"])
    )

    resolve(wanted, hub)

    assert hub.calls == ["info me/m-GGUF@main", f"tree me/m-GGUF@{FIRST}", "read README.md"]


def test_two_revisions_of_one_repository_are_two(load, hub):
    hub.put("me/m-GGUF", SECOND, {"m-Q8_0.gguf": b"other"})

    made = resolve(load(variant(), variant("Q8_0", revision=SECOND, files=["m-Q8_0.gguf"])), hub)

    assert [v.commit for v in made.variants] == [FIRST, SECOND]


def test_progress_gets_a_line_per_repository(load, hub):
    lines: list[str] = []

    resolve(load(), hub, lines.append)

    assert lines == [f"me/m-GGUF@main: commit {FIRST}, 4 files"]


def test_a_moved_branch_moves_the_lock_and_the_changes_say_so(load, hub):
    wanted = load()
    old = resolve(wanted, hub)
    hub.put("me/m-GGUF", SECOND, {**WEIGHTS, "m-Q4_K_M.gguf": b"newer"})
    hub.heads["main"] = SECOND

    new = resolve(wanted, hub, known=old)

    assert new.variants[0].commit == SECOND
    assert new.variants[0].files[0].size == 5
    was, now = (one.variants[0].files[0].sha256[:8] for one in (old, new))
    assert lock.changes(old, new) == [
        "m Q4_K_M: commit 1111111… → 2222222…",
        f"m Q4_K_M: m-Q4_K_M.gguf changed, SHA-256 {was}… → {now}…",
    ]


def test_small_files_of_a_known_commit_are_not_read_again(load, hub):
    wanted = load(BF16)
    old = resolve(wanted, hub)
    hub.calls.clear()

    assert resolve(wanted, hub, known=old) == old
    assert not [call for call in hub.calls if call.startswith("read")]


def test_small_files_of_another_commit_are_read(load, hub):
    wanted = load(BF16)
    old = resolve(wanted, hub)
    hub.put("me/m", SECOND, {**TENSORS, "config.json": b"[]"})
    hub.heads["main"] = SECOND
    hub.calls.clear()

    new = resolve(wanted, hub, known=old)

    assert "read config.json" in hub.calls
    assert lock.changes(old, new)[1].startswith("m BF16: config.json changed")


def test_a_pattern_that_matches_nothing_names_model_quant_pattern_and_near_files(load, hub):
    message = refusal(resolve, load(variant(files=["m-Q4_K_S.gguf"])), hub)

    assert all(part in message for part in ("set.toml", "m Q4_K_M", "'m-Q4_K_S.gguf'", "m-Q4_K_M.gguf", "me/m-GGUF"))


def test_patterns_are_case_sensitive(load, hub):
    assert "matches nothing" in refusal(resolve, load(variant(files=["M-q4_k_m.gguf"])), hub)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../../evil.gguf", "leaves its folder"),
        ("/etc/evil.gguf", "absolute"),
        ("a\\b.gguf", "Windows"),
        ("aux.gguf", "device name"),
        ("M-Q4_K_M.gguf", "are the same name on exFAT"),
        ("weights.bin", "pickle"),
    ],
)
def test_a_hostile_name_in_the_hubs_tree_is_refused(load, hub, path, reason):
    hub.extra.append(HubFile(path, 1, SHA))

    message = refusal(resolve, load(variant(files=["*"])), hub)

    assert reason in message
    assert "m Q4_K_M" in message
    assert f"me/m-GGUF@{FIRST}" in message


def test_a_hostile_name_that_no_pattern_takes_is_left_alone(load, hub):
    hub.extra.append(HubFile("aux.c", 1, None))

    assert len(resolve(load(), hub).variants[0].files) == 1


def test_a_variant_without_a_file_of_its_format_is_refused(load, hub):
    assert "no .gguf file" in refusal(resolve, load(variant(files=["README.md"])), hub)


@pytest.mark.parametrize("answer", ["main", "1" * 39, SECOND])
def test_a_hub_that_answers_with_another_commit_is_not_believed(load, hub, answer):
    hub.heads[FIRST] = answer

    with pytest.raises(HubError, match="the hub answered with commit"):
        resolve(load(variant(revision=FIRST)), hub)


def test_a_malformed_sha256_from_the_hub_is_not_believed(load, hub):
    hub.extra.append(HubFile("x.gguf", 1, "A" * 64))

    with pytest.raises(HubError, match=r"x\.gguf: the hub's SHA-256 is malformed"):
        resolve(load(variant(files=["x.gguf"])), hub)


# resolving a part


class RefusingHub(FolderHub):
    """A FolderHub that refuses some repositories."""

    refused: dict[str, HubError]

    def info(self, repo: str, revision: str) -> RepoInfo:
        answer = super().info(repo, revision)  # records the call
        if repo in self.refused:
            raise self.refused[repo]
        return answer


@pytest.fixture
def refusing(hub):
    made = RefusingHub(hub.root, hub.heads)
    made.refused = {"me/m": HubError("me/m is gated: accept the licence")}
    return made


Q4, BF16_ID = VariantId("m", "Q4_K_M"), VariantId("m", "BF16")
OPEN = UnresolvedVariant("m", "BF16", "safetensors", "me/m", "main", None, (), complete=False)


def test_a_repository_that_is_refused_does_not_block_the_others(load, refusing, tmp_path):
    wanted = load(variant(), BF16)

    made = resolving.resolve(wanted, refusing)

    assert [v.id for v in made.lock.resolved] == [Q4]
    assert made.lock.variants[0] == OPEN
    assert made.failed == {BF16_ID: refusing.refused["me/m"]}
    lock.write(tmp_path / "set.lock.json", made.lock)
    assert lock.read(tmp_path / "set.lock.json") == made.lock
    lock.check_current(wanted, made.lock)


def test_a_refusal_is_asked_for_once(load, refusing):
    resolving.resolve(load(variant(), BF16, BF16.replace('"BF16"', '"FP16"')), refusing)

    assert refusing.calls.count("info me/m@main") == 1


def test_a_variant_that_is_refused_keeps_what_the_earlier_lock_knows(load, hub, refusing):
    wanted = load(variant(), BF16)
    old = resolve(wanted, hub)

    made = resolving.resolve(wanted, refusing, known=old)

    assert made.lock == old
    assert list(made.failed) == [BF16_ID]


def test_an_entry_that_no_longer_fits_the_manifest_is_not_kept(load, hub, refusing):
    old = resolve(
        load(variant(), BF16.replace("main", "dev")), FolderHub(hub.root, heads={"dev": FIRST, "main": FIRST})
    )

    assert resolving.resolve(load(variant(), BF16), refusing, known=old).lock.variants[0] == OPEN


def test_when_every_variant_is_refused_nothing_is_made_and_each_reason_is_named(load, refusing):
    refusing.refused["me/m-GGUF"] = HubError("me/m-GGUF: the hub asks for a token")

    with pytest.raises(HubError, match=r"\(and 1 more\)$") as caught:
        resolving.resolve(load(variant(), BF16), refusing)

    assert sorted(caught.value.details) == sorted(str(error) for error in refusing.refused.values())


def test_when_nobody_answers_the_other_repositories_are_not_asked(load, refusing):
    refusing.refused["me/m"] = Unreachable("hub.example: no answer")
    wanted = load(variant(), BF16, variant("Q8_0", repo="me/n", files=["m-Q8_0.gguf"]))

    made = resolving.resolve(wanted, refusing)

    assert [v.id for v in made.lock.resolved] == [Q4]
    assert set(made.failed) == {BF16_ID, VariantId("m", "Q8_0")}
    assert "info me/n@main" not in refusing.calls


def test_a_part_is_resolved_and_the_rest_of_the_lock_stays(load, hub):
    wanted = load(variant(), BF16)
    old = resolve(wanted, hub)
    hub.heads["main"] = SECOND
    hub.put("me/m-GGUF", SECOND, WEIGHTS)
    hub.put("me/m", SECOND, TENSORS)

    new = resolve(wanted, hub, known=old, only=[Q4])

    assert [v.commit for v in new.variants] == [FIRST, SECOND]
    assert new.variants[0] == old.variants[0]


def test_a_part_without_an_earlier_lock_leaves_the_rest_unresolved(load, hub):
    made = resolve(load(variant(), BF16), hub, only=[Q4])

    assert [v.id for v in made.resolved] == [Q4]
    assert made.variants[0] == OPEN


# the file


def test_a_lock_is_written_stably_and_reads_back_equal(load, hub, tmp_path):
    made = resolve(load(variant(), BF16), hub)
    path = tmp_path / "set.lock.json"

    lock.write(path, made)
    first = path.read_bytes()
    lock.write(path, lock.read(path))

    assert path.read_bytes() == first
    assert lock.read(path) == made
    assert made.sha256 == hashlib.sha256(first).hexdigest()
    assert first.endswith(b"}\n")
    assert list(json.loads(first)) == ["manifest_sha256", "name", "schema", "variants"]


def test_the_order_in_which_a_lock_is_made_does_not_show(load, hub, tmp_path):
    made = resolve(load(variant(), BF16), hub)
    shuffled = [replace(v, files=v.files[::-1]) for v in made.variants[::-1]]

    assert lock.new(made.name, made.manifest_sha256, shuffled) == made


def test_another_layout_of_the_same_json_is_the_same_lock(load, hub, tmp_path):
    made = resolve(load(), hub)
    path = tmp_path / "set.lock.json"
    path.write_text(json.dumps(json.loads(lock.render(made))), encoding="utf-8")

    assert lock.read(path) == made


def test_path_of_keeps_dots_in_the_name():
    assert lock.path_of(Path("a/tour-20gb.toml")) == Path("a/tour-20gb.lock.json")
    assert lock.path_of(Path("v1.2.toml")) == Path("v1.2.lock.json")


def test_an_unwritable_folder_is_told(tmp_path, load, hub):
    made = resolve(load(), hub)

    with pytest.raises(LocalError, match=r"absent.*cannot be written"):
        lock.write(tmp_path / "absent" / "set.lock.json", made)


def test_a_missing_lock_names_the_command(tmp_path):
    path = tmp_path / "set.lock.json"

    assert refusal(lock.read, path) == f"{path}: there is no lock yet: run `tourkit lock {tmp_path / 'set.toml'}`"


UNKNOWN = {"size": None, "sha256": None}


def locked(quant: str = "A", **sha256: str) -> LockedVariant:
    """Return a variant of m with files of one byte. The names are given without .gguf."""
    folder = VariantId("m", quant).folder
    files = (
        PinnedFile(f"{folder}/{name}.gguf", 1, digest, Source("me/m", FIRST, f"{name}.gguf"))
        for name, digest in sha256.items()
    )
    return LockedVariant("m", quant, "gguf", "me/m", "main", FIRST, tuple(files))


def unresolved(*files: UnresolvedFile, commit: str | None = FIRST, complete: bool = True) -> UnresolvedVariant:
    return UnresolvedVariant("m", "A", "gguf", "me/m", "main", commit, files, complete=complete)


KNOWN = UnresolvedFile("a.gguf", 1, SHA)
UNRESOLVED = {
    "no commit": unresolved(KNOWN, commit=None),
    "no files": unresolved(),
    "open list of files": unresolved(KNOWN, complete=False),
    "no size": unresolved(UnresolvedFile("a.gguf", None, SHA)),
    "no hash": unresolved(UnresolvedFile("a.gguf", 1, None)),
    "no hash of one": unresolved(KNOWN, UnresolvedFile("b.gguf", 1, None)),
}


def test_a_variant_of_which_everything_is_known_is_resolved(tmp_path):
    lock.write(tmp_path / "x.lock.json", lock.new("x", SHA, [unresolved(KNOWN)]))

    assert lock.read(tmp_path / "x.lock.json").resolved == (locked(a=SHA),)


@pytest.mark.parametrize("part", UNRESOLVED.values(), ids=UNRESOLVED.keys())
def test_a_variant_is_resolved_only_when_everything_is_known(part, tmp_path):
    lock.write(tmp_path / "x.lock.json", lock.new("x", SHA, [part]))
    again = lock.read(tmp_path / "x.lock.json")

    assert again.variants == (part,)
    assert again.resolved == ()


def raw() -> dict:
    files = [{"path": "a.gguf", "size": 1, "sha256": SHA}]
    one = {
        "model": "m",
        "quant": "Q4",
        "format": "gguf",
        "repo": "me/m",
        "revision": "main",
        "commit": FIRST,
        "complete": True,
        "files": files,
    }
    return {"schema": 1, "name": "set", "manifest_sha256": SHA, "variants": [one]}


def put(content: dict, keys: str, value: object) -> dict:
    """Return `content` with the value at a dotted path set, or removed if the value is `...`."""
    place = content
    *folders, last = [int(key) if key.isdigit() else key for key in keys.split(".")]
    for key in folders:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


BAD = [
    ("schema", 2, "schema: 2 is refused"),
    ("name", "../x", "name: '../x' is refused"),
    ("extra", 1, "extra: unknown key"),
    ("variants", ..., "variants: missing"),
    ("manifest_sha256", "A" * 64, "manifest_sha256: "),
    ("variants.0.model", "..", "variants[0].model: '..' is refused"),
    ("variants.0.model", "nul", "variants[0].model: 'nul' is a device name"),
    ("variants.0.quant", "a/b", "variants[0].quant: 'a/b' is refused"),
    ("variants.0.quant", "Q4.", "variants[0].quant: 'Q4.' has a name that ends with a dot"),
    ("variants.0.format", "pickle", "variants[0].format: 'pickle' is refused"),
    ("variants.0.commit", "1" * 39, "variants[0].commit: "),
    ("variants.0.commit", "1" * 40 + "\n", "variants[0].commit: "),
    ("variants.0.commit", "F" * 40, "40 lower-case hex digits"),
    ("variants.0.complete", ..., "variants[0].complete: missing"),
    ("variants.0.files.0.size", -1, "variants[0].files[0].size: -1 is refused"),
    ("variants.0.files.0.size", "1", "variants[0].files[0].size: '1' is refused"),
    ("variants.0.files.0.size", 1.5, "variants[0].files[0].size: 1.5 is refused"),
    ("variants.0.files.0.sha256", "a" * 63, "variants[0].files[0].sha256: "),
    ("variants.0.files.0.path", "../a", "variants[0].files[0].path: '../a' leaves its folder"),
    ("variants.0.files.0.path", "a.bin", "is a pickle"),
    ("variants.0.files.0.sha265", SHA, "did you mean 'sha256'?"),
]


@pytest.mark.parametrize(("keys", "value", "fragment"), BAD)
def test_a_bad_lock_is_refused_with_file_and_key(tmp_path, keys, value, fragment):
    path = tmp_path / "set.lock.json"
    path.write_text(json.dumps(put(raw(), keys, value)), encoding="utf-8")

    message = refusal(lock.read, path)

    assert message.startswith(f"{path}: ")
    assert fragment in message


def test_names_that_collide_in_a_lock_are_refused(tmp_path):
    path = tmp_path / "set.lock.json"
    content = raw()
    content["variants"][0]["files"].append({"path": "A.gguf", **UNKNOWN})
    path.write_text(json.dumps(content), encoding="utf-8")

    assert "variants[0].files: 'a.gguf' and 'A.gguf'" in refusal(lock.read, path)


def test_a_variant_twice_in_a_lock_is_refused(tmp_path):
    path = tmp_path / "set.lock.json"
    content = raw()
    content["variants"].append({**content["variants"][0], "quant": "q4"})
    path.write_text(json.dumps(content), encoding="utf-8")

    assert "variants[1]: m q4 is also variants[0]" in refusal(lock.read, path)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"{\n  oops\n}", ":2: JSON syntax"),
        (b"\xff", "not UTF-8"),
        (b"[]", "the file: [] is refused"),
        (b"[" * 100_000, "too deep"),
        (b'{"schema": ' + b"1" * 5000 + b"}", "too long"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, content, fragment):
    path = tmp_path / "set.lock.json"
    path.write_bytes(content)

    message = refusal(lock.read, path)

    assert message.startswith(str(path))
    assert fragment in message


# agreement with the manifest


def test_a_fresh_lock_is_current(load, hub):
    wanted = load(variant(), BF16)

    lock.check_current(wanted, resolve(wanted, hub))


STALE = {
    "one more variant": ([variant(), variant("Q8_0", files=["m-Q8_0.gguf"])], "does not hold m Q8_0"),
    "another variant": ([variant("Q8_0", files=["m-Q8_0.gguf"])], "does not hold m Q8_0"),
    "another repository": ([variant(repo="you/m-GGUF")], "m Q4_K_M has repo 'me/m-GGUF', the manifest 'you/m-GGUF'"),
    "another revision": ([variant(revision="v2")], "has revision 'main', the manifest 'v2'"),
    "another pattern": ([variant(files=["m-Q8_0.gguf"])], "holds 'm-Q4_K_M.gguf', which no pattern"),
    "one more pattern": ([variant(files=["m-Q4_K_M.gguf", "*.md"])], "no file for the manifest's pattern '*.md'"),
    "a pattern that takes the same": ([variant(files=["*-Q4_K_M.gguf"])], "another version of the manifest"),
}


@pytest.mark.parametrize(("variants", "difference"), STALE.values(), ids=STALE.keys())
def test_a_stale_lock_is_refused_with_the_difference_and_the_fix(load, hub, variants, difference):
    made = resolve(load(variant()), hub)
    wanted = load(*variants)

    message = refusal(lock.check_current, wanted, made)

    assert difference in message
    assert message.endswith(f"run `tourkit lock {wanted.path}`")
    assert message.startswith(f"{lock.path_of(wanted.path)}: ")


def test_a_variant_that_the_manifest_dropped_is_refused(load, hub):
    made = resolve(load(variant(), BF16), hub)

    assert "holds m BF16, which the manifest no longer names" in refusal(lock.check_current, load(variant()), made)


def test_the_lock_of_another_set_is_refused(load, hub):
    made = resolve(load(name="other"), hub)

    assert "this is the lock of 'other', not of 'set'" in refusal(lock.check_current, load(), made)


def test_a_lock_edited_by_hand_to_another_commit_is_refused(load, hub):
    wanted = load(variant(revision=FIRST))
    made = resolve(wanted, hub)
    edited = lock.new(made.name, made.manifest_sha256, [replace(made.variants[0], commit=SECOND)])

    assert f"is at commit {SECOND}, the manifest at {FIRST}" in refusal(lock.check_current, wanted, edited)


def test_a_lock_with_an_open_list_of_files_is_current_all_the_same(load):
    wanted = load(BF16)
    part = UnresolvedVariant("m", "BF16", "safetensors", "me/m", "main", None, (), complete=False)

    lock.check_current(wanted, lock.new("set", wanted.digest, [part]))


# changes


def test_no_change_is_no_line(load, hub):
    made = resolve(load(), hub)

    assert lock.changes(made, made) == []


def test_added_removed_and_resolved_variants_are_lines():
    one = unresolved(UnresolvedFile("a.gguf", 1, None), commit=None, complete=False)
    done, gone, fresh = (locked(quant, a=SHA, c=SHA) for quant in "ABC")
    old, new = lock.new("x", SHA, [one, gone]), lock.new("x", SHA, [done, fresh])

    assert lock.changes(old, new) == [
        "m A: commit unresolved → 1111111…",
        "m A: c.gguf added",
        "m A: a.gguf resolved",
        "m A: list of files is now complete",
        "m B: removed",
        "m C: added at 1111111…, 2 files",
    ]
    assert lock.changes(None, new) == ["m A: added at 1111111…, 2 files", "m C: added at 1111111…, 2 files"]


def test_a_variant_that_moved_to_another_repository_is_a_line():
    old = lock.new("x", SHA, [locked(a=SHA)])
    new = lock.new("x", SHA, [replace(locked(b=SHA), repo="you/m")])

    assert lock.changes(old, new) == [
        "m A: source me/m@main → you/m@main",
        "m A: a.gguf removed",
        "m A: b.gguf added",
    ]
