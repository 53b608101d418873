"""The files of a package index: proxy, certificates, passwords, redirects and refusals, as pip's settings have them."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faulty_hub import Fault
from wheel_index import WheelIndex, make_wheel

from tourkit.errors import HubError, Unreachable
from tourkit.fetch.http import Patience
from tourkit.fetch.stream import PassingError
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import IndexSettings
from tourkit.manifest.models import Link

QUICK = Patience(attempts=2, delay_s=0.01, longest_s=0.02, stall_s=20.0)
NAME, CONTENT = make_wheel("small")

pytestmark = pytest.mark.starts


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WheelIndex]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with WheelIndex({NAME: CONTENT}) as server:
        yield server


def body(url: str, settings: IndexSettings, start: int = 0) -> bytes:
    """The bytes that an index with these settings gives for a URL."""
    found = bytearray()
    block = memoryview(bytearray(1000))
    with closing(PackageIndex(settings, QUICK)) as index, index.open(Link(url), start=start) as stream:
        assert stream.total == len(CONTENT)
        while got := stream.readinto(block):
            found += block[:got]
    return bytes(found)


def test_bytes_come_from_any_start_and_the_size_is_known(server: WheelIndex) -> None:
    url = f"{server.url}/files/{NAME}"

    assert body(url, IndexSettings()) == CONTENT
    assert body(url, IndexSettings(), start=100) == CONTENT[100:]
    with closing(PackageIndex(IndexSettings(), QUICK)) as index:
        assert index.size(Link(url)) == len(CONTENT)


def test_pips_proxy_is_asked_and_not_the_host(server: WheelIndex) -> None:
    url = f"http://index.invalid/files/{NAME}"

    assert body(url, IndexSettings(proxy=server.url)) == CONTENT
    assert server.paths == [url]


def test_pips_certificate_is_trusted_and_so_is_a_trusted_host(server: WheelIndex, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/ca.pem"]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    port = server.server.server_address[1]
    url = f"https://localhost:{port}/files/{NAME}"

    with pytest.raises(HubError, match="set PIP_CERT") as error:
        body(url, IndexSettings())
    assert not isinstance(error.value, PassingError)
    assert body(url, IndexSettings(certificates=str(tmp_path / "ca.pem"))) == CONTENT
    assert body(url, IndexSettings(trusted_hosts=("localhost",))) == CONTENT
    assert body(url, IndexSettings(trusted_hosts=(f"localhost:{port}",))) == CONTENT


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, HubError, "put user name and password into PIP_INDEX_URL"),
        (404, HubError, "delete the lock"),
        (503, PassingError, "HTTP 503"),
    ],
)
def test_a_refusal_is_one_line_with_the_fix(
    server: WheelIndex, status: int, kind: type[HubError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "password", ("me", "secret") if status == 401 else None)
    server.faults[NAME] = Fault("status", status=status)
    with pytest.raises(kind, match=words) as error:
        body(f"{server.url}/files/{NAME}?token=SECRET", IndexSettings())

    assert "\n" not in str(error.value)
    assert "SECRET" not in str(error.value)


def test_a_host_that_does_not_exist_is_final(server: WheelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(Unreachable, match=r"no host 'index\.invalid'"):
        body(f"http://index.invalid/files/{NAME}", IndexSettings())
