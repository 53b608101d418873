"""Which variant fills which role here, on what, and how much memory it takes."""
