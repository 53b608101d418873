"""OpenAI's API over one engine."""
