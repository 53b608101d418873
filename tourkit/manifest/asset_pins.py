"""Side assets in a lock: size and SHA-256 of each file, read once from its server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from tourkit.errors import HubError, ManifestError, Unreachable, WrongContent
from tourkit.manifest.assets import assets_of, env_problem, for_stacks, location, shown, url_problem
from tourkit.manifest.models import Asset, Link, PinnedFile
from tourkit.manifest.paths import check_distinct, check_path
from tourkit.units import size_text


@dataclass(frozen=True, slots=True)
class AssetPin:
    """One asset of a lock. `size`: bytes. `size` and `sha256` are None if they are not known yet.

    `asset.sha256` is None, because the SHA-256 is here.
    """

    asset: Asset
    size: int | None
    sha256: str | None

    @property
    def file(self) -> PinnedFile[Link] | None:
        """The file with its path in the bundle; None if size or SHA-256 is not known yet."""
        if self.size is None or self.sha256 is None:
            return None
        return PinnedFile(location(self.asset), self.size, self.sha256, Link(self.asset.url))


class Web(Protocol):
    """The one question that `pins_for` asks. tourkit.fetch.web.WebServer answers it."""

    def measure(self, source: Link) -> tuple[int, str]:
        """Read a file once, and return its size in bytes and its SHA-256."""


def raw_pins(pins: Iterable[AssetPin]) -> list[dict[str, Any]]:
    """Return the list `assets` of a lock, sorted by path."""
    return [
        {
            "path": pin.asset.path,
            "url": pin.asset.url,
            "env": pin.asset.env,
            "env_value": pin.asset.env_value,
            "stacks": list(pin.asset.stacks),
            "size": pin.size,
            "sha256": pin.sha256,
        }
        for pin in sorted(pins, key=lambda pin: pin.asset.path)
    ]


def pins_of(raw: Sequence[dict[str, Any]], where: str) -> tuple[AssetPin, ...]:
    """Return the assets of a lock that its schema accepts. `where` begins the messages. Raises ManifestError."""
    for number, item in enumerate(raw):
        check_path(item["path"], f"{where}: assets[{number}].path")
        if problem := url_problem(item["url"]):
            raise ManifestError(f"{where}: assets[{number}].url: {shown(item['url'])!r} {problem}")
        if item["env"] and (problem := env_problem(item["env"])):
            raise ManifestError(f"{where}: assets[{number}].env: {item['env']!r} {problem}")
    check_distinct([item["path"] for item in raw], f"{where}: assets")
    return tuple(
        AssetPin(asset, None if item["size"] is None else int(item["size"]), item["sha256"])
        for item in sorted(raw, key=lambda item: str(item["path"]))
        for asset in assets_of([item | {"sha256": None}])
    )


def pins_for(
    assets: Iterable[Asset],
    web: Web | None,
    known: Iterable[AssetPin],
    progress: Callable[[str], None],
    *,
    stacks: Collection[str] = (),
) -> tuple[tuple[AssetPin, ...], dict[str, HubError]]:
    """Return a pin for each asset, and the error for each one that was read and has none.

    An asset that `known` (the earlier lock) has at the same address keeps its size and its SHA-256. Each other one that
    `stacks` need is read once, and must have the SHA-256 that the manifest states. Without `web` none is read.
    """
    assets = tuple(assets)
    before = {(pin.asset.path, pin.asset.url): pin for pin in known}
    wanted = for_stacks(assets, stacks) if web is not None else ()
    failed: dict[str, HubError] = {}
    pins = []
    for asset in assets:
        was = before.get((asset.path, asset.url))
        keeps = was is not None and was.file is not None and asset.sha256 in (None, was.sha256)
        size, sha256 = (was.size, was.sha256) if was is not None and keeps else (None, asset.sha256)
        if size is None and asset in wanted and web is not None:
            stop = next((error for error in failed.values() if isinstance(error, Unreachable)), None)
            try:
                if stop is not None:
                    raise stop  # the next one would take as long to fail
                size, sha256 = _measured(asset, web)
                progress(f"{location(asset)}: {size_text(size)} from {urlsplit(asset.url).hostname}")
            except HubError as exc:
                failed[location(asset)] = exc
        pins.append(AssetPin(replace(asset, sha256=None), size, sha256))
    return tuple(pins), failed


def _measured(asset: Asset, web: Web) -> tuple[int, str]:
    size, sha256 = web.measure(Link(asset.url))
    if asset.sha256 not in (None, sha256):
        raise WrongContent(
            f"{shown(asset.url)}: sha256 is {sha256[:12]}…, the manifest says {str(asset.sha256)[:12]}…:"
            " correct `url` or `sha256` in the manifest"
        )
    return size, sha256


def differences(assets: Iterable[Asset], pins: Iterable[AssetPin]) -> Iterator[str]:
    """Yield how the assets of a lock differ from those of the manifest, as the end of "LOCK: "."""
    wanted = {asset.path: asset for asset in assets}
    locked = {pin.asset.path: pin for pin in pins}
    for path in sorted(wanted.keys() - locked.keys()):
        yield f"it does not hold assets/{path}, which the manifest names"
    for path in sorted(locked.keys() - wanted.keys()):
        yield f"it holds assets/{path}, which the manifest no longer names"
    for path in sorted(wanted.keys() & locked.keys()):
        now, then = wanted[path], locked[path].asset
        for name in ("url", "env", "env_value", "stacks"):
            if getattr(now, name) != getattr(then, name):
                yield f"assets/{path} has {name} {getattr(then, name)!r}, the manifest {getattr(now, name)!r}"
        if now.sha256 not in (None, locked[path].sha256):
            yield f"assets/{path} has another sha256 than the manifest"


def changes(old: Iterable[AssetPin], new: Iterable[AssetPin]) -> Iterator[str]:
    """Yield the differences between the assets of two locks, one line each."""
    before, after = {pin.asset.path: pin for pin in old}, {pin.asset.path: pin for pin in new}
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if now is None:
            yield f"assets/{path}: removed"
        elif was is None:
            yield f"assets/{path}: added, {'unresolved' if now.size is None else size_text(now.size)}"
        elif (was.size, was.sha256) != (now.size, now.sha256):
            sha256 = "unknown" if now.sha256 is None else f"{now.sha256[:8]}…"
            yield f"assets/{path}: {'unresolved' if now.file is None else f'SHA-256 is now {sha256}'}"
        elif was.asset != now.asset:
            yield f"assets/{path}: its url, variable or stacks changed"
