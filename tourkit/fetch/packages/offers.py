"""Which wheels of a package the package index has: its pages in both forms, and folders with wheels, by pip's settings.

No project is resolved here: a manifest names one exact version.
"""

from __future__ import annotations

import html.parser
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from tourkit.errors import HubError, UsageError
from tourkit.fetch.wheels.package_index import PackageIndex, Page
from tourkit.fetch.wheels.pip_settings import IndexSettings, without_credentials
from tourkit.manifest.models import Link, normalised

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(r"[\w.]+(-[\w.+!]+){4,5}\.whl", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offer:
    """One wheel that an index or a folder has. `place`: its address, or its path here.

    `size` in bytes and `sha256` are None if the index does not state them. A file here is not read for them.
    """

    file: str
    place: Link | Path
    size: int | None
    sha256: str | None

    @property
    def version(self) -> str:
        return self.file.split("-")[1]


def offers(package: str, index: PackageIndex) -> Iterator[Offer]:
    """Yield the wheels of a package, place by place: folders with wheels, then the indexes in pip's order.

    A place is asked only when the wheels of the ones before it are used up. A place that has no such package yields
    nothing. Raises HubError for a place that cannot be asked, after the wheels of all others.
    """
    settings = index.settings
    problem: HubError | None = None
    for place in settings.find_links:
        try:
            yield from _of_links(place, package, index)
        except HubError as exc:
            problem = problem or exc
    for place in () if settings.no_index else (settings.index or default_index(), *settings.extra_indexes):
        try:
            yield from _of_index(place, package, index)
        except HubError as exc:
            problem = problem or exc
    if problem is not None:
        raise problem


def places(settings: IndexSettings) -> str:
    """Return what messages call the places that `offers` asks: the first one, and how many more there are."""
    named = [*settings.find_links, *(() if settings.no_index else settings.indexes)]
    if not named:
        return "pip's default index"
    shown = without_credentials(named[0])
    return shown if len(named) == 1 else f"{shown} and {len(named) - 1} more"


def default_index() -> str:
    """Return the address of the index that pip asks without any setting. Raises UsageError if pip is not here."""
    try:
        known = importlib.import_module("pip._internal.models.index")
        return str(known.PyPI.simple_url)
    except (ImportError, AttributeError) as exc:
        raise UsageError("no package index is known here: set PIP_INDEX_URL to its address, or install pip") from exc


def _of_index(place: str, package: str, index: PackageIndex) -> Iterator[Offer]:
    name = normalised(package)
    if (folder := _local(place)) is not None:
        yield from _of_folder(folder / name, package)
        return
    base = without_credentials(place).rstrip("/")  # PackageIndex itself finds the password
    page = index.page(f"{base}/{quote(name)}/", f"{name} in the package index")
    if page is not None:
        yield from _of_page(page, package)


def _of_links(place: str, package: str, index: PackageIndex) -> Iterator[Offer]:
    if (folder := _local(place)) is not None:
        yield from _of_folder(folder, package)
        return
    address = without_credentials(place)
    page = index.page(address, address)
    if page is not None:
        yield from _of_page(page, package)


def _of_folder(folder: Path, package: str) -> Iterator[Offer]:
    """Yield the wheels of a folder here, or those that its index.html names."""
    listing = folder / "index.html"
    if listing.is_file():
        yield from _of_page(Page(listing.absolute().as_uri(), False, listing.read_bytes()), package)
    elif folder.is_dir():
        for path in sorted(folder.glob("*.whl")):
            if _is_of(path.name, package):
                yield Offer(path.name, path, path.stat().st_size, None)


def _of_page(page: Page, package: str) -> Iterator[Offer]:
    rows = _json_rows(page) if page.is_json else _html_rows(page)
    for file, url, size, sha256 in rows:
        if not _is_of(file, package):
            continue
        stated = sha256 if sha256 and _SHA256.fullmatch(sha256) else None
        try:
            address = urljoin(page.url, urldefrag(url).url)
            scheme = urlsplit(address).scheme
        except ValueError:  # no address
            continue
        if scheme in ("http", "https"):
            yield Offer(file, Link(without_credentials(address)), size, stated)
        elif scheme == "file" and page.url.startswith("file:"):  # a page on the network names no files here
            path = Path(url2pathname(urlsplit(address).path))
            if path.is_file():
                yield Offer(file, path, path.stat().st_size, stated)


_Row = tuple[str, str, int | None, str | None]  # file name, address, size in bytes, SHA-256


def _json_rows(page: Page) -> Iterator[_Row]:
    """Yield the files of a page in the form of PEP 691. Rows of another shape are left out."""
    try:
        raw = json.loads(page.content)
        files = raw["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise HubError(f"{page.url}: the index sent no list of files: check PIP_INDEX_URL") from exc
    for row in files if isinstance(files, list) else ():
        if isinstance(row, dict) and isinstance(row.get("filename"), str) and isinstance(row.get("url"), str):
            hashes, size = row.get("hashes"), row.get("size")
            sha256 = hashes.get("sha256") if isinstance(hashes, dict) else None
            known = type(size) is int and 0 < size < 1 << 53
            yield row["filename"], row["url"], size if known else None, sha256 if isinstance(sha256, str) else None


def _html_rows(page: Page) -> Iterator[_Row]:
    """Yield the files of a page in the form of PEP 503: links, with the SHA-256 behind a "#"."""
    parser = _Links()
    parser.feed(page.content.decode("utf-8", errors="replace"))
    for href in parser.found:
        try:
            parts = urlsplit(href)
        except ValueError:
            continue
        sha256 = parse_qs(parts.fragment).get("sha256", [None])[0]
        yield unquote(parts.path).rpartition("/")[2], urljoin(parser.base, href), None, sha256


class _Links(html.parser.HTMLParser):
    """Collects the addresses of the links of a page. `base`: the address that the page itself names, else empty."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href:
            self.base = href
        elif tag == "a" and href:
            self.found.append(href)


def _is_of(file: str, package: str) -> bool:
    """Return whether a file is a wheel of the package: NAME-VERSION-PYTHON-ABI-PLATFORM.whl, maybe with a build."""
    return bool(_WHEEL.fullmatch(file)) and normalised(file.partition("-")[0]) == normalised(package)


def _local(place: str) -> Path | None:
    """Return the path that a place names here; None for an address of another scheme than file."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme in ("http", "https") else Path(place)
