"""Download from a hub into a bundle. The only package that connects beyond loopback."""
