"""The first render of a chat template, in a process of its own under limits of time and memory.

`python -m tourkit.backends.template_trial` reads one JSON object from stdin and writes one to stdout. A template that
hangs, takes memory or crashes there ends that process alone, and the worker says so in one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tourkit.backends.chat_template import ChatTemplate
from tourkit.errors import EngineError, LocalError, RequestError, one_line

_COMMAND = ["-m", "tourkit.backends.template_trial"]
_SECONDS = 30  # of wall time: the process may start slowly on a busy machine
_CPU_SECONDS = 10
_MEMORY = 1 << 30  # bytes of address space
_QUESTION = {"role": "user", "content": "Hello"}
_SYSTEM = {"role": "system", "content": "Answer in one sentence."}
_ANSWER = {"role": "assistant", "content": "Hello. How can I help?"}
_CHATS = ([_QUESTION], [_SYSTEM, _QUESTION, _ANSWER, _QUESTION])


def try_out(source: str, special_tokens: dict[str, str], path: Path) -> None:
    """Compile and render a template in the helper process. `path`: of the model, for messages.

    A template may refuse the messages of the trial. Raises LocalError if it cannot be compiled, does too much, hangs or
    crashes.
    """
    asked = json.dumps({"source": source, "special_tokens": special_tokens})
    try:
        done = subprocess.run(
            [sys.executable, *_COMMAND],
            input=asked.encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise LocalError(_message(path, f"does not end within {_SECONDS} s")) from exc
    except OSError as exc:
        raise LocalError(f"{path}: its chat template cannot be tried: no process can be started ({exc})") from exc
    if done.returncode:
        raise LocalError(_message(path, f"ends the process that tries it (exit status {done.returncode})"))
    fault = json.loads(done.stdout)["fault"]
    if fault:
        raise LocalError(_message(path, f"cannot be used: {one_line(fault)}"))


def _message(path: Path, what: str) -> str:
    return f"{path}: its chat template {what}: choose another model, or give it another chat_template in the manifest"


def _fault(source: str, special_tokens: dict[str, str]) -> str:
    """Return what makes a template unusable; empty if nothing does."""
    from tourkit.backends.template_budget import OverBudget

    try:
        template = ChatTemplate(source, special_tokens)
    except EngineError as exc:
        return str(exc)
    for chat in _CHATS:
        try:
            template.render(chat)
        except RequestError as exc:
            if isinstance(exc.__cause__, OverBudget | MemoryError | RecursionError):
                return str(exc)
    return ""


def _limit() -> None:
    """Set the limits of this process, where the system has them."""
    try:
        import resource
    except ImportError:  # Windows: the time limit of the caller is left
        return
    for kind, most in (
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    _limit()
    asked = json.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps({"fault": _fault(asked["source"], asked["special_tokens"])}))


if __name__ == "__main__":
    main()
