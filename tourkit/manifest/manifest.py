"""Manifests: TOML files that name the models of each role. And the catalogue of models.

A file is checked completely before it becomes a dataclass. Sizes and SHA-256 of the files on the hub are in the lock.
"""

import glob
import hashlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tourkit import data
from tourkit.errors import ManifestError
from tourkit.manifest import adapters, assets, base_models, defaults
from tourkit.manifest.models import ROLES, Arch, Manifest, Model, Part, Variant, wheel_repo
from tourkit.manifest.paths import path_problem
from tourkit.manifest.validation import did_you_mean, dotted_step, raise_problems, schema_problems

_MOST_BYTES = 4 << 20  # of a manifest; the built-in sets have some kilobytes
_MOST_DOTS = 10_000_000  # the squares of the dots of each line: tomllib's time for a dotted key grows like this
_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def load(ref: str | Path) -> Manifest:
    """Read a manifest by its path or by the name of a built-in set, such as "tour-20gb". Raises ManifestError."""
    path = _locate(ref)
    raw_bytes, raw = _read_toml(path)
    raise_problems(path, schema_problems("manifest", raw))
    raise_problems(path, _set_problems(raw))
    own = raw.get("models", {})
    ids = [id_ for ids in raw["roles"].values() for id_ in ids]
    models = adapters.with_bases(ids, lambda id_: _model(id_, own[id_]) if id_ in own else _catalogue_model(id_))
    raise_problems(path, adapters.problems(models))
    raise_problems(path, base_models.problems(raw["roles"], models))
    manifest = Manifest(
        name=raw["name"],
        summary=raw.get("summary", ""),
        roles={role: tuple(raw["roles"][role]) for role in ROLES if role in raw["roles"]},
        models=models,
        path=path,
        sha256=hashlib.sha256(raw_bytes).hexdigest(),
        assets=assets.assets_of(raw.get("assets", ())),
        defaults=defaults.role_defaults(raw.get("defaults", {})),
    )
    return _filtered(manifest, raw.get("formats"), raw.get("quants"))


def catalogue() -> dict[str, Model]:
    """Return every model of the catalogue by id. Raises ManifestError if one of its files is wrong."""
    return {id_: _catalogue_model(id_) for id_ in _catalogue_ids()}


def builtin_sets() -> list[str]:
    """Return the names of the built-in sets, which `load` accepts instead of a path."""
    return sorted(path.stem for path in data.MANIFESTS.glob("*.toml"))


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
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        _check_size(path, content)
        return content, tomllib.loads(content.decode("utf-8-sig"))  # Notepad writes a byte order mark
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


def _check_size(path: Path, content: bytes) -> None:
    """Refuse a file that tomllib would read for minutes. Raises ManifestError."""
    if len(content) > _MOST_BYTES:
        raise ManifestError(f"{path}: more than {_MOST_BYTES} bytes: a manifest has some kilobytes: shorten it")
    dots = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        dots += line.count(b".") ** 2
        if dots > _MOST_DOTS:
            raise ManifestError(f"{path}:{number}: too many dotted keys up to this line: write them as tables")


def _set_problems(raw: dict[str, Any]) -> Iterator[str]:
    """Problems that the schema cannot express, in a set that the schema accepts."""
    own = raw.get("models", {})
    known = {*own, *_catalogue_ids()}
    named = {id_ for ids in raw["roles"].values() for id_ in ids} | {model.get("adapts") for model in own.values()}
    for role, ids in raw["roles"].items():
        for index, id_ in enumerate(ids):
            if id_ not in known:
                yield f"roles.{role}[{index}]: unknown model {id_!r}: {did_you_mean(id_, known)}"
    for id_, model in own.items():
        where = f"models{dotted_step(id_)}"
        yield from _id_problems(id_, where)
        if model.get("adapts") not in {None, *known}:
            yield f"{where}.adapts: unknown model {model['adapts']!r}: {did_you_mean(model['adapts'], known)}"
        if id_ not in named:
            yield f"{where}: no role names this model: name it under [roles] or remove it"
        yield from (f"{where}.{problem}" for problem in _model_problems(model))
    yield from assets.problems(raw.get("assets", ()))
    yield from defaults.problems(raw)


def _id_problems(id_: str, where: str) -> Iterator[str]:
    if not _MODEL_ID.fullmatch(id_) or path_problem(id_):
        yield (
            f"{where}: {id_!r} cannot be a model id, which names a folder: use 1 to 64 lower-case letters,"
            " digits, '.', '_' and '-'; no Windows device name; no dot and no suffix of pickle files at the end"
        )


def _model_problems(model: dict[str, Any]) -> Iterator[str]:
    yield from _variant_problems(model)
    yield from (f"sampling.{problem}" for problem in defaults.sampling_problems(model.get("sampling", {})))


def _variant_problems(model: dict[str, Any]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for index, variant in enumerate(model["variants"]):
        where = f"variants[{index}]"
        quant = variant["quant"]
        problem = path_problem(quant)
        if problem:
            yield f"{where}.quant: {quant!r} {problem}"
        other = seen.get(quant.casefold())
        if other is not None:
            yield f"{where}.quant: {quant!r} names the same folder as {other!r} above: choose another name"
        seen[quant.casefold()] = quant
        for number, pattern in enumerate(variant.get("files", ())):
            problem = path_problem(re.sub(r"[*?\[\]]", "x", pattern))
            if problem:
                yield f"{where}.files[{number}]: {pattern!r} {problem}"
        yield from (f"{where}.{problem}" for problem in _source_problems(variant))


def _source_problems(variant: dict[str, Any]) -> Iterator[str]:
    """Problems of the keys that say where the files of a variant are: in a repository, or inside wheels."""
    parts = variant.get("parts", ())
    if not parts:
        if "file" in variant:
            yield "file: only a variant with `parts` has it: name the file in `files`"
        return
    for key in ("repo", "revision"):
        if key in variant:
            yield f"{key}: the files are in a repository or in wheels: remove `{key}`, or remove `source` and `parts`"
    for number, part in enumerate(parts):
        if problem := path_problem(part["path"]):
            yield f"parts[{number}].path: {part['path']!r} {problem}"
    file = variant.get("file")
    if file is not None and (problem := path_problem(file) or ("is in a folder: give its name" if "/" in file else "")):
        yield f"file: {file!r} {problem}"
    if "files" in variant and (file is not None or len(parts) > 1):
        yield "files: it names files in the folder of one part: remove it, or give one part and no `file`"
    elif file is None and len(parts) > 1:
        yield f"file: missing: give the name of the file that the {len(parts)} parts make when they are joined"


def _catalogue_ids() -> list[str]:
    return sorted(path.stem for path in data.MODELS.glob("*.toml"))


def _catalogue_model(id_: str) -> Model:
    path = data.MODELS / f"{id_}.toml"
    _, raw = _read_toml(path)
    raise_problems(path, schema_problems("model", raw))
    raise_problems(path, [*_id_problems(id_, "the file name"), *_model_problems(raw)])
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
        base=raw.get("base", False),
        sampling=defaults.sampling_of(raw.get("sampling", {})),
    )


def _variant(raw: dict[str, Any]) -> Variant:
    size = int(raw["size"]) if "size" in raw else None
    if "parts" not in raw:
        return Variant(raw["format"], raw["quant"], raw["repo"], raw["revision"], tuple(raw["files"]), size)
    parts = tuple(Part(part["package"], part["version"], part["path"]) for part in raw["parts"])
    file = "" if "files" in raw else raw.get("file") or parts[0].path.rpartition("/")[2]
    files = (glob.escape(file),) if file else tuple(raw["files"])
    repo, version = wheel_repo(parts[0].package), parts[0].version
    return Variant(raw["format"], raw["quant"], repo, version, files, size, parts, file)


def _filtered(manifest: Manifest, formats: list[str] | None, quants: list[str] | None) -> Manifest:
    """Apply the filters `formats` and `quants` of a set. A model without a variant left is removed from every role."""
    known = {variant.quant for model in manifest.models.values() for variant in model.variants}
    unknown = (
        f"quants[{index}]: no model of this set has the variant {quant!r}: {did_you_mean(quant, known)}"
        for index, quant in enumerate(quants or [])
        if quant not in known
    )
    models = {}
    for id_, model in manifest.models.items():
        named = None if model.adapts else quants  # an adapter fits every quant of its base
        kept = tuple(
            v for v in model.variants if (not formats or v.format in formats) and (not named or v.quant in named)
        )
        if kept:
            models[id_] = replace(model, variants=kept)
    models = adapters.served(models)
    roles = {role: tuple(id_ for id_ in ids if id_ in models) for role, ids in manifest.roles.items()}
    nothing = "roles.{}: `formats` and `quants` leave no variant of {}: widen them or add a model"
    empty = (nothing.format(role, ", ".join(manifest.roles[role])) for role, ids in roles.items() if not ids)
    raise_problems(manifest.path, chain(unknown, empty))
    return replace(manifest, roles=roles, models=models)
