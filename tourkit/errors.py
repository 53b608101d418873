"""Every error that tourkit raises on purpose, with the exit code of the command line.

TourkitError
├── NotSo              1  a check failed: damage found, nothing fits
├── UsageError         2  wrong argument or input file
│   └── ManifestError  2  a manifest or a lock is wrong, stale or unresolved
├── HubError           3  the hub or the network failed
│   ├── Unreachable    3  nobody answers at the endpoint, whichever repository is asked for
│   └── WrongContent   3  the bytes received are not the bytes the lock names
├── Interrupted      130  Ctrl-C during work that can be resumed
├── LocalError         4  disk full, no permission, a missing stack, a busy port
├── EngineError        4  the engine or a worker failed
│   ├── EngineDead     4  the engine thread or the worker process has ended (HTTP 503)
│   └── QueueFull      4  no room for another request now (HTTP 429)
└── RequestError       2  a request that cannot be served as written (HTTP 400, or `status`)

A message is one line: what, where: the fix. Where one run finds several problems, `details` has a line for each.
"""

_MAX_LINE = 300  # characters of a message that is quoted
_MAX_FOREIGN = 200  # characters of a client's own text in a message


def one_line(text: str) -> str:
    """Return a message as one line of at most 300 characters, to quote it in a message of tourkit."""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 1] + "…"


def said_by(error: BaseException) -> str:
    """Return the message of any exception in one line. The methods of an exception of foreign code may fail too."""
    try:
        said = f"no field {error}" if isinstance(error, KeyError) else str(error) or repr(error)
    except BaseException as again:  # noqa: BLE001 - foreign code may raise anything
        said = f"its message cannot be shown ({type(again).__name__})"
    return " ".join(said.split())


def excerpt(text: str, most: int = _MAX_FOREIGN) -> str:
    """Return the start of a text for a message: at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def quoted(text: str) -> str:
    """Return a client's text in quotes for a message: at most 200 characters, control characters escaped."""
    return excerpt(repr(text[:_MAX_FOREIGN]))


class TourkitError(Exception):
    """The root of the tree. `exit_code`: of the process. `details`: a line for each problem if there are several."""

    exit_code = 4

    def __init__(self, message: str, *, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details


class NotSo(TourkitError):
    exit_code = 1


class UsageError(TourkitError):
    exit_code = 2


class ManifestError(UsageError):
    pass


class HubError(TourkitError):
    exit_code = 3


class Unreachable(HubError):
    pass


class WrongContent(HubError):
    pass


class Interrupted(TourkitError):
    exit_code = 130


class LocalError(TourkitError):
    exit_code = 4


class EngineError(TourkitError):
    exit_code = 4


class EngineDead(EngineError):
    pass


class QueueFull(EngineError):
    pass


class RequestError(TourkitError):
    """`param`: the wrong field, at most 200 characters. `code`: OpenAI's machine-readable reason. `status`: of HTTP."""

    exit_code = 2

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param if param is None else excerpt(param)
        self.code = code
        self.status = status
