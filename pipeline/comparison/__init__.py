"""Comparison of runs: where their results are read from, whether they are comparable, and what differs."""
