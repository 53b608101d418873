"""Targets, pip's settings, the wheel of tourkit itself: what is decided before an index is asked."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from dataclasses import replace
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tourkit.errors import LocalError, UsageError
from tourkit.fetch.wheels import own_wheel
from tourkit.fetch.wheels.pip_settings import (
    IndexSettings,
    credentials_for,
    read_settings,
    uv_environment,
    without_credentials,
)
from tourkit.fetch.wheels.target import SETS, Target, fits, parse_target, rank, target_of, uv_platform
from tourkit.hardware.machine import Hardware
from tourkit.units import GIB

LINUX = "cp312-manylinux_2_31_x86_64"


# ---- targets -----------------------------------------------------------------------------------------


def test_a_target_is_a_python_a_platform_and_sets() -> None:
    assert parse_target(LINUX) == Target("cp312", "manylinux_2_31_x86_64", ("cpu",))
    assert parse_target("cp313-win_amd64:onnx+cpu").name == "cp313-win_amd64-cpu+onnx"
    assert parse_target("here").python.startswith("cp3")
    assert parse_target(f"{LINUX}:cuda-vllm").extras == ("vllm",)


def test_every_set_installs_a_stack() -> None:
    assert SETS == {
        "cpu": "llama_cpp",
        "cuda-llama": "llama_cpp",
        "cuda-vllm": "vllm",
        "transformers": "transformers",
        "onnx": "onnx",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "cp312-manylinux_2_28_x86_64": "glibc 2.28 is too old, llguidance has no wheel for less than 2.31",
        "cp312-manylinux2014_x86_64": "glibc 2.17 is too old",
        "cp310-win_amd64": "choose cp311 or newer",
        "cp312-musllinux_1_2_x86_64": "is no target: write it like cp312-manylinux_2_31_x86_64",
        "cp312": "'cp312' is no target",
        "there:cpu": "is no target",
        f"{LINUX}:gpu": "no set 'gpu'",
        "cp312-macosx_14_0_arm64:cuda-llama": "no set cuda-llama for this system",
        "cp312-win_amd64:cuda-vllm": "no set cuda-vllm for this system",
    }.items(),
)
def test_a_target_without_wheels_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_target(text)

    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_machine_is_a_target_by_what_its_python_says() -> None:
    assert target_of("cp312", "Linux", "x86_64", ("cpu",), glibc="2.36").machine == "cp312-manylinux_2_36_x86_64"
    assert target_of("cp311", "Darwin", "arm64", ("cpu",), macos="14.5").machine == "cp311-macosx_14_0_arm64"
    assert target_of("cp313", "Windows", "AMD64", ("cpu",)).machine == "cp313-win_amd64"
    with pytest.raises(UsageError, match="musl"):
        target_of("cp312", "Linux", "x86_64", ("cpu",))


def test_here_is_the_machine_of_a_file() -> None:
    venue = Hardware(8, 32 * GIB, glibc="2.35", system="linux", arch="x86_64", python="3.12")

    assert parse_target("here:cuda-vllm", venue).name == "cp312-manylinux_2_35_x86_64-cuda-vllm"
    assert parse_target(LINUX, venue).machine == LINUX
    mac = replace(venue, system="darwin", arch="arm64", glibc="")
    assert parse_target("here", mac).machine == "cp312-macosx_14_0_arm64"

    linux = Hardware(threads=4, ram=1, glibc="2.36", system="linux", arch="arm64", python="3.12")
    windows = Hardware(threads=4, ram=1, system="windows", arch="x86_64", python="3.12")
    assert parse_target("here", linux).machine == "cp312-manylinux_2_36_aarch64"
    assert parse_target("here", windows).machine == "cp312-win_amd64"
    with pytest.raises(UsageError, match=r"glibc 2\.28 is too old"):
        parse_target("here", replace(venue, glibc="2.28"))
    with pytest.raises(UsageError, match="names no python, system and arch"):
        parse_target("here", replace(venue, python=""))


def test_uv_gets_the_platform_in_its_own_words() -> None:
    assert uv_platform(parse_target(LINUX)) == ("x86_64-manylinux_2_31", {})
    mac = uv_platform(parse_target("cp312-macosx_14_0_arm64"))
    assert mac == ("aarch64-apple-darwin", {"MACOSX_DEPLOYMENT_TARGET": "14.0"})
    assert uv_platform(parse_target("cp312-win_amd64")) == ("x86_64-pc-windows-msvc", {})
    newest = parse_target("cp312-manylinux_2_99_x86_64")
    assert uv_platform(newest)[0] == "x86_64-manylinux_2_40", "uv knows none newer"


@pytest.mark.parametrize(
    ("wheel", "machine", "fitting"),
    [
        ("a-1-py3-none-any.whl", LINUX, True),
        ("a-1-cp312-cp312-manylinux_2_31_x86_64.whl", LINUX, True),
        ("a-1-cp312-cp312-manylinux_2_34_x86_64.whl", LINUX, False),
        ("a-1-cp39-abi3-manylinux2014_x86_64.whl", LINUX, True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.whl", LINUX, False),
        ("a-1-py3-none-linux_x86_64.whl", LINUX, True),
        ("a-1-cp312-cp312-macosx_11_0_universal2.whl", "cp312-macosx_14_0_arm64", True),
        ("a-1-cp312-cp312-macosx_15_0_arm64.whl", "cp312-macosx_14_0_arm64", False),
        ("a-1-cp312-cp312-win_amd64.whl", "cp312-win_amd64", True),
        ("a-1-cp312-cp312-win32.whl", "cp312-win_amd64", False),
    ],
)
def test_a_wheel_fits_by_its_tags(wheel: str, machine: str, fitting: bool) -> None:
    assert fits(wheel, parse_target(machine)) is fitting


def test_a_compiled_wheel_is_better_than_a_pure_one() -> None:
    target = parse_target(LINUX)
    names = ["a-1-py3-none-any.whl", "a-1-cp312-cp312-manylinux2014_x86_64.whl", "a-1-py3-none-linux_x86_64.whl"]

    assert min(names, key=lambda name: rank(name, target) or 0) == names[1]


def test_a_file_that_is_no_wheel_is_refused() -> None:
    with pytest.raises(UsageError, match="not the name of a wheel"):
        fits("a-1.tar.gz", parse_target(LINUX))


# ---- pip's settings ----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no settings of the developer."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    return tmp_path


def test_variables_win_over_pip_conf(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = home / ".config" / "pip" / "pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        "[global]\nindex-url = http://from.file/simple\nproxy = http://p:3128\ntimeout = 60\n"
        "[install]\ntrusted-host = one.test\n  two.test:81\n"
    )
    monkeypatch.setenv("PIP_INDEX_URL", "http://from.variable/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://a/simple http://b/simple")

    found = read_settings()

    assert found.index == "http://from.variable/simple"
    assert found.extra_indexes == ("http://a/simple", "http://b/simple")
    assert (found.proxy, found.timeout_s) == ("http://p:3128", 60.0)
    assert found.trusted_hosts == ("one.test", "two.test:81")


def test_pip_config_file_names_the_file_and_null_means_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".pip").mkdir()
    (home / ".pip" / "pip.conf").write_text("[global]\nindex-url = http://user/simple\n")
    (home / "mine.conf").write_text("[global]\nextra-index-url = http://mine/simple\n")

    assert read_settings().index == "http://user/simple"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(home / "mine.conf"))
    assert read_settings().index == "", "as pip does: the named file replaces the user's"
    assert read_settings().extra_indexes == ("http://mine/simple",)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert read_settings() == IndexSettings()


def test_a_damaged_pip_conf_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "bad.conf").write_text("index-url = x\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(home / "bad.conf"))

    with pytest.raises(UsageError, match=r"bad\.conf: pip's configuration cannot be read"):
        read_settings()


def test_uv_gets_the_same_settings_by_its_own_variables(home: Path) -> None:
    (home / ".netrc").write_text("machine private.test login me password a/b\n")
    (home / ".netrc").chmod(0o600)
    settings = IndexSettings(
        index="https://private.test/simple",
        extra_indexes=("http://other.test/simple",),
        find_links=("/wheels",),
        proxy="http://p:3128",
        certificates="/ca.pem",
        trusted_hosts=("private.test",),
        timeout_s=60.0,
    )

    assert uv_environment(settings) == {
        "UV_DEFAULT_INDEX": "https://me:a%2Fb@private.test/simple",
        "UV_INDEX": "http://other.test/simple",
        "UV_FIND_LINKS": "/wheels",
        "UV_INSECURE_HOST": "private.test",
        "UV_HTTP_TIMEOUT": "60",
        "SSL_CERT_FILE": "/ca.pem",
        "HTTP_PROXY": "http://p:3128",
        "HTTPS_PROXY": "http://p:3128",
        "ALL_PROXY": "http://p:3128",
    }
    assert uv_environment(IndexSettings()) == {}, "uv then uses its own default index"


def test_a_password_is_for_its_own_host_only(home: Path) -> None:
    settings = IndexSettings(index="https://me:a%2Fb@private.test/simple")

    assert credentials_for("https://private.test/files/a.whl", settings) == ("me", "a/b")
    assert credentials_for("https://files.test/a.whl", settings) is None
    assert credentials_for("http://private.test/a.whl", settings) is None, "not over an open connection"
    assert without_credentials("https://me:x@private.test/a.whl") == "https://private.test/a.whl"


# ---- tourkit's own wheel -----------------------------------------------------------------------------


class Installed(Distribution):
    """An installed distribution in a folder."""

    def __init__(self, site: Path) -> None:
        self.site = site

    def read_text(self, filename: str) -> str | None:
        path = self.site / "tourkit-9.0.dist-info" / filename
        return path.read_text() if path.is_file() else None

    def locate_file(self, path: object) -> Path:
        return self.site / str(path)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    files = {
        "tourkit/__init__.py": b"x = 1\n",
        "tourkit/_data/templates/a.py": b"print()\n",
        "tourkit-9.0.dist-info/METADATA": b"Metadata-Version: 2.4\nName: tourkit\nVersion: 9.0\n",
        "tourkit-9.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tourkit-9.0.dist-info/INSTALLER": b"pip\n",
    }
    record = "../../bin/tourkit,,\ntourkit/__pycache__/__init__.cpython-312.pyc,,\ntourkit-9.0.dist-info/RECORD,,\n"
    for name, content in files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    (tmp_path / "site" / "tourkit-9.0.dist-info" / "RECORD").write_text(record)
    return Installed(tmp_path / "site")


def test_an_installed_tourkit_is_packed_again_from_its_record(installed: Installed, tmp_path: Path) -> None:
    wheel = own_wheel.pack(installed, tmp_path)
    again = own_wheel.pack(installed, tmp_path / "site").read_bytes()

    assert wheel.name == "tourkit-9.0-py3-none-any.whl"
    assert wheel.read_bytes() == again, "the same files give the same wheel"
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(archive.namelist()) == [
            "tourkit-9.0.dist-info/METADATA",
            "tourkit-9.0.dist-info/RECORD",
            "tourkit-9.0.dist-info/WHEEL",
            "tourkit/__init__.py",
            "tourkit/_data/templates/a.py",
        ]
        record = archive.read("tourkit-9.0.dist-info/RECORD").decode()
    assert len(record.splitlines()) == 5
    assert "tourkit-9.0.dist-info/RECORD,,\n" in record


def test_an_installed_file_that_was_changed_is_refused(installed: Installed, tmp_path: Path) -> None:
    (installed.site / "tourkit" / "__init__.py").write_bytes(b"x = 2\n")

    with pytest.raises(LocalError, match="it was changed after the installation"):
        own_wheel.pack(installed, tmp_path)
