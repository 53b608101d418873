"""Side assets in a manifest: files that a library would fetch at run time, such as a vocabulary; licences, model cards.

They are `[[assets]]` of a manifest, pins of a lock (asset_pins.py), and files below `assets/` in a bundle.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from tourkit.errors import ManifestError
from tourkit.manifest.models import Asset
from tourkit.manifest.paths import check_distinct, path_problem
from tourkit.manifest.validation import did_you_mean
from tourkit.offline import ENVIRONMENT
from tourkit.stacks import STACKS

FOLDER = "assets"
_ENV = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
# A path in one of these variables would run code, or would change the process and not a library.
_RESERVED = ("PATH", "HOME", "TMPDIR", "LLAMA_CPP_LIB_PATH", "CUDA_VISIBLE_DEVICES", *ENVIRONMENT)
_RESERVED_BEGINNINGS = ("LD_", "DYLD_", "PYTHON", "GLIBC_", "TOURKIT_")
_ADDRESS = "give the address of the file, such as https://example.org/vocabulary.tiktoken"


def location(asset: Asset) -> str:
    """Return the path of an asset in a bundle, with "/"."""
    return f"{FOLDER}/{asset.path}"


def assets_of(raw: Iterable[dict[str, Any]]) -> tuple[Asset, ...]:
    """Return the `[[assets]]` of a manifest or a lock, sorted by path. The schema must have accepted them."""
    made = (
        Asset(
            item["path"],
            item["url"],
            item.get("sha256"),
            item.get("env", ""),
            item.get("env_value", "folder"),
            tuple(sorted(item.get("stacks", ()))),
        )
        for item in raw
    )
    return tuple(sorted(made, key=lambda asset: asset.path))


def for_stacks(assets: Iterable[Asset], stacks: Collection[str]) -> tuple[Asset, ...]:
    """Return the assets that these stacks need. No `stacks` means all; an asset without stacks is for every stack."""
    return tuple(asset for asset in assets if not stacks or not asset.stacks or set(stacks) & set(asset.stacks))


def problems(raw: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the errors in the `[[assets]]` of a manifest that the schema does not find, one line each."""
    for number, item in enumerate(raw):
        where = f"assets[{number}]"
        if problem := url_problem(item["url"]):
            yield f"{where}.url: {shown(item['url'])!r} {problem}"
        if problem := path_problem(item["path"]):
            yield f"{where}.path: {item['path']!r} {problem}"
        elif "/" not in item["path"]:
            yield f"{where}.path: {item['path']!r} has no folder: write it as folder/file"
        if "env" in item and (problem := env_problem(item["env"])):
            yield f"{where}.env: {item['env']!r} {problem}"
        if "env_value" in item and "env" not in item:
            yield f"{where}.env_value: there is no variable to set: add `env`, or remove this key"
        for index, stack in enumerate(item.get("stacks", ())):
            if stack not in STACKS:
                yield f"{where}.stacks[{index}]: unknown stack {stack!r}: {did_you_mean(stack, STACKS)}"
    try:
        check_distinct([item["path"] for item in raw], "assets")
    except ManifestError as exc:
        yield str(exc)
    yield from _two_values(raw)


def url_problem(url: str) -> str | None:
    """Return what is wrong with an address and the fix, as the end of "'url' ..."; None if nothing is wrong."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "has a character that an address cannot have: write it as %XX"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"is not a valid address: {_ADDRESS}"
    if parts.scheme not in ("http", "https"):
        return f"is not an http or https address: {_ADDRESS}"
    if not host or not parts.path.strip("/"):
        return f"names no file on a server: {_ADDRESS}"
    if "@" in parts.netloc:
        return "has a user name or a password, which would be written into the bundle: use an open address"
    return None


def shown(url: str) -> str:
    """Return an address for messages, without what may be secret: user name, password and query."""
    return re.sub(r"//[^/?#]*@", "//…@", url).partition("?")[0]


def env_problem(name: str) -> str | None:
    """Return why a variable cannot be set to the path of an asset, as the end of "'NAME' ..."; None if it can."""
    if not _ENV.fullmatch(name):
        return "is not the name of a variable: use capital letters, digits and '_', such as TIKTOKEN_CACHE_DIR"
    if name in _RESERVED or name.startswith(_RESERVED_BEGINNINGS):
        return "is not a variable of a library's data: name the variable that its documentation gives"
    return None


def _two_values(raw: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a problem for each variable that two assets set to different paths on the same stack."""
    seen: dict[str, dict[tuple[str, tuple[str, ...]], int]] = {}  # by variable: the first asset with a value and stacks
    for number, item in enumerate(raw):
        [asset] = assets_of([item])
        if not asset.env:
            continue
        mine = value_of(location(asset), asset.env_value)
        earlier = seen.setdefault(asset.env, {})
        for (its, stacks), other in earlier.items():
            meet = not asset.stacks or not stacks or set(asset.stacks) & set(stacks)
            if meet and mine != its:
                fix = "put both files into one folder, or name different stacks"
                yield f"assets[{number}].env: {asset.env} has another value in assets[{other}]: {fix}"
        earlier.setdefault((mine, asset.stacks), number)


def value_of(path: str, env_value: str) -> str:
    """Return what the variable of an asset names: its `path` in the bundle, or the folder of it."""
    return path if env_value == "file" else path.rpartition("/")[0]
