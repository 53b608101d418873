"""`python -m tourkit.grammar.trial`: a worker starts it (`connection`) and speaks to it over its stdin and stdout."""

import sys

from tourkit.grammar.trial.process import main

if __name__ == "__main__":
    sys.exit(main())
