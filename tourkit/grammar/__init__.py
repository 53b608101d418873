"""Constraints on generated text: schemas made followable, followed, and checked."""
