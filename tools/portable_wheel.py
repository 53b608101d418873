"""Build the portable wheel of llama-cpp-python: `python -m tools.portable_wheel FOLDER` prints its path.

If the folder has a wheel of this version and recipe, nothing is built.
"""

import sys
from pathlib import Path

from tourkit.fetch.wheels.llama import portable_wheel
from tourkit.fetch.wheels.target import here


def main() -> None:
    print(portable_wheel(here(("cpu",)), Path(sys.argv[1]), say=lambda line: print(line, file=sys.stderr)))


if __name__ == "__main__":
    main()
