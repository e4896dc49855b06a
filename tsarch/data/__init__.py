"""From rows to the padded arrays of a replica: reading, tokenising, batching, sharing out."""
