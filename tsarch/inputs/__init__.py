"""What users give to be read, from files or at hand, as rows of the task."""
