"""pip's settings of package indexes: its variables, its configuration files and netrc, and the same for uv.

uv reads neither pip's variables nor its files. tourkit's own downloader needs the same facts, so they are read once.
"""

from __future__ import annotations

import configparser
import netrc
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from tourkit.errors import UsageError

_TRUE = ("y", "yes", "t", "true", "on", "1")
_SECTIONS = ("global", "install", "download")  # of a configuration file; the later ones win


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Where packages come from and how to get there. Empty means pip's and uv's own default."""

    index: str = ""
    extra_indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()  # folders and pages with wheels
    no_index: bool = False
    proxy: str = ""
    certificates: str = ""  # a PEM file of the authorities to trust
    client_certificate: str = ""
    trusted_hosts: tuple[str, ...] = ()  # host or host:port, whose certificates are not checked
    timeout_s: float | None = None

    @property
    def indexes(self) -> tuple[str, ...]:
        """The addresses of all indexes that were named, with their user names and passwords."""
        return tuple(each for each in (self.index, *self.extra_indexes) if each)

    def with_indexes(self, urls: tuple[str, ...]) -> IndexSettings:
        """Return the settings with more indexes: addresses that a user gave."""
        return replace(self, extra_indexes=(*self.extra_indexes, *urls))


def read_settings(environ: Mapping[str, str] | None = None) -> IndexSettings:
    """Return the settings as pip would use them: configuration files, then variables, which win.

    Raises UsageError for a configuration file that is damaged, and for a timeout that is no number.
    """
    environ = os.environ if environ is None else environ
    raw: dict[str, str] = {}
    for path in _files(environ):
        raw |= _read(path)
    for name, value in environ.items():
        if name.startswith("PIP_"):
            raw[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    try:
        timeout = float(raw["timeout"]) if raw.get("timeout") else None
    except ValueError:
        raise UsageError(f"pip's timeout is {raw['timeout']!r}: give a number of seconds") from None
    return IndexSettings(
        index=raw.get("index-url", ""),
        extra_indexes=tuple(raw.get("extra-index-url", "").split()),
        find_links=tuple(raw.get("find-links", "").split()),
        no_index=raw.get("no-index", "").lower() in _TRUE,
        proxy=raw.get("proxy", ""),
        certificates=raw.get("cert", ""),
        client_certificate=raw.get("client-cert", ""),
        trusted_hosts=tuple(raw.get("trusted-host", "").split()),
        timeout_s=timeout,
    )


def uv_environment(settings: IndexSettings) -> dict[str, str]:
    """Return uv's environment variables for the settings. Passwords go this way, because all users see arguments."""
    names = {
        "UV_DEFAULT_INDEX": with_credentials(settings.index),
        "UV_INDEX": " ".join(with_credentials(url) for url in settings.extra_indexes),
        "UV_FIND_LINKS": ",".join(with_credentials(place) for place in settings.find_links),
        "UV_INSECURE_HOST": " ".join(settings.trusted_hosts),
        "UV_HTTP_TIMEOUT": str(round(settings.timeout_s)) if settings.timeout_s else "",
        "SSL_CERT_FILE": settings.certificates,
        "SSL_CLIENT_CERT": settings.client_certificate,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), settings.proxy),
    }
    return {name: value for name, value in names.items() if value}


def with_credentials(url: str) -> str:
    """Return the address with the user name and the password that netrc has for its host, unless it has some."""
    parts = urlsplit(url)
    if parts.username is not None or parts.scheme not in ("http", "https"):
        return url
    found = _of_netrc(parts.hostname or "")
    if found is None:
        return url
    user, password = found
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc}").geturl()


def credentials_for(url: str, settings: IndexSettings) -> tuple[str, str] | None:
    """Return user name and password for an address: those of the index on the same host, else those of netrc."""
    parts = urlsplit(url)
    places = [*settings.indexes, *settings.find_links]
    for known in map(urlsplit, places):
        same = (known.scheme, known.hostname, known.port) == (parts.scheme, parts.hostname, parts.port)
        if same and known.username is not None:
            return unquote(known.username), unquote(known.password or "")
    return _of_netrc(parts.hostname or "")


def without_credentials(url: str) -> str:
    """Return the address without user name and password, to be shown and stored."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def _of_netrc(host: str) -> tuple[str, str] | None:
    named = os.environ.get("NETRC")
    places = [Path(named)] if named else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    for path in places:
        if not path.is_file():
            continue
        try:
            found = netrc.netrc(path).authenticators(host)
        except (netrc.NetrcParseError, OSError) as exc:
            raise UsageError(f"{path}: cannot be read ({exc}): correct the file, or remove it") from exc
        return (found[0], found[2]) if found else None
    return None


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield pip's configuration files in its order; the later ones win."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    yield from (folder / name for folder in _global_folders(environ))
    home = Path("~").expanduser()
    if not (named and Path(named).exists()):
        yield home / ("pip" if os.name == "nt" else ".pip") / name
        yield _user_folder(environ, home) / name
    yield Path(sys.prefix) / name
    if named:
        yield Path(named)


def _global_folders(environ: Mapping[str, str]) -> list[Path]:
    if os.name == "nt":
        return [Path(environ.get("PROGRAMDATA", r"C:\ProgramData")) / "pip"]
    if sys.platform == "darwin":
        return [Path("/Library/Application Support/pip")]
    folders = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    return [*(Path(folder) / "pip" for folder in folders.split(os.pathsep) if folder), Path("/etc")]


def _user_folder(environ: Mapping[str, str], home: Path) -> Path:
    if os.name == "nt":
        return Path(environ.get("APPDATA", str(home))) / "pip"
    if sys.platform == "darwin" and (home / "Library/Application Support/pip").is_dir():
        return home / "Library/Application Support/pip"
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip"


def _read(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: pip's configuration cannot be read ({exc}): correct the file") from exc
    found: dict[str, str] = {}
    for section in _SECTIONS:
        if parser.has_section(section):
            found |= {name.lstrip("-").replace("_", "-"): value for name, value in parser.items(section)}
    return found
