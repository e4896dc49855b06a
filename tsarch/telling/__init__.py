"""All that people read of a run: the terminal, files, curves, traces, the report."""
