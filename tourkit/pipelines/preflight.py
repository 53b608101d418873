"""Checks before the first document: an input or a model with which every line would fail."""

import difflib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from tourkit.errors import UsageError
from tourkit.manifest.models import ROLES
from tourkit.pipelines.lines import Line

_ARRAY = "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]"
_OBJECT = "import json, sys; print(json.dumps(json.load(sys.stdin)))"
_CSV = "import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{})]"
_DELIMITERS = {",": "", ";": ", delimiter=';'", "\t": ", delimiter=chr(9)"}


def check_input(path: Path, lines: Sequence[Line]) -> None:
    """Refuse an input that is no JSON Lines file: a JSON array, one object over several lines, CSV, or other text.

    A file with some bad lines passes: each bad line gets its own record. Raises UsageError with the fix.
    """
    if not lines or lines[0].problem is None:
        return
    whole = _parsed_whole(lines) if lines[0].raw[:1] in (b"[", b"{") else None
    if isinstance(whole, list):
        raise UsageError(f"{path}: this is one JSON array, not JSON lines: {_convert(_ARRAY, path)}")
    if isinstance(whole, dict):
        raise UsageError(f"{path}: this is one JSON object over several lines: {_convert(_OBJECT, path)}")
    if any(line.problem is None for line in lines):
        return
    delimiter = _delimiter(path, lines)
    if delimiter is not None:
        code = _CSV.format(_DELIMITERS[delimiter])
        raise UsageError(f"{path}: this is a table (CSV), not JSON lines: {_convert(code, path)}")
    raise UsageError(f"{lines[0].problem}; no line of the file is a document: write one JSON object a line")


def check_model(asked: str | None, own: str, served: Sequence[str], url: str) -> None:
    """Refuse a model that the server does not serve.

    `asked`: the role or model id that the user chose, None if nobody chose one. `own`: the template's own role.
    `served`: what the server at `url` lists. A server that lists no role is not tourkit's; it may know the template's
    role under a name that it does not list, so `own` passes there. Raises UsageError.
    """
    name = own if asked is None else asked
    if name in served or (asked is None and not set(ROLES) & set(served)):
        return
    near = difflib.get_close_matches(name, served, n=1)
    fix = f"did you mean {near[0]!r}?" if near else "choose one of them with --model"
    what = f"--model {name!r}" if asked is not None else f"the template's model {name!r}"
    raise UsageError(f"{what} is not served at {url}, which serves {', '.join(served) or 'nothing'}: {fix}")


def _parsed_whole(lines: Sequence[Line]) -> object:
    """The JSON value that all lines make together; None if they make none."""
    try:
        return json.loads(b"\n".join(line.raw for line in lines))
    except (ValueError, RecursionError):
        return None


def _delimiter(path: Path, lines: Sequence[Line]) -> str | None:
    """The delimiter of a table with a header row; None if the file does not look like one."""
    header = lines[0].raw.decode(errors="replace")
    found = max(_DELIMITERS, key=header.count)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return found if header.count(found) else {".csv": ",", ".tsv": "\t"}[suffix]
    is_table = header[0] not in "[{" and len(lines) > 1 and header.count(found) > 0
    return found if is_table else None


def _convert(code: str, path: Path) -> str:
    source, target = shlex.quote(str(path)), shlex.quote(f"{path.stem}.jsonl")
    return f'convert it with `python -c "{code}" < {source} > {target}`'
