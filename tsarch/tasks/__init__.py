"""The tasks: what a row is, what predictions mean, what they score."""
