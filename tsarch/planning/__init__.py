"""Before a run: does it fit, is the config sound, how many replicas."""
