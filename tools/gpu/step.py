"""The process of one step: `python -m tools.gpu.step NAME PLACE`. It prints a line of JSON for each finding."""

from __future__ import annotations

import sys

from tools.gpu.place import Place
from tools.gpu.steps import BY_NAME


def main() -> None:
    for finding in BY_NAME[sys.argv[1]].run(Place.of_json(sys.argv[2])):
        print(finding.to_json(), flush=True)


if __name__ == "__main__":
    main()
