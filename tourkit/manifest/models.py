"""What manifests, locks and bundles speak of: models, their variants, and files. Plain data."""

import fnmatch
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

ROLES = ("brain", "fast", "tool", "graph", "embed")
FORMATS = ("gguf", "safetensors", "onnx")


@dataclass(frozen=True, slots=True, order=True)
class VariantId:
    """What names one variant in a set, a lock and a bundle: the model's id and the quant."""

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

    The hub knows the SHA-256 of LFS files only. Of the others it knows `blob_id`, git's SHA-1.
    """

    path: str
    size: int
    sha256: str | None
    blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file is from: `path` inside the repository `repo` at `commit` (40 hex digits)."""

    repo: str
    commit: str
    path: str


From = TypeVar("From", bound=Source | None, covariant=True)


@dataclass(frozen=True, slots=True)
class PinnedFile(Generic[From]):
    """One file with everything known, from the lock to the bundle. `path` is relative to the bundle, `size` in bytes.

    A PinnedFile[Source] is from a hub, a PinnedFile[None] was written by tourkit (templates, START_HERE.md, …).
    """

    path: str
    size: int
    sha256: str
    source: From


def pinned(variant: VariantId, source: Source, size: int, sha256: str) -> PinnedFile[Source]:
    """A file of a variant, at its place in the variant's folder."""
    return PinnedFile(f"{variant.folder}/{source.path}", size, sha256, source)


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantised form of a model. `files` are fnmatch patterns over the whole path: `*` crosses "/".

    `size` is of the weights in bytes, to choose by: it may be rounded; the lock has the exact ones.
    """

    format: str
    quant: str
    repo: str
    revision: str
    files: tuple[str, ...]
    size: int | None = None

    def takes(self, path: str) -> bool:
        """Whether a file of the repository is one of this variant."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.files)


@dataclass(frozen=True, slots=True)
class Arch:
    """The numbers that size the KV cache. `sliding_layers` of the layers look back `sliding_window` tokens only."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    sliding_window: int | None = None
    sliding_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One upstream model. `context` is in tokens; None, or an empty tuple, means that no source states the value.

    `architecture` is transformers' model_type; `roles` are hints; "multilingual" among `languages` means many more.
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
    chat_template: str | None = None  # Jinja source, for weights that carry none


@dataclass(frozen=True, slots=True)
class Manifest:
    """A role set with its models resolved and its filters applied: every model here has a variant.

    `sha256` is of the file's bytes; `digest` is of what a lock depends on, catalogue included.
    """

    name: str
    summary: str
    roles: dict[str, tuple[str, ...]]
    models: dict[str, Model]
    path: Path
    sha256: str

    @property
    def variants(self) -> dict[VariantId, Variant]:
        """Every variant of the set."""
        return {VariantId(id_, v.quant): v for id_, model in self.models.items() for v in model.variants}

    @property
    def digest(self) -> str:
        """SHA-256 over the name, the roles and the variants: unchanged by comments, summaries or facts."""
        variants = {id_: [_lock_part(v) for v in model.variants] for id_, model in self.models.items()}
        shape = {"name": self.name, "roles": self.roles, "models": variants}
        text = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _lock_part(variant: Variant) -> dict[str, Any]:
    """What a lock depends on: all of a variant but the size, which is a fact about it."""
    return {name: value for name, value in asdict(variant).items() if name != "size"}
