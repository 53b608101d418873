"""Templates as files to list, copy and load, and the batch runner that puts documents through them."""
