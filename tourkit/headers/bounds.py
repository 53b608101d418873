"""The largest numbers that a header may state, each with its reason, and the error for a header that is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tourkit.errors import LocalError

# The largest known model of its kind is in each comment. The bounds leave room for models that do not exist yet.
LAYERS = 512  # llama.cpp's own limit; Llama 3.1 405B has 126
HEADS = 4096  # DeepSeek V3 has 128
HEAD_SIZE = 1 << 14  # values of one head; DeepSeek V3 has 576
WIDTH = 1 << 18  # values of the hidden state; Llama 3.1 405B has 16,384
FEED_FORWARD = 1 << 21  # Llama 3.1 405B has 53,248
CONTEXT = 1 << 28  # tokens; Llama 4 Scout has 10,485,760
VOCABULARY = 1 << 20  # tokens; Gemma 3 has 262,208
EXPERTS = 512  # llama.cpp's own limit; Qwen3-Next has 512
STATE = 1 << 14  # sizes of recurrent states and convolutions; Mamba's state has 256 values for each channel
POOLING = 4  # the kinds of llama.cpp, which aborts for another number
FILE_TYPE = (1 << 32) - 1  # it only names a quant
FIX = "copy or download it again (in a bundle: `tourkit verify`), or choose another model"
_LONGEST_SHOWN = 60  # characters of a foreign value in a message


def refused(where: object, what: str) -> LocalError:
    """Return the error for a header. `where`: the file. `what`: the key and what is wrong with it."""
    return LocalError(f"{where}: {what}: {FIX}")


def shown(value: object) -> str:
    """Return a foreign value as a short text. A list or an object is only named, because it can be nested deeply."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print more than 4300 digits
        return "a number of more than 60 digits"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def whole(value: Any, where: object, key: str, most: int, least: int = 0) -> int:
    """Return a whole number from `least` to `most`. Raises LocalError, which names the file and the key."""
    if isinstance(value, float) and value.is_integer():  # false for NaN and infinity
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refused(where, f"{key} is {shown(value)}, not a whole number")
    if not least <= value <= most:
        raise refused(where, f"{key} is {shown(value)}, not a number from {least} to {most}")
    return value


def whole_or_each(value: Any, where: object, key: str, most: int) -> int | list[int]:
    """Return a whole number up to `most`, or a list with one for each layer. Raises LocalError."""
    if not isinstance(value, list):
        return whole(value, where, key, most)
    if len(value) > LAYERS:
        raise refused(where, f"{key} has {len(value)} numbers, more than {LAYERS} layers")
    return [whole(each, where, f"{key}[{at}]", most) for at, each in enumerate(value)]


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a plain file; the block gets the file and its size in bytes. Raises OSError; LocalError for a special file.

    O_NONBLOCK: to open a FIFO would wait for a writer for ever.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise refused(path, "not a plain file")
        yield file, status.st_size
