"""The only server that clients talk to, and the workers behind it."""
