"""Chooses a variant, a stack and a device for each role on this machine, and predicts the memory they take."""
