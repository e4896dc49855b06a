"""Files as people have them, read as raw rows: column → value."""
