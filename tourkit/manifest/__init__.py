"""Manifests, the catalogue and locks: what people write, checked completely before it becomes a dataclass."""
