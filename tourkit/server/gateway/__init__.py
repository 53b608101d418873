"""The one server people talk to, and the workers behind it."""
