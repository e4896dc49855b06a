"""All that ranks exchange: process groups, the link, the tied table's gradient."""
