"""Manifests: the TOML files in which people say which models fill which role, and the catalogue of models.

Everything read here is checked completely before it becomes a dataclass. What a file on the hub weighs and
hashes to is the lock's business.
"""

import difflib
import hashlib
import json
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tourkit import adapters, data
from tourkit.errors import ManifestError

ROLES = ("brain", "fast", "tool", "graph", "embed")
FORMATS = ("gguf", "safetensors", "onnx")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_SCHEMAS = Path(__file__).resolve().parent / "schemas"
_HOSTILE = frozenset('\\:?*"<>|')
_RESERVED = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


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
    def digest(self) -> str:
        """SHA-256 over the name, the roles and the variants: unchanged by comments, summaries or facts."""
        variants = {id_: [_source(v) for v in model.variants] for id_, model in self.models.items()}
        shape = {"name": self.name, "roles": self.roles, "models": variants}
        text = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _source(variant: Variant) -> dict[str, Any]:
    """What a lock depends on: all of a variant but the size, which is a fact about it."""
    return {name: value for name, value in asdict(variant).items() if name != "size"}


def load(ref: str | Path) -> Manifest:
    """Read a manifest: a path, or the name of a built-in set such as "tour-20gb". Raises ManifestError."""
    path = _locate(ref)
    raw_bytes, raw = _read_toml(path)
    raise_problems(path, schema_problems("manifest", raw))
    raise_problems(path, _set_problems(raw))
    own = raw.get("models", {})
    ids = [id_ for ids in raw["roles"].values() for id_ in ids]
    models = adapters.with_bases(ids, lambda id_: _model(id_, own[id_]) if id_ in own else _catalogue_model(id_))
    raise_problems(path, adapters.problems(models))
    manifest = Manifest(
        name=raw["name"],
        summary=raw.get("summary", ""),
        roles={role: tuple(raw["roles"][role]) for role in ROLES if role in raw["roles"]},
        models=models,
        path=path,
        sha256=hashlib.sha256(raw_bytes).hexdigest(),
    )
    return _filtered(manifest, raw.get("formats"), raw.get("quants"))


def catalogue() -> dict[str, Model]:
    """Every model of the catalogue by id. Raises ManifestError when one of its files is wrong."""
    return {id_: _catalogue_model(id_) for id_ in _catalogue_ids()}


def builtin_sets() -> list[str]:
    """The names that `load` takes besides a path."""
    return sorted(path.stem for path in data.MANIFESTS.glob("*.toml"))


def check_path(path: str, where: str) -> None:
    """Refuse a path that is not one plain relative file name on every system, or that is a pickle.

    `where` begins the message. Raises ManifestError.
    """
    problem = _path_problem(path)
    if problem is not None:
        raise ManifestError(f"{where}: {path!r} {problem}")


def check_distinct(paths: Sequence[str], where: str) -> None:
    """Refuse paths that a case-insensitive drive would take for one another. Raises ManifestError."""
    seen: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        folders = ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
        for name in (*folders, path):
            other = seen.setdefault(_folded(name.rstrip("/")), name)
            if other != name:
                raise ManifestError(
                    f"{where}: {other!r} and {name!r} are one name on exFAT, Windows and macOS: leave one out"
                )
    # A folder may come many times, a file once.
    for path, times in Counter(paths).items():
        if times > 1:
            raise ManifestError(f"{where}: {path!r} is named twice: name it once")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The mend for a word that is not among the `known` ones."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def schema_problems(name: str, raw: object) -> list[str]:
    """What is wrong with `raw` by schemas/<name>.schema.json: "key: problem: mend", one line each."""
    import jsonschema
    from referencing import Registry, Resource

    schemas = {path.name: json.loads(path.read_bytes()) for path in _SCHEMAS.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (file, Resource.from_contents(schema)) for file, schema in schemas.items()
    )
    checker = jsonschema.Draft202012Validator(schemas[f"{name}.schema.json"], registry=registry)
    errors = sorted(checker.iter_errors(raw), key=lambda error: [str(part) for part in error.absolute_path])
    return list(dict.fromkeys(line for error in errors for line in _explain(error)))


def raise_problems(path: Path, problems: Iterable[str]) -> None:
    """Raise one ManifestError for all `problems` of the file at `path`; does nothing when there are none."""
    found = list(problems)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ManifestError(f"{path}: {found[0]}{more}")


def _explain(error: Any) -> Iterator[str]:
    """Say in our words what jsonschema found: the schema's own description is the mend."""
    key = "".join(_step(part) for part in error.absolute_path).removeprefix(".")
    place = f"{key}." if key else ""
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for extra in sorted(error.instance.keys() - known):
            yield f"{place}{_step(extra)[1:]}: unknown key: {did_you_mean(extra, known)}"
        return
    mend = error.schema.get("description", error.message)
    if error.validator == "required":
        for missing in [name for name in error.validator_value if name not in error.instance]:
            wanted = error.schema["properties"][missing].get("description", "add it")
            yield f"{place}{missing}: missing: {wanted}"
        return
    shown = repr(error.instance)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    if error.validator == "enum":
        mend = did_you_mean(str(error.instance), error.validator_value)
    if error.validator == "uniqueItems":
        twice = next(item for item in error.instance if error.instance.count(item) > 1)
        yield f"{key}: {twice!r} is named twice: name it once"
        return
    yield f"{key or 'the file'}: {shown} is refused: {mend}"


def _step(part: int | str) -> str:
    """One step of a dotted key: quoted as TOML does where it is no bare key, so that a message stays one line."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"[\w.-]+", part) else f".{json.dumps(part)}"


def _locate(ref: str | Path) -> Path:
    path = Path(ref)
    if isinstance(ref, str) and ref in builtin_sets():
        return data.MANIFESTS / f"{ref}.toml"
    try:
        if path.is_file():
            return path
    except OSError as exc:
        raise ManifestError(f"{path}: cannot be read ({exc.strerror}): check the path and the permissions") from exc
    if path.suffix == ".toml" or len(path.parts) > 1 or isinstance(ref, Path):
        raise ManifestError(f"{path}: no such manifest: give a TOML file or one of {', '.join(builtin_sets())}")
    raise ManifestError(f"{ref}: no built-in set of this name and no such file: {did_you_mean(ref, builtin_sets())}")


def _read_toml(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        content = path.read_bytes()
        return content, tomllib.loads(content.decode())
    except OSError as exc:
        raise ManifestError(f"{path}: cannot be read ({exc.strerror}): check the path and the permissions") from exc
    except UnicodeDecodeError as exc:
        line = content[: exc.start].count(b"\n") + 1
        raise ManifestError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        text = str(exc)
        at = re.search(r" \(at line (\d+), column (\d+)\)", text)
        line = int(at[1]) if at else content.count(b"\n") + 1
        reason = re.sub(r" \(at .*\)", "", text)
        raise ManifestError(f"{path}:{line}: TOML syntax: {reason}: correct this line") from exc
    except (ValueError, RecursionError) as exc:  # a number of 5000 digits, a list 1000 levels deep
        raise ManifestError(f"{path}: a value is too long or too deep to read: shorten it") from exc


def _set_problems(raw: dict[str, Any]) -> Iterator[str]:
    """What the schema cannot say about a set whose shape is right."""
    own = raw.get("models", {})
    known = {*own, *_catalogue_ids()}
    named = {id_ for ids in raw["roles"].values() for id_ in ids} | {model.get("adapts") for model in own.values()}
    for role, ids in raw["roles"].items():
        for index, id_ in enumerate(ids):
            if id_ not in known:
                yield f"roles.{role}[{index}]: unknown model {id_!r}: {did_you_mean(id_, known)}"
    for id_, model in own.items():
        where = f"models{_step(id_)}"
        yield from _id_problems(id_, where)
        if model.get("adapts") not in {None, *known}:
            yield f"{where}.adapts: unknown model {model['adapts']!r}: {did_you_mean(model['adapts'], known)}"
        if id_ not in named:
            yield f"{where}: no role names this model: name it under [roles] or take it out"
        yield from (f"{where}.{problem}" for problem in _variant_problems(model))


def _id_problems(id_: str, where: str) -> Iterator[str]:
    if not _MODEL_ID.fullmatch(id_) or _path_problem(id_):
        yield (
            f"{where}: {id_!r} cannot be a model id, which names a folder: use 1 to 64 lower-case letters,"
            " digits, '.', '_' and '-', no Windows device name, no dot or pickle's suffix at the end"
        )


def _variant_problems(model: dict[str, Any]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for index, variant in enumerate(model["variants"]):
        where = f"variants[{index}]"
        quant = variant["quant"]
        problem = _path_problem(quant)
        if problem:
            yield f"{where}.quant: {quant!r} {problem}"
        other = seen.get(quant.casefold())
        if other is not None:
            yield f"{where}.quant: {quant!r} names the same folder as {other!r} above: choose another name"
        seen[quant.casefold()] = quant
        for number, pattern in enumerate(variant["files"]):
            problem = _path_problem(re.sub(r"[*?\[\]]", "x", pattern))
            if problem:
                yield f"{where}.files[{number}]: {pattern!r} {problem}"


def _path_problem(path: str) -> str | None:
    """The end of the sentence "'path' ..." when it is refused: what is wrong and the mend."""
    if path.startswith("/"):
        return "is an absolute path: write it relative to the repository"
    names = path.split("/")
    if ".." in names:
        return "leaves its folder: write it without '..'"
    if "" in names or "." in names:
        return "has an empty or '.' part: write it as folder/file"
    if any(char in _HOSTILE or unicodedata.category(char) in ("Cc", "Cs") for char in path):
        return 'has a character that Windows refuses (\\ : ? * " < > | or a control one): leave this file out'
    for name in names:
        if name[-1] in ". ":
            return "has a name that ends with a dot or a space, which Windows drops: leave this file out"
        if name.split(".")[0].rstrip().upper() in _RESERVED:
            return "is a device name on Windows: leave this file out"
        if len(name.encode()) > 255:
            return "has a name of more than 255 bytes: leave this file out"
    if names[-1].lower().endswith(PICKLED):
        return f"is a pickle ({', '.join(PICKLED)}), which can run code when loaded: take safetensors or GGUF"
    return None


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _catalogue_ids() -> list[str]:
    return sorted(path.stem for path in data.MODELS.glob("*.toml"))


def _catalogue_model(id_: str) -> Model:
    path = data.MODELS / f"{id_}.toml"
    _, raw = _read_toml(path)
    raise_problems(path, schema_problems("model", raw))
    raise_problems(path, [*_id_problems(id_, "the file name"), *_variant_problems(raw)])
    return _model(id_, raw)


def _model(id_: str, raw: dict[str, Any]) -> Model:
    return Model(
        id=id_,
        repo=raw["repo"],
        license=raw["license"],
        context=int(raw["context"]),
        family=raw.get("family"),
        gated=raw.get("gated"),
        params=int(raw["params"]) if "params" in raw else None,
        arch=Arch(**{name: int(value) for name, value in raw["arch"].items()}) if "arch" in raw else None,
        summary=raw.get("summary", ""),
        variants=tuple(_variant(v) for v in raw["variants"]),
        architecture=raw.get("architecture"),
        roles=tuple(raw.get("roles", ())),
        languages=tuple(raw.get("languages", ())),
        adapts=raw.get("adapts"),
        chat_template=raw.get("chat_template"),
    )


def _variant(raw: dict[str, Any]) -> Variant:
    size = int(raw["size"]) if "size" in raw else None
    return Variant(raw["format"], raw["quant"], raw["repo"], raw["revision"], tuple(raw["files"]), size)


def _filtered(manifest: Manifest, formats: list[str] | None, quants: list[str] | None) -> Manifest:
    """Apply a set's `formats` and `quants`; a model that keeps no variant is passed over in every role."""
    known = {variant.quant for model in manifest.models.values() for variant in model.variants}
    problems = [
        f"quants[{index}]: no model of this set has the variant {quant!r}: {did_you_mean(quant, known)}"
        for index, quant in enumerate(quants or [])
        if quant not in known
    ]
    models = {}
    for id_, model in manifest.models.items():
        named = None if model.adapts else quants  # an adapter goes with every quant of its base
        kept = tuple(
            v for v in model.variants if (not formats or v.format in formats) and (not named or v.quant in named)
        )
        if kept:
            models[id_] = replace(model, variants=kept)
    models = adapters.served(models)
    roles = {role: tuple(id_ for id_ in ids if id_ in models) for role, ids in manifest.roles.items()}
    nothing = "roles.{}: `formats` and `quants` leave no variant of {}: widen them or add a model"
    problems += [nothing.format(role, ", ".join(manifest.roles[role])) for role, ids in roles.items() if not ids]
    raise_problems(manifest.path, problems)
    return replace(manifest, roles=roles, models=models)
