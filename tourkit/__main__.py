"""`python -m tourkit` is the `tourkit` command."""

import sys

from tourkit.cli import main

sys.exit(main())
