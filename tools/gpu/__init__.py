"""The check of tourkit on a machine with a GPU (README.md beside this file says how to run it)."""
