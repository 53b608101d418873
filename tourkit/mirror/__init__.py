"""A bundle served on the LAN as a Hugging Face-compatible hub."""
