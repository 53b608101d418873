"""The lock of a target: uv's pylock.toml, and the best wheel of each package in it.

tourkit adds its own table to the lock: what was asked for. A lock is used again as long as the same is asked for.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from tourkit.errors import NotSo, UsageError
from tourkit.fetch.wheels.pip_settings import without_credentials
from tourkit.fetch.wheels.target import Target, rank
from tourkit.manifest.paths import check_path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKAGE = "[[packages]]\n"
_ASKED = "\n[tool.tourkit]\nrequirements = "


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of a target. It comes from a `url`, or it is a file here (`path`).

    `name`: of the package, as in `pip list`. `size`: bytes, None if the index does not state them.
    """

    name: str
    version: str
    file: str
    size: int | None
    sha256: str
    url: str | None = None
    path: Path | None = None


def stored(text: str, asked: Sequence[str], here: frozenset[str]) -> str:
    """Return uv's lock as it is stored: without credentials, and with what was asked for.

    `here`: names of packages whose wheel is a file of the user. They are left out.
    """
    for each in _links(tomllib.loads(text)):
        text = text.replace(json.dumps(each), json.dumps(without_credentials(each)))
    head, *blocks = text.split(_PACKAGE)
    kept = [block for block in blocks if tomllib.loads(_PACKAGE + block)["packages"][0]["name"] not in here]
    text = _PACKAGE.join([head, *kept])
    return text.rstrip() + "\n" + _ASKED + json.dumps(list(asked), ensure_ascii=False, indent=2) + "\n"


def asked_for(text: str, where: str) -> list[str] | None:
    """Return what a stored lock was made for; None if tourkit did not store it. Raises UsageError if it is damaged."""
    found = _parsed(text, where).get("tool", {}).get("tourkit", {}).get("requirements")
    return found if isinstance(found, list) else None


def wheels_of(text: str, where: str, target: Target) -> list[Wheel]:
    """Return the best wheel of each package of a stored lock by the target's tags, sorted by name.

    Raises NotSo for a package without a fitting wheel, UsageError for a damaged lock and a wheel without a SHA-256.
    """
    packages = _parsed(text, where).get("packages", [])
    try:
        found = [_best(package, where, target) for package in packages]
    except (KeyError, TypeError, AttributeError) as exc:
        raise UsageError(f"{where}: not a lock of wheels ({exc!r}): delete it, then run the command again") from exc
    return sorted(found, key=lambda wheel: wheel.name)


def _best(package: dict[str, Any], where: str, target: Target) -> Wheel:
    name, version = package["name"], package.get("version", "")
    offered = [_wheel(name, version, raw) for raw in package.get("wheels", [])]
    ranked = [(place, wheel) for wheel in offered if (place := rank(wheel.file, target)) is not None]
    if not ranked:
        raise NotSo(f"{where}: {name} {version} has no wheel for {target.machine}: choose another target")
    best = min(ranked, key=lambda each: (each[0], each[1].file))[1]
    check_path(best.file, where)  # a lock may come from a stranger
    if not _SHA256.fullmatch(best.sha256):
        raise UsageError(f"{where}: the index states no SHA-256 for {best.file}: use an index that does")
    return best


def _wheel(name: str, version: str, raw: dict[str, Any]) -> Wheel:
    place = raw.get("url") or Path(raw["path"]).absolute().as_uri()
    parts = urlsplit(place)
    file = unquote(parts.path).rpartition("/")[2]
    sha256 = raw.get("hashes", {}).get("sha256", "")
    if parts.scheme == "file":
        path = Path(url2pathname(parts.path))
        return Wheel(name, version, file, path.stat().st_size if path.is_file() else raw.get("size"), sha256, path=path)
    return Wheel(name, version, file, raw.get("size"), sha256, url=place)


def _links(raw: dict[str, Any]) -> list[str]:
    """Return the addresses that a lock names."""
    packages = raw.get("packages", [])
    wheels = [wheel for package in packages for wheel in package.get("wheels", [])]
    found = [each.get("url") for each in wheels] + [package.get("index") for package in packages]
    return [each for each in found if isinstance(each, str)]


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{where}: damaged ({exc}): delete it, then run the command again") from exc
