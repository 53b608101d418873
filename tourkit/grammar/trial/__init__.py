"""The process that tries constraints and checks answers, so that a hostile one ends this process and not the worker."""
