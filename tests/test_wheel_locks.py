"""The wheels of each target fit it by their tags. The locks are recorded; `make test-wheels` asks the real index."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

from tools.wheel_locks import RECORDED, real_lock
from tourkit.errors import TourkitError, UsageError
from tourkit.fetch.wheels.lockfile import Wheel, asked_for, stored, wheels_of
from tourkit.fetch.wheels.target import Target, parse_target
from tourkit.units import GIB

LOCKS = Path(__file__).parent / "locks"
REAL = os.environ.get("TOURKIT_REAL_INDEX") == "1"
PYTHONS = ("cp311", "cp312", "cp313")
SYSTEMS = ("manylinux_2_31_x86_64", "macosx_14_0_arm64", "win_amd64")
CPU = [f"{python}-{system}" for python in PYTHONS for system in SYSTEMS] if REAL else list(RECORDED[:-1])
LINUX = [name for name in CPU if "manylinux" in name]
VLLM = RECORDED[-1]

pytestmark = [pytest.mark.starts, pytest.mark.slow] if REAL else []


@pytest.fixture
def wheels(tmp_path_factory: pytest.TempPathFactory):
    """Return the wheels of a target, each target resolved once."""
    return lambda name: resolved(name, tmp_path_factory.getbasetemp())


@cache
def resolved(name: str, folder: Path) -> list[Wheel]:
    target = parse_target(name)
    recorded = LOCKS / f"pylock.{target.name}.toml"
    text = real_lock(name, folder) if REAL else recorded.read_text(encoding="utf-8")
    return wheels_of(text, name, target)


def accepted(target: Target) -> set[Tag]:
    """The tags that pip on the target accepts, counted here without tourkit's own table."""
    if target.platform.startswith("macosx"):
        platforms = list(mac_platforms((14, 0), "arm64"))
    elif target.platform == "win_amd64":
        platforms = ["win_amd64"]
    else:
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 32)]
        platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    specific = cpython_tags(target.version, [target.python], platforms)
    return {*specific, *compatible_tags(target.version, target.python, platforms)}


@pytest.mark.parametrize("name", [*CPU, VLLM])
def test_every_wheel_fits_its_target(wheels, name: str) -> None:
    target = parse_target(name)
    found = wheels(name)
    strangers = [wheel.file for wheel in found if not parse_wheel_filename(wheel.file)[3] & accepted(target)]

    assert not strangers
    assert all(wheel.size and re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) for wheel in found)


@pytest.mark.parametrize("name", CPU)
def test_the_set_cpu_has_what_templates_and_start_here_need(wheels, name: str) -> None:
    names = {wheel.name for wheel in wheels(name)}

    assert {"openai", "pip", "llguidance", "jinja2", "numpy", "gguf", "starlette", "click"} <= names
    assert "llama-cpp-python" not in names, "the index has only its source"


@pytest.mark.parametrize("name", CPU)
def test_only_windows_gets_colorama_and_no_set_cpu_gets_cuda(wheels, name: str) -> None:
    names = {wheel.name for wheel in wheels(name)}

    assert ("colorama" in names) == name.endswith("win_amd64")
    assert not [each for each in names if each.startswith("nvidia-")]


@pytest.mark.parametrize("name", CPU)
def test_the_set_cpu_is_small(wheels, name: str) -> None:
    assert sum(wheel.size for wheel in wheels(name)) < 60 << 20


def test_vllm_brings_cuda_and_about_four_gibibytes(wheels) -> None:
    found = wheels(VLLM)

    assert {"vllm", "torch"} <= {wheel.name for wheel in found}
    assert [wheel.name for wheel in found if wheel.name.startswith("nvidia-")]
    assert 3 * GIB < sum(wheel.size for wheel in found) < 5 * GIB


@pytest.mark.parametrize("name", LINUX)
def test_of_several_wheels_the_best_one_is_taken(wheels, name: str) -> None:
    """The index has a slow pure-Python wheel of some packages beside the compiled ones."""
    by_name = {wheel.name: wheel.file for wheel in wheels(name)}

    assert "manylinux" in by_name["aiohttp"]
    assert "manylinux" in by_name["yarl"]


LOCK = """\
lock-version = "1.0"
[[packages]]
name = "a"
version = "1"
wheels = [{{ url = "https://me:secret@index.invalid/{file}", size = 1, hashes = {{ sha256 = "{sha256}" }} }}]
"""
PLAIN = {"file": "a-1-py3-none-any.whl", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"file": "a-1-py3-none-any.%5C..%5Cx.whl"}, "not the name of a wheel|Windows refuses"),
        ({"file": "a-1-py3-none-win32.whl"}, "a 1 has no wheel for cp312-win_amd64"),
        ({"file": "a-1.tar.gz"}, "not the name of a wheel"),
        ({"sha256": ""}, "states no SHA-256"),
        ({"sha256": "../x"}, "states no SHA-256"),
    ],
)
def test_a_lock_with_a_bad_wheel_is_one_line(changed: dict[str, str], words: str) -> None:
    with pytest.raises(TourkitError, match=words) as error:
        wheels_of(LOCK.format(**(PLAIN | changed)), "pylock.x.toml", parse_target("cp312-win_amd64"))

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[[packages", "[[packages]]\nversion = 1", "[[packages]]\nname = 1\nwheels = [3]"])
def test_a_damaged_lock_says_to_delete_it(text: str) -> None:
    with pytest.raises(UsageError, match="delete it, then run the command again"):
        wheels_of(text, "pylock.x.toml", parse_target("cp312-win_amd64"))


def test_a_stored_lock_has_no_password_and_no_file_of_the_user() -> None:
    lock = (
        LOCK.format(**PLAIN) + '\n[[packages]]\nname = "own"\narchive = { path = "/home/me/own-1-py3-none-any.whl" }\n'
    )

    text = stored(lock, ["a>=1"], frozenset({"own"}))

    assert "secret" not in text
    assert "/home/me" not in text
    assert asked_for(text, "pylock.x.toml") == ["a>=1"]
    assert [wheel.url for wheel in wheels_of(text, "x", parse_target("cp312-win_amd64"))] == [
        "https://index.invalid/a-1-py3-none-any.whl"
    ]
