"""Training rows out of other ones, or of text without labels, with a trained pair's help."""
