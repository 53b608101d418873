"""Templates (list, copy, load), and the batch runner that sends documents through them."""
