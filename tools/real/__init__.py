"""Real models in the formats of every stack, for `make test-real`."""
