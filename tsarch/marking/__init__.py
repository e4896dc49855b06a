"""A model's answers beside what is right: mistakes, which kinds there are, and whose they are."""
