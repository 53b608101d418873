"""Continuous batching over one model context: policy in pure modules, one thread that owns the context."""
