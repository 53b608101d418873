"""The index of a bundle: the content of bundle.json and SHA256SUMS as data, read and written here only.

No other file is read. verify.py compares the index with the files on disk.
"""

import hashlib
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from tourkit.defaults import UNSTATED, RoleDefaults, Sampling, stated
from tourkit.errors import NotSo, UsageError
from tourkit.files import read_below, write_atomic
from tourkit.headers.config import values_of
from tourkit.manifest.assets import FOLDER, env_problem, location
from tourkit.manifest.defaults import raw_defaults, role_defaults, sampling_of
from tourkit.manifest.models import Asset, Model, PinnedFile, Source, VariantId
from tourkit.manifest.paths import check_distinct, check_path
from tourkit.manifest.validation import raise_problems, schema_problems

FORMAT = 1
INDEX = "bundle.json"
SUMS = "SHA256SUMS"
SIGNATURE = "bundle.sig"
OWN_FILES = (INDEX, SUMS, SIGNATURE)  # never in the index
_MOST_VALUES = 4_000_000  # of an index, which has 7 for each file; Python takes about 100 bytes for each
_RESTORE = "copy it again from the bundle it came from, or run `tourkit prefetch` again"


@dataclass(frozen=True, slots=True)
class BundleModel:
    """One model as bundle.json stores it; `context` is in tokens."""

    id: str
    repo: str
    license: str
    context: int
    family: str | None
    gated: bool | None
    adapts: str | None = None  # the id of the model this LoRA adapter is for
    chat_template: str | None = None  # Jinja source, for weights without a chat template
    sampling: Sampling = UNSTATED  # what its publisher states

    @staticmethod
    def of(m: Model) -> "BundleModel":
        """Return the bundle's entry for a model of the manifest."""
        return BundleModel(m.id, m.repo, m.license, m.context, m.family, m.gated, m.adapts, m.chat_template, m.sampling)


@dataclass(frozen=True, slots=True)
class BundleVariant:
    """One quantised form of a model. Its files are the files of the index below `id.folder`."""

    model: str
    quant: str
    format: str
    repo: str
    revision: str
    commit: str

    @property
    def id(self) -> VariantId:
        return VariantId(self.model, self.quant)


@dataclass(frozen=True, slots=True)
class BundleAsset:
    """One side asset as bundle.json stores it. `path`: its file in the index. The others are those of Asset."""

    path: str
    url: str
    env: str
    env_value: str
    stacks: tuple[str, ...]

    @staticmethod
    def of(asset: Asset) -> "BundleAsset":
        """Return the bundle's entry for an asset of the manifest."""
        return BundleAsset(location(asset), asset.url, asset.env, asset.env_value, asset.stacks)


@dataclass(frozen=True, slots=True)
class Index:
    """All that a bundle holds. The two digests are empty if there was no manifest or no lock.

    `files` are sorted by path, in whatever order they are given.
    """

    name: str
    manifest_sha256: str
    lock_sha256: str
    roles: dict[str, tuple[str, ...]]
    models: tuple[BundleModel, ...]
    variants: tuple[BundleVariant, ...]
    files: tuple[PinnedFile[Source | None], ...]
    assets: tuple[BundleAsset, ...] = ()
    defaults: tuple[RoleDefaults, ...] = ()  # what the set states for requests, by role

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(sorted(self.files, key=_path)))


def _path(file: PinnedFile[Source | None]) -> str:
    return file.path


def variant_files(index: Index, variant: BundleVariant) -> tuple[PinnedFile[Source | None], ...]:
    """The files of one variant, sorted by path."""
    folder = variant.id.folder
    begin = bisect_left(index.files, f"{folder}/", key=_path)
    return index.files[begin : bisect_left(index.files, f"{folder}0", lo=begin, key=_path)]  # "0" comes after "/"


def chat_templates_of(index: Index) -> dict[str, str]:
    """Return the Jinja sources of the index by model id, for the models whose weights have none."""
    return {model.id: model.chat_template for model in index.models if model.chat_template}


def size_of(root: Path, index: Index) -> tuple[int, int]:
    """Files and bytes of the bundle at `root`: those of the index, and bundle.json and SHA256SUMS. Raises OSError."""
    lists = [(root / name).stat().st_size for name in (INDEX, SUMS)]
    return len(index.files) + len(lists), sum(file.size for file in index.files) + sum(lists)


def read_index(root: Path) -> Index:
    """Read the index of the bundle at `root`. Raises UsageError for no folder, NotSo for no bundle or a damaged one."""
    if not root.is_dir():
        raise UsageError(f"no folder {root}: give the folder that `tourkit prefetch` wrote")
    try:
        data = read_below(root, INDEX)
    except FileNotFoundError:
        raise NotSo(no_bundle(root)) from None
    except OSError as exc:
        raise NotSo(f"{root / INDEX}: cannot be read ({exc.strerror}): {_RESTORE}") from exc
    return parse_index(data, str(root / INDEX))


def write_index(root: Path, index: Index) -> None:
    """Write SHA256SUMS, then bundle.json, each whole or not at all. The same index gives the same bytes.

    Raises UsageError for an index that could not be read back, OSError if the drive refuses the write.
    """
    data = render_index(index)
    parse_index(data, str(root / INDEX))
    write_atomic(root / SUMS, render_sums(index, data))
    write_atomic(root / INDEX, data)


def render_index(index: Index) -> bytes:
    """Return bundle.json: sorted keys and lists, indent of two spaces, one newline at the end, its own digest."""
    raw: dict[str, Any] = {
        "format": FORMAT,
        "name": index.name,
        "manifest_sha256": index.manifest_sha256,
        "lock_sha256": index.lock_sha256,
        "roles": {role: list(ids) for role, ids in index.roles.items()},
        "models": [_raw_model(model) for model in sorted(index.models, key=lambda model: model.id)],
        "variants": [asdict(variant) for variant in sorted(index.variants, key=lambda variant: variant.id)],
        "files": [_raw_file(file) for file in index.files],
    }
    if index.assets:  # a bundle without assets keeps the bytes that it had before there were any
        raw["assets"] = [asdict(asset) for asset in sorted(index.assets, key=lambda asset: asset.path)]
    if index.defaults:
        raw["defaults"] = raw_defaults(index.defaults)
    return _canonical(raw | {"digest": _digest(raw)})


def _raw_model(model: BundleModel) -> dict[str, Any]:
    raw = asdict(model) | {"sampling": stated(model.sampling) or None}
    absent = {name for name in ("adapts", "chat_template", "sampling") if raw[name] is None}
    return {name: value for name, value in raw.items() if name not in absent}


def _raw_file(file: PinnedFile[Source | None]) -> dict[str, Any]:
    """One file as bundle.json stores it; repo, commit and source are null if it is not from a hub."""
    source = file.source
    raw = {"path": file.path, "size": file.size, "sha256": file.sha256, "repo": None, "commit": None, "source": None}
    return raw if source is None else raw | {"repo": source.repo, "commit": source.commit, "source": source.path}


def render_sums(index: Index, index_bytes: bytes) -> bytes:
    """Return SHA256SUMS in the format of coreutils: every file of the index and bundle.json, sorted by path."""
    sums = {file.path: file.sha256 for file in index.files}
    sums[INDEX] = hashlib.sha256(index_bytes).hexdigest()
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()


def _canonical(raw: dict[str, Any]) -> bytes:
    return orjson.dumps(raw, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _digest(raw: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(raw)).hexdigest()


def no_bundle(root: Path) -> str:
    """The message for a folder without an index."""
    return f"no {INDEX} in {root}: give a bundle's folder, or run `tourkit prefetch` again if it was interrupted"


def parse_index(data: bytes, where: str) -> Index:
    """Return the index that the bytes of bundle.json hold. `where` begins the error messages.

    Raises NotSo if the bytes changed since they were written, UsageError if they did not but cannot be used.
    """
    raw = _undamaged(data, where)
    version = raw.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise UsageError(f"{where}: format {version} was made by a newer tourkit: update tourkit")
    raise_problems(Path(where), schema_problems("bundle", raw))
    index = Index(
        name=raw["name"],
        manifest_sha256=raw["manifest_sha256"],
        lock_sha256=raw["lock_sha256"],
        roles={role: tuple(ids) for role, ids in raw["roles"].items()},
        models=tuple(
            BundleModel(**model | {"sampling": sampling_of(model.get("sampling", {}))}) for model in raw["models"]
        ),
        variants=tuple(BundleVariant(**variant) for variant in raw["variants"]),
        files=tuple(_file(file, where) for file in raw["files"]),
        assets=tuple(BundleAsset(**asset | {"stacks": tuple(asset["stacks"])}) for asset in raw.get("assets", ())),
        defaults=role_defaults(raw.get("defaults", {})),
    )
    _check_index(index, where)
    if render_index(index) != data:
        raise UsageError(f"{where}: its lists are not sorted: write it with tourkit")
    return index


def _file(raw: dict[str, Any], where: str) -> PinnedFile[Source | None]:
    origin = [raw["repo"], raw["commit"], raw["source"]]
    if 0 < origin.count(None) < len(origin):
        raise UsageError(f"{where}: {raw['path']}: repo, commit and source go together: give all or none")
    source = None if None in origin else Source(*origin)
    return PinnedFile(raw["path"], raw["size"], raw["sha256"], source)


def _undamaged(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object if its bytes match the digest inside. This check is the same in every format version."""
    if values_of(data) > _MOST_VALUES:
        raise NotSo(f"{where}: damaged, more than {_MOST_VALUES} values, which no index has: {_RESTORE}")
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise NotSo(f"{where}: damaged, not JSON at line {exc.lineno}: {_RESTORE}") from None
    content = {key: value for key, value in raw.items() if key != "digest"} if isinstance(raw, dict) else {}
    try:
        whole = bool(content) and raw.get("digest") == _digest(content) and _canonical(raw) == data
    except orjson.JSONEncodeError:  # nested deeper than orjson writes, which reads a little deeper
        whole = False
    if not whole:
        raise NotSo(f"{where}: damaged, its content does not match its own digest: {_RESTORE}")
    return content | {"digest": raw["digest"]}


def _check_index(index: Index, where: str) -> None:
    """Check what the schema cannot: ids are known, paths stay in the bundle and differ even if case is ignored."""
    models = {model.id for model in index.models}
    for role, ids in index.roles.items():
        for model in ids:
            if model not in models:
                raise UsageError(f"{where}: roles.{role}: {model!r} is not among the models")
    for row in index.defaults:
        if row.role not in index.roles:
            raise UsageError(f"{where}: defaults.{row.role}: there is no such role")
    for listed in index.models:
        if listed.adapts is not None and listed.adapts not in models:
            raise UsageError(f"{where}: models: {listed.id} adapts {listed.adapts!r}, which is not among the models")
    folders: set[str] = set()
    for variant in index.variants:
        folder = variant.id.folder
        check_path(folder, where)
        if variant.model not in models or folder.casefold() in folders or folder.count("/") != 2:
            raise UsageError(f"{where}: variants: {folder} is listed twice or names no model of the index")
        folders.add(folder.casefold())
    for file in index.files:
        check_path(file.path, where)
        if file.source is not None:
            check_path(file.source.path, where)
    check_distinct([*OWN_FILES, *(file.path for file in index.files)], where)
    _check_assets(index, where)


def _check_assets(index: Index, where: str) -> None:
    paths = {file.path for file in index.files}
    check_distinct([asset.path for asset in index.assets], f"{where}: assets")
    for asset in index.assets:
        if not asset.path.startswith(f"{FOLDER}/") or asset.path not in paths:
            raise UsageError(f"{where}: assets: {asset.path} is not a file of the index below {FOLDER}/")
        if asset.env and (problem := env_problem(asset.env)):
            raise UsageError(f"{where}: assets: {asset.path}: {asset.env!r} {problem}")
