"""The commands by what they are about; cli.py puts them together. Each calls into one module and prints."""
