"""Namespaces of Linux for one process and its children: a network with loopback alone, and mounts of its own."""
