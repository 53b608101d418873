"""A process with one loaded model, which speaks HTTP to the gateway."""
