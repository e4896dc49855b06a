"""Ranks and crews: running instructions, commands to ranks, diagnosing the ones that fail."""
