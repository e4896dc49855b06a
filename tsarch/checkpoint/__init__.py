"""Checkpoints as files: what makes one whole, where it lies, who writes it."""
