"""Holding runs against each other: where their results lie, whether they may be compared, and what differs."""
