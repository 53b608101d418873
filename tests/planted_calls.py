"""Runs templates that reach for the network as a rehearsal runs them, and prints the steps as JSON.

`planted_calls.py BUNDLE [guard]`: with "guard" as on a system that allows no namespaces.
"""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path

import openai_stub

from tourkit.checks import samples, steps
from tourkit.checks.desk import desk
from tourkit.checks.venue import Venue
from tourkit.isolation import trial


def main() -> None:
    if "guard" in sys.argv:
        trial.refusal = lambda: "not allowed, says the test"
    with desk(Path(sys.argv[1]), Venue()) as made, openai_stub.serve(lambda body, index: "x") as stub:
        programs = made.virtual_environment / "bin"
        programs.mkdir(parents=True)
        command = shlex.join([sys.executable, "-m", "tourkit"])
        tourkit = programs / "tourkit"
        tourkit.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.join(sys.path[1:2])} exec {command} "$@"\n')
        tourkit.chmod(0o755)
        taken = [
            steps.take(samples.step_of(each), partial(samples.run, made, each, stub.url), made.attempts)
            for each in samples.templates(made.bundle)
        ]
    sys.stdout.write(json.dumps({step["what"]: step for step in steps.steps_json(taken)}))


if __name__ == "__main__":
    main()
