"""Continuous batching over one model context. Pure modules decide; one thread owns the context."""
