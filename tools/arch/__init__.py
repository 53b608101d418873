"""Tiny random models of every architecture of the catalogue, and tests of each stack with each of them."""
