"""Using what was trained: plain texts and rows to answers, in Python and from files."""
