"""Bundles: the folder that goes on a drive. Build, read, write and verify its index."""
