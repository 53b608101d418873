"""Check paths that go on a drive: plain, relative, valid on every system, no pickle, distinct on exFAT."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from tourkit.errors import ManifestError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HOSTILE = re.compile('[\\\\:?*"<>|\x00-\x1f\x7f-\x9f\ud800-\udfff]')  # control characters and surrogates too
_RESERVED = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)


def check_path(path: str, where: str) -> None:
    """Refuse a path that is not a plain relative file name on every system, or that is a pickle.

    `where` begins the message. Raises ManifestError.
    """
    problem = path_problem(path)
    if problem is not None:
        raise ManifestError(f"{where}: {path!r} {problem}")


def check_distinct(paths: Sequence[str], where: str) -> None:
    """Refuse paths that are the same on a case-insensitive drive. Raises ManifestError."""
    seen: dict[str, str] = {}
    whole: set[str] = set()  # folders that were compared: many files are in one folder
    for path in paths:
        folder = path.rpartition("/")[0]
        parts = folder.split("/") if folder and folder not in whole else []
        whole.add(folder)
        folders = ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts) + 1)]
        for name in (*folders, path):
            other = seen.setdefault(_folded(name.rstrip("/")), name)
            if other != name:
                raise ManifestError(
                    f"{where}: {other!r} and {name!r} are the same name on exFAT, Windows and macOS: leave one out"
                )
    # A folder may appear many times, a file only once.
    for path, times in Counter(paths).items():
        if times > 1:
            raise ManifestError(f"{where}: {path!r} is named twice: name it once")


def path_problem(path: str) -> str | None:
    """Return what is wrong with the path and the fix, as the end of "'path' ..."; None if nothing is wrong."""
    if path.startswith("/"):
        return "is an absolute path: write it relative to the repository"
    names = path.split("/")
    if ".." in names:
        return "leaves its folder: write it without '..'"
    if "" in names or "." in names:
        return "has an empty or '.' part: write it as folder/file"
    if _HOSTILE.search(path):
        return 'has a character that Windows refuses (\\ : ? * " < > | or a control character): leave this file out'
    for name in names:
        if name[-1] in ". ":
            return "has a name that ends with a dot or a space, which Windows drops: leave this file out"
        if name.split(".")[0].rstrip().upper() in _RESERVED:
            return "is a device name on Windows: leave this file out"
        if len(name.encode()) > 255:
            return "has a name of more than 255 bytes: leave this file out"
    if names[-1].lower().endswith(PICKLED):
        return f"is a pickle ({', '.join(PICKLED)}), which can run code when loaded: take safetensors or GGUF"
    return None


def _folded(path: str) -> str:
    if path.isascii():
        return path.casefold()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
