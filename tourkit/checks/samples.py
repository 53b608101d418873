"""Steps of a rehearsal: every template of the bundle on a few of its own sample documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tourkit.checks.desk import Desk
from tourkit.checks.findings import Status, failure, of_message, ok, warning
from tourkit.checks.steps import Result
from tourkit.errors import NotSo
from tourkit.units import counted

_DEADLINE = "15m"  # a template that hangs must not hang the rehearsal


def templates(root: Path) -> list[Path]:
    """Return the folders of the templates that a bundle carries."""
    return sorted(path.parent for path in (root / "templates").glob("*/*.py") if path.stem == path.parent.name)


def step_of(template: Path) -> str:
    return f"template {template.name}"


def run(desk: Desk, template: Path, url: str) -> Result:
    """Run a template on its first and its last sample, which are in different languages.

    A wrong answer of a model is no failure: a template fails if it cannot run, or if no document gets a record.
    """
    what = step_of(template)
    samples = template / "documents.jsonl"
    lines = samples.read_text(encoding="utf-8").splitlines() if samples.is_file() else []
    if not lines:
        return Result(warning(what, "not run: it has no samples", f"put some into {samples.name} beside it"))
    # Two are enough to see that it works: a weak machine needs half a minute for one.
    chosen = dict.fromkeys((lines[0], lines[-1]))
    given, out = (desk.folder / f"{template.name}.{part}.jsonl" for part in ("in", "out"))
    given.write_text("".join(f"{line}\n" for line in chosen), encoding="utf-8")
    arguments = ["run", str(template), "--input", str(given), "--output", str(out), "--url", url]
    done = desk.run(desk.tourkit(*arguments, "--deadline", _DEADLINE, offline=True))
    if not out.exists():
        return Result(of_message(Status.FAILURE, what, done.last_words))
    return judged(what, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], len(lines))


def judged(what: str, records: list[dict[str, Any]], of: int) -> Result:
    """Return the result for the records of some documents. `of`: how many samples there are."""
    if not records:
        raise NotSo("gives no records: run it by hand with `tourkit run`")
    bad = [str(record.get("error", "it gives no reason")) for record in records if not record.get("ok")]
    about = f"{counted(len(records) - len(bad), 'record')} from {counted(len(records), 'document')} of {of} samples"
    if len(bad) == len(records):
        return Result(failure(what, f"{about}; {bad[0]}", "run it by hand with `tourkit run`"))
    if bad:
        return Result(warning(what, f"{about}; {bad[0]}", "run it by hand with `tourkit run`"))
    return Result(ok(what, about))
