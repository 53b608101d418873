"""Compare a bundle on disk with its index: every byte, or only presence and sizes. Never writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tourkit.bundle.index import INDEX, OWN_FILES, SUMS, no_bundle, parse_index, render_sums
from tourkit.bundle.scan import Contents, scan, sha256_of_all
from tourkit.errors import ManifestError, NotSo, UsageError
from tourkit.files import read_below
from tourkit.manifest.paths import check_path


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not as it should be."""

    path: str
    kind: str  # missing, damaged or extra
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `checked_files`: files of the index, bundle.json and SHA256SUMS. `checked_bytes`: read."""

    problems: tuple[Problem, ...]
    checked_files: int
    checked_bytes: int

    @property
    def missing(self) -> tuple[str, ...]:
        return self._paths("missing")

    @property
    def damaged(self) -> tuple[str, ...]:
        return self._paths("damaged")

    @property
    def extra(self) -> tuple[str, ...]:
        return self._paths("extra")

    @property
    def ok(self) -> bool:
        return not self.problems

    def _paths(self, kind: str) -> tuple[str, ...]:
        return tuple(problem.path for problem in self.problems if problem.kind == kind)


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files that should be there, without bundle.json and SHA256SUMS."""

    hashes: dict[str, str]  # path: SHA-256
    sizes: dict[str, int]  # path: bytes; empty if only SHA256SUMS could be read, which has no sizes


def verify(
    root: Path,
    *,
    quick: bool = False,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Compare the bundle at `root` with its index: every byte, or with `quick` names and sizes only. Never writes.

    `jobs`: hashing threads (default: the cores this process may use, at most 8). `progress` gets the bytes hashed, one
    call at a time. Raises UsageError for no folder, NotSo for no bundle.
    """
    if not root.is_dir():
        raise UsageError(f"no folder {root}: give the folder that `tourkit prefetch` wrote")
    found = scan(root)
    problems: list[Problem] = []
    listing, read = _read_listing(root, found, problems)
    hashes, sizes = (listing.hashes, listing.sizes) if listing else ({}, {})
    present: dict[str, int] = {}
    for path in hashes:
        if problem := _presence(path, sizes.get(path), found):
            problems.append(problem)
        else:
            present[path] = found.plain[path]
    if not quick:
        read += sum(present.values())
        for path, digest in sha256_of_all(root, present, jobs, progress).items():
            if isinstance(digest, OSError):
                problems.append(Problem(path, "damaged", f"cannot be read: {digest.strerror or digest}"))
            elif digest != hashes[path]:
                detail = f"sha256 is {digest[:12]}…, it should be {hashes[path][:12]}…"
                problems.append(Problem(path, "damaged", detail))
    if listing is not None:
        problems.extend(_extra(found, listing))
    problems.sort(key=lambda problem: (problem.kind, problem.path))
    return Report(tuple(problems), len(hashes) + 2, read)


def _read_listing(root: Path, found: Contents, problems: list[Problem]) -> tuple[_Listing | None, int]:
    """Return what bundle.json lists, and the bytes read for it; SHA256SUMS is used if bundle.json cannot be.

    The listing is None if neither can be read. Adds the errors of these two files to `problems`. Raises NotSo if both
    are missing.
    """
    index_data = _read_own(root, INDEX, found, problems)
    sums_data = _read_own(root, SUMS, found, problems)
    if [problem.kind for problem in problems] == ["missing", "missing"]:
        raise NotSo(no_bundle(root))
    read = len(index_data or b"") + len(sums_data or b"")
    if index_data is not None:
        try:
            index = parse_index(index_data, str(root / INDEX))
        except NotSo:
            detail = "its content does not match its own digest; the files were checked against SHA256SUMS"
            problems.append(Problem(INDEX, "damaged", detail))
        else:
            if sums_data is not None and sums_data != render_sums(index, index_data):
                problems.append(Problem(SUMS, "damaged", f"it differs from the list in {INDEX}"))
            hashes = {file.path: file.sha256 for file in index.files}
            return _Listing(hashes, {file.path: file.size for file in index.files}), read
    if sums_data is None:
        return None, read
    hashes, whole = _parse_sums(sums_data)
    if not whole:
        problems.append(Problem(SUMS, "damaged", "not every line is a hash and a path, sorted by path"))
    return _Listing(hashes, {}) if hashes else None, read


def _read_own(root: Path, name: str, found: Contents, problems: list[Problem]) -> bytes | None:
    problem = _presence(name, None, found)
    if problem is None:
        try:
            return read_below(root, name)
        except OSError as exc:
            problem = Problem(name, "damaged", f"cannot be read: {exc.strerror or exc}")
    problems.append(problem)
    return None


def _parse_sums(data: bytes) -> tuple[dict[str, str], bool]:
    """Return SHA-256 by path of the usable lines, without bundle.json, and whether all lines are as tourkit writes."""
    sums: dict[str, str] = {}
    for line in data.decode(errors="replace").splitlines():
        digest, _, path = line.partition("  ")
        try:
            check_path(path, SUMS)
        except ManifestError:
            continue
        if len(digest) == 64 and not set(digest) - set("0123456789abcdef"):
            sums[path] = digest
    rendered = "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()
    whole = rendered == data and INDEX in sums
    sums.pop(INDEX, None)
    return sums, whole


def _presence(path: str, expected: int | None, found: Contents) -> Problem | None:
    """Return a problem unless `path` is a plain file of `expected` bytes (None: any size)."""
    size = found.plain.get(path)
    if size is not None:
        if expected in (None, size):
            return None
        return Problem(path, "damaged", f"{size} bytes, it should be {expected}")
    if what := found.other.get(path):
        return Problem(path, "damaged", what)
    for parent in PurePosixPath(path).parents:
        if why := found.unreadable.get("" if parent.name == "" else str(parent)):
            return Problem(path, "damaged", why)
    return Problem(path, "missing", "not there")


def _extra(found: Contents, listing: _Listing) -> list[Problem]:
    """Return what is there but not listed. An unreadable folder counts too, unless a listed file is below it."""
    listed = listing.hashes
    extra = {path: _origin(path) for path in found.plain if path not in listed and path not in OWN_FILES}
    for path, what in found.other.items():
        if path not in listed and path not in (INDEX, SUMS):
            extra[path] = what
    for folder, why in found.unreadable.items():
        if folder and not any(path.startswith(f"{folder}/") for path in listed):
            extra[folder] = why
    return [Problem(_shown(path), "extra", detail) for path, detail in extra.items()]


def _origin(path: str) -> str:
    """Say where an unlisted file may come from, so that the reader knows if it can be deleted."""
    name = path.rpartition("/")[2]
    if name.endswith(".part") or name == ".prefetch.lock":
        command = "tourkit wheels" if path.startswith("wheels/") else "tourkit prefetch"
        return f"left by an interrupted download; `{command}` resumes it"
    if name.endswith(".bad"):
        return "set aside because its bytes were wrong; safe to delete"
    if name.endswith(".whl"):
        return "a wheel that is not in the index; `tourkit wheels --add DIR` indexes it"
    if name == ".DS_Store" or name.startswith("._") or path.startswith((".Trashes/", ".Spotlight-V100/")):
        return "written by macOS; safe to delete"
    if name in ("Thumbs.db", "desktop.ini") or path.startswith(("System Volume Information/", "$RECYCLE.BIN/")):
        return "written by Windows; safe to delete"
    return "not in the index"


def _shown(path: str) -> str:
    return path.encode(errors="backslashreplace").decode()
