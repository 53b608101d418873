"""Constraints on generated text: compile schemas to grammars, follow them, check and repair the result."""
