"""Losses as stateless functions, and what a stage's predictions mean."""
