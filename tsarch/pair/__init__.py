"""A teacher and a student that only compute: no engine, optimizer, link or loss."""
