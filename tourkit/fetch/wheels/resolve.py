"""Choose the packages of a target with uv, by the target's markers and tags and never by this machine's."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tourkit.errors import HubError, LocalError, NotSo, UsageError, one_line
from tourkit.fetch.wheels.lockfile import Wheel
from tourkit.fetch.wheels.pip_settings import IndexSettings, uv_environment
from tourkit.fetch.wheels.target import Target, uv_platform
from tourkit.files import sha256_of

LLAMA = "llama-cpp-python"  # the index has only its source
CUDA_LLAMA = "cuda-llama"
# What every set has besides tourkit: the client that the templates and START_HERE use, and pip for systems without it.
_ALWAYS = ("openai", "pip")
# Upstream's wheels of llama.cpp for CUDA 12.4 load these libraries. They run on every driver from R525 on.
_CUDA_LIBRARIES = ("nvidia-cublas-cu12==12.4.5.8", "nvidia-cuda-runtime-cu12==12.4.*")
_GET_SUPPLY = "pip install 'tourkit[supply]'"


def local_wheel(path: Path) -> Wheel:
    """Return a wheel that is a file here. Raises UsageError for another file, LocalError if it cannot be read."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        return Wheel(name, str(version), path.name, path.stat().st_size, sha256_of(path), path=path)
    except InvalidWheelFilename as exc:
        raise UsageError(f"{path}: not the name of a wheel ({exc}): give the file the name it had") from exc
    except OSError as exc:
        raise LocalError(f"{path}: cannot be read ({exc.strerror}): check the path and the permissions") from exc


def requirements(target: Target, local: Sequence[Wheel]) -> list[str]:
    """Return what uv is asked for: tourkit with the extras of the sets, and the packages that every set has.

    `local`: wheels that are files here. They are named as `name==version`; `resolve` tells uv where they are.
    """
    pins = {wheel.name: wheel.version for wheel in local}
    wanted = [f"tourkit[{','.join(target.extras)}]=={pins['tourkit']}", *_ALWAYS]
    brings_cuda = any(name.startswith("nvidia-") for name in pins)  # the libraries of another CUDA
    wanted += _CUDA_LIBRARIES if CUDA_LLAMA in target.sets and not brings_cuda else ()
    return wanted + [f"{name}=={version}" for name, version in sorted(pins.items()) if name != "tourkit"]


def asked(target: Target, local: Sequence[Wheel], excluded: Sequence[str]) -> list[str]:
    """Return everything that the result of `resolve` depends on, to be stored in the lock.

    Of tourkit the version does not count, only what it requires: the same lock serves its next version.
    """
    lines = [line.partition("==")[0] if line.startswith("tourkit[") else line for line in requirements(target, local)]
    for wheel in local:
        lines += [
            f"{wheel.name}: {line}" for line in _requires(wheel, target.extras if wheel.name == "tourkit" else ())
        ]
    return sorted(lines) + [f"without {name}" for name in excluded]


def resolve(target: Target, local: Sequence[Wheel], settings: IndexSettings, *, excluded: Sequence[str] = ()) -> str:
    """Return uv's pylock.toml for the target. `excluded`: packages that are left out even if others need them.

    Raises LocalError without uv, NotSo if no versions fit together, HubError if the index cannot be asked.
    """
    wanted = requirements(target, local)
    with tempfile.TemporaryDirectory() as folder:
        sources = {wheel.name: wheel.path.resolve().as_uri() for wheel in local if wheel.path is not None}
        asking, out, without = (Path(folder) / name for name in ("requirements.in", "pylock.toml", "excluded.in"))
        asking.write_text("".join(f"{_located(line, sources)}\n" for line in wanted), encoding="utf-8")
        without.write_text("".join(f"{name}\n" for name in excluded), encoding="utf-8")
        command = [uv_program(), "pip", "compile", str(asking), "--output-file", str(out), "--excludes", str(without)]
        done = _run([*command, *_options(target, settings)], target, settings)
        if done.returncode == 0:
            return out.read_text(encoding="utf-8")
    why = one_line(done.stderr.replace("error: ", "").replace("cause: ", ""))
    if done.returncode == 1:
        raise NotSo(f"{target}: {why}: choose another target or set, or name an index that has the packages")
    fix = "check the network and pip's settings (PIP_INDEX_URL, PIP_PROXY, PIP_CERT, pip.conf)"
    raise HubError(f"{target}: the package index cannot be asked ({why}): {fix}")


def uv_program() -> str:
    """Return the path of uv. Raises LocalError if it is not installed."""
    try:
        import packaging  # noqa: F401  # uv's companion in the extra `supply`
        import uv
    except ImportError as exc:
        raise LocalError(f"{exc.name} is not installed: {_GET_SUPPLY}") from exc
    try:
        return uv.find_uv_bin()
    except FileNotFoundError as exc:
        raise LocalError(f"uv has no program: {_GET_SUPPLY}") from exc


def _located(requirement: str, sources: dict[str, str]) -> str:
    """Return the requirement with the address of its wheel, if the wheel is a file here."""
    name, pinned, _ = requirement.partition("==")
    source = sources.get(name.partition("[")[0])
    return f"{name} @ {source}" if pinned and source else requirement


def _options(target: Target, settings: IndexSettings) -> list[str]:
    """Return uv's options. uv is always given platform and version; else it would resolve for this machine.

    pip takes the best version of all indexes, whichever index has it; uv does so with `unsafe-best-match`. pip and
    tourkit trust the certificates of the system; uv does so with `--system-certs`.
    """
    version = ".".join(map(str, target.version))
    options = ["--format", "pylock.toml", "--python-platform", uv_platform(target)[0], "--python-version", version]
    options += ["--only-binary", ":all:", "--index-strategy", "unsafe-best-match", "--system-certs"]
    # Nothing is built, so this Python serves. Without --python uv would try every interpreter on PATH, for seconds.
    options += ["--python", sys.executable, "--no-python-downloads", "--no-config", "--no-header", "--quiet"]
    return [*options, "--no-index"] if settings.no_index else options


def _run(command: list[str], target: Target, settings: IndexSettings) -> subprocess.CompletedProcess[str]:
    environment = os.environ | uv_environment(settings) | uv_platform(target)[1]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, encoding="utf-8")


def _requires(wheel: Wheel, extras: Sequence[str]) -> list[str]:
    """Return what a wheel requires: always, and with one of the extras."""
    if wheel.path is None:
        return []
    with zipfile.ZipFile(wheel.path) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    return [line for line in lines if "extra ==" not in line or any(f"extra == '{each}'" in line for each in extras)]
