"""The environment variables that tell the libraries of a stack where the side assets of a bundle are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tourkit.bundle.index import BundleAsset
from tourkit.manifest.assets import value_of


def variables(assets: Iterable[BundleAsset], stack: str, locate: Callable[[str], Path]) -> tuple[tuple[str, str], ...]:
    """Return name and value of each variable for a worker of `stack`, sorted by name. Values are absolute paths.

    `locate` gives the file or folder for a path of the index.
    """
    found: dict[str, str] = {}
    for asset in assets:
        if asset.env and (not asset.stacks or stack in asset.stacks):
            found[asset.env] = str(locate(value_of(asset.path, asset.env_value)).absolute())
    return tuple(sorted(found.items()))
