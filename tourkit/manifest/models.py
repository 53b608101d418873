"""The plain data of manifests, locks and bundles: models, variants and files."""

import fnmatch
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tourkit.defaults import UNSTATED, RoleDefaults, Sampling

CHAT_ROLES = ("brain", "fast", "tool", "graph")  # their models answer chats
ROLES = (*CHAT_ROLES, "embed", "rerank")
FORMATS = ("gguf", "safetensors", "onnx")


@dataclass(frozen=True, slots=True, order=True)
class VariantId:
    """The name of one variant in a set, a lock and a bundle: the model's id and the quant."""

    model: str
    quant: str

    def __str__(self) -> str:
        return f"{self.model} {self.quant}"

    @property
    def folder(self) -> str:
        """The folder of its files, relative to the bundle, with "/"."""
        return f"models/{self.model}/{self.quant}"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub lists it: `path` inside the repository, `size` in bytes.

    The hub states the SHA-256 of LFS files only. For other files it states `blob_id`, git's SHA-1.
    """

    path: str
    size: int
    sha256: str | None
    blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file comes from: `path` inside the repository `repo` at `commit` (40 hex digits)."""

    repo: str
    commit: str
    path: str


@dataclass(frozen=True, slots=True)
class Link:
    """Where a wheel or an asset comes from: its address. It never holds a user name or a password."""

    url: str


From = TypeVar("From", bound=Source | Link | None, covariant=True)


@dataclass(frozen=True, slots=True)
class PinnedFile(Generic[From]):
    """One file whose size and hash are known. `path` is relative to the bundle, `size` is in bytes.

    A PinnedFile[Source] comes from a hub, a PinnedFile[Link] from a package index or another server. A PinnedFile[None]
    was written by tourkit (templates, START_HERE.md, …).
    """

    path: str
    size: int
    sha256: str
    source: From


def pinned(variant: VariantId, source: Source, size: int, sha256: str) -> PinnedFile[Source]:
    """Return a file of a variant with its path in the bundle."""
    return PinnedFile(f"{variant.folder}/{source.path}", size, sha256, source)


@dataclass(frozen=True, slots=True)
class Part:
    """A file or a folder inside a wheel of a package index: its `path` in the wheel of one version of a package."""

    package: str
    version: str
    path: str


@dataclass(frozen=True, slots=True)
class PinnedPart:
    """A part whose wheel is known: the name of the wheel's `file`, its `size` in bytes and its `sha256`."""

    part: Part
    file: str
    size: int
    sha256: str


def wheel_repo(package: str) -> str:
    """Return the repository that a package of the index stands for in locks, in bundles and on the mirror."""
    return f"pypi/{normalised(package)}"


def normalised(package: str) -> str:
    """Return the name of a package as an index spells it: lower-case letters, digits and "-"."""
    return re.sub(r"[-_.]+", "-", package).lower()


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantised form of a model. `files` are fnmatch patterns for the whole path: `*` also matches "/".

    `size`: bytes of the weights, for choosing a variant. It may be rounded; the lock has the exact sizes.

    A variant with `parts` is inside wheels of a package index. Then `repo` and `revision` are the repository and the
    version of the first part. With `file` the parts make one file of this name, joined in order. Without `file` there
    is one part, a folder, and `files` are patterns for the paths below it.
    """

    format: str
    quant: str
    repo: str
    revision: str
    files: tuple[str, ...]
    size: int | None = None
    parts: tuple[Part, ...] = ()
    file: str = ""

    def takes(self, path: str) -> bool:
        """Return True if a file of the repository belongs to this variant."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.files)


@dataclass(frozen=True, slots=True)
class Arch:
    """The numbers that size the KV cache. `sliding_layers` layers look back `sliding_window` tokens only.

    Of a hybrid model, `attention_layers` layers have a KV cache (None: all of them). The other layers together keep
    `state_values` numbers for one sequence, whatever its length.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    sliding_window: int | None = None
    sliding_layers: int | None = None
    attention_layers: int | None = None
    state_values: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One upstream model. `context` is in tokens. None or an empty tuple means that no source states the value.

    `architecture` is transformers' model_type. `roles` are hints. `languages` are those that the publisher names.
    "multilingual" among them means that it claims more without naming them. `base`: the model only continues texts, so
    it answers no chats unless it has a `chat_template`.
    """

    id: str
    repo: str
    license: str
    context: int
    family: str | None
    gated: bool | None
    params: int | None
    arch: Arch | None
    summary: str
    variants: tuple[Variant, ...]
    architecture: str | None = None
    roles: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    adapts: str | None = None  # the id of the model this LoRA adapter is for
    chat_template: str | None = None  # Jinja source, for weights without a chat template
    base: bool = False
    sampling: Sampling = UNSTATED  # what its publisher states

    @property
    def only_reads(self) -> bool:
        """True if it makes embeddings or scores, and writes no text."""
        return bool(self.roles) and not set(self.roles) & set(CHAT_ROLES)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file beside the models: one that a library would fetch at run time (a vocabulary), a licence, a model card.

    `path`: below `assets/` of the bundle. `sha256`: None if the manifest does not state it. `env`: the variable that
    tells a library where it is, "" for none. `env_value`: what the variable holds, "folder" or "file". `stacks`: those
    that need it, () for all.
    """

    path: str
    url: str
    sha256: str | None
    env: str
    env_value: str
    stacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A role set after its models are looked up and its filters are applied: every model has a variant.

    `sha256` covers the file's bytes. `digest` covers what a lock depends on, the catalogue's values included.
    `defaults`: a row for each role that has some.
    """

    name: str
    summary: str
    roles: dict[str, tuple[str, ...]]
    models: dict[str, Model]
    path: Path
    sha256: str
    assets: tuple[Asset, ...] = ()
    defaults: tuple[RoleDefaults, ...] = ()

    @property
    def variants(self) -> dict[VariantId, Variant]:
        """Every variant of the set."""
        return {VariantId(id_, v.quant): v for id_, model in self.models.items() for v in model.variants}

    @property
    def digest(self) -> str:
        """SHA-256 of name, roles, variants and assets. Comments, summaries, facts and defaults do not change it."""
        variants = {id_: [_lock_part(v) for v in model.variants] for id_, model in self.models.items()}
        shape: dict[str, Any] = {"name": self.name, "roles": self.roles, "models": variants}
        if self.assets:  # a set without assets keeps the digest that older locks have
            shape["assets"] = [asdict(asset) for asset in self.assets]
        text = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _lock_part(variant: Variant) -> dict[str, Any]:
    """Return the fields of a variant that a lock depends on: all but the size, which is only a fact.

    A variant from a hub has no fields of wheels. So it keeps the digest that older locks have.
    """
    absent = ("size",) if variant.parts else ("size", "parts", "file")
    return {name: value for name, value in asdict(variant).items() if name not in absent}
