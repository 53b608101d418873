"""One module or package for each stack, with the name of the stack. It loads a variant and serves requests.

Each has `load(launch)`, which returns an Engine. Only that module or package imports the stack's library, and only
inside functions. Several stacks share the other modules here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.headers.check import check_weights

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a variant with its stack. Raises LocalError if the stack, a file or an option does not work.

    The headers of the files are checked first: a library may end the process for a number that no model has.
    """
    for path in (launch.path, *launch.lora):
        check_weights(Path(path))
    engine: Engine = import_module(f"tourkit.backends.{launch.stack}").load(launch)
    return engine
