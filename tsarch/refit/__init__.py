"""Going on with a finished run on new data: versions, and whether a new one is taken."""
