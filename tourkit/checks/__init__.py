"""Checks of this machine and a bundle before the day: `tourkit doctor` and `tourkit rehearse`."""
