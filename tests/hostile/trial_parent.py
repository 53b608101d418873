"""A worker with a trial process and a constraint that hangs in it. It writes the process's id, and never ends."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tourkit.generation import Constraint
from tourkit.grammar.prepared import Manner
from tourkit.grammar.trial.client import Trial
from tourkit.grammar.trial.token_table import TokenTable


async def main() -> None:
    table = TokenTable((*(bytes([byte]) for byte in range(255)), b"<end>"), (255,), (255,), False)
    faults = Path(__file__).with_name("trial_faults.py")
    trial = Trial(lambda: table, command=[sys.executable, str(faults)])
    await trial.start()
    os.write(1, b"%d\n" % trial.pids[0])
    await trial.prepare(Constraint("hang", "it"), Manner())


asyncio.run(main())
