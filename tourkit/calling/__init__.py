"""How models call tools: the forms of the families, and the calls in a text."""
