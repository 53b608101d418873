"""tourkit: pin, prefetch, verify and serve open LLMs for a competition without a network."""

__version__ = "0.1.0"
