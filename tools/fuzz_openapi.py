"""schemathesis against a running server and its own document: `python -m tools.fuzz_openapi ST [--seconds N]`.

ST is the program `st` of schemathesis, in an environment of its own. The server has a model with random weights and no
network. The run fails if there is a status of 500 or above but 503, an answer that the document does not describe, a
body that the document allows and the server refuses for another reason than those in tests/unsaid.py, or a body that
the document does not allow and the server accepts. Half of the time are single requests, half are sequences of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serving import serve_command

from tools.random_gguf import write_random_gguf

_TOOLS = Path(__file__).parent
_CONTEXT = "256"  # tokens: without a limit an answer takes all of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("st", type=Path, help="the program st of schemathesis")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model, log = Path(name) / "tiny-random.gguf", Path(name) / "log"
        write_random_gguf(model)
        with serve_command([str(model), "--context", _CONTEXT, "--offline"], log) as served:
            url = f"{served.url}/openapi.json"
            half = str(options.seconds // 2)
            runs = (
                ["run", url, "--max-time", half, "--phases", "coverage,fuzzing"],
                ["fuzz", url, "--max-time", half, "--exclude-path", "/v1/models/unload"],  # a load takes seconds
            )
            codes = [_st(options.st, [*run, "--seed", str(options.seed)], name) for run in runs]
        traces = log.read_text(errors="replace").count("\nTraceback")
        print(f"\nThe server's log has {traces} tracebacks.")
    return 1 if any(codes) or traces else 0


def _st(program: Path, arguments: list[str], folder: str) -> int:
    """Run schemathesis. Return its exit code. Its files go to `folder`."""
    command = [str(program.absolute()), "--config-file", str(_TOOLS / "schemathesis.toml"), *arguments, "--no-color"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_openapi_hooks", "PYTHONPATH": str(_TOOLS)}
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
