"""Record the locks that tests/test_wheel_locks.py reads: `PIP_CONFIG_FILE=/dev/null python -m tools.wheel_locks DIR`.

Needs the package index. Hosts and upload times are taken out. Names, sizes and hashes stay.
"""

import re
import sys
import tempfile
from pathlib import Path

from tourkit.fetch.wheels.lockfile import stored
from tourkit.fetch.wheels.own_wheel import own_wheel
from tourkit.fetch.wheels.pip_settings import read_settings
from tourkit.fetch.wheels.resolve import LLAMA, asked, local_wheel, resolve
from tourkit.fetch.wheels.target import parse_target

RECORDED = (
    "cp311-manylinux_2_31_x86_64",
    "cp312-manylinux_2_31_x86_64",
    "cp313-manylinux_2_31_x86_64",
    "cp312-macosx_14_0_arm64",
    "cp312-win_amd64",
    "cp312-manylinux_2_31_x86_64:cuda-vllm",
)


def real_lock(name: str, folder: Path) -> str:
    """Return the lock of a target, without llama.cpp, as the package index answers now. `folder` is for scratch."""
    target = parse_target(name)
    local = [local_wheel(own_wheel(folder))]
    text = resolve(target, local, read_settings(), excluded=(LLAMA,))
    return stored(text, asked(target, local, (LLAMA,)), frozenset({"tourkit"}))


def cut(lock: str) -> str:
    """Return a lock without hosts and upload times."""
    lock = re.sub(r'"https?://[^"]*/([^"/]+\.whl)"', r'"https://index.invalid/\1"', lock)
    return re.sub(r", upload-time = [^,]+(?=,)", "", lock)


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        for name in RECORDED:
            path = folder / f"pylock.{parse_target(name).name}.toml"
            path.write_text(cut(real_lock(name, Path(scratch))), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
