"""From a hub into a bundle. The only package that reaches beyond loopback."""
