"""The driver: the loop, evaluation, checkpoints, resuming, starting again after failures."""
