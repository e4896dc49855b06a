"""Answers over HTTP: one app, whatever computes behind it. No Ray in here."""
