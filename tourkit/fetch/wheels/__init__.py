"""Python wheels for the machine at the venue: choose them, fetch them into a bundle, check them."""
