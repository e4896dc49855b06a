"""Ray, all of it: joining, tokens, placing ranks, watching nodes, going on with fewer."""
