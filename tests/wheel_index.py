"""A package index on loopback that speaks the real protocol, with small wheels that a test makes.

Not collected by pytest. It has the faults and the log of tests/faulty_hub.py for the files of wheels.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import random
import re
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulty_hub import FaultyHub, Handler


def make_wheel(
    name: str,
    version: str = "1.0",
    *,
    requires: Iterable[str] = (),
    extras: Iterable[str] = (),
    tag: str = "py3-none-any",
    payload: int = 10,
    library: bytes = b"",
) -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel. `payload`: random bytes in its only module.

    `library`: the bytes of a shared library in it.
    """
    distribution = f"{name.replace('-', '_')}-{version}"
    info = f"{distribution}.dist-info"
    lines = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in requires]
    files = {
        f"{name.replace('-', '_')}_stub.py": b"#" + base64.b64encode(random.Random(name).randbytes(payload)) + b"\n",
        f"{info}/METADATA": "\n".join([*lines, ""]).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    files |= {"lib.so": library} if library else {}
    return f"{distribution}-{tag}.whl", packed(files, info)


def packed(files: dict[str, bytes], info: str) -> bytes:
    """Return the bytes of a wheel with these files and a RECORD of them in its folder `info`."""
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, content in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}).items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return out.getvalue()


@contextmanager
def only_index(wheels: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WheelIndex]:
    """Serve a package index that pip's variables name, without any other setting of the developer's."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    with WheelIndex(wheels) as server:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", server.simple)
        monkeypatch.setenv("UV_CACHE_DIR", str(home / "uv-cache"))
        monkeypatch.setenv("HOME", str(home))
        yield server


class WheelHandler(Handler):
    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        index = self.server.hub
        assert isinstance(index, WheelIndex)
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        with index.gate:
            index.paths.append(self.path)
            index.passwords.append(self.headers.get("Authorization"))
        if index.password is not None and self.headers.get("Authorization") != basic(*index.password):
            return self.plain(401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
        if match := re.fullmatch(r"/simple/([^/]+)/", path):
            return self._simple(index, match[1])
        name = path.rpartition("/")[2]
        if path.startswith("/files/") and name.endswith(".metadata"):
            return self.plain(200, metadata(index.files[name.removesuffix(".metadata")]), {})
        if path.startswith("/files/") and name in index.files:
            return self.send_file(index, name)
        return self.plain(404, b"", {})

    def _simple(self, index: WheelIndex, project: str) -> None:
        own = {name: content for name, content in index.files.items() if project_of(name) == project}
        if not own:
            return self.plain(404, b"", {})
        base = (index.storage or index).url
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in own.items()}
        if not index.states_sizes:
            links = [
                f'<a href="{base}/files/{name}#sha256={digest}" data-core-metadata="true">{html.escape(name)}</a>'
                for name, digest in hashes.items()
            ]
            page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>"
            return self.plain(200, page.encode(), {"Content-Type": "text/html"})
        files = [
            {
                "filename": name,
                "url": f"{base}/files/{urllib.parse.quote(name)}",
                "hashes": {"sha256": hashes[name]},
                "size": len(content),
                "core-metadata": True,
            }
            for name, content in own.items()
        ]
        answer = {"meta": {"api-version": "1.1"}, "name": project, "files": files, "versions": []}
        return self.plain(200, json.dumps(answer).encode(), {"Content-Type": "application/vnd.pypi.simple.v1+json"})


class WheelIndex(FaultyHub):
    """Serve wheels (file name: bytes) as a package index. `url` + "/simple" is what pip calls the index."""

    handler = WheelHandler

    def __init__(self, wheels: dict[str, bytes]) -> None:
        self.password: tuple[str, str] | None = None  # user and password that every request needs
        self.passwords: list[str | None] = []  # the header of every request
        self.states_sizes = True  # False: the older HTML pages
        self.storage: WheelIndex | None = None  # the server that has the files; None: this one
        super().__init__(wheels)

    @property
    def simple(self) -> str:
        return f"{self.url}/simple"


def project_of(wheel: str) -> str:
    return wheel.partition("-")[0].replace("_", "-").lower()


def metadata(wheel: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
