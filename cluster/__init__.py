"""Ray, all of it: joining, placing ranks, watching them, saying who is to blame."""
