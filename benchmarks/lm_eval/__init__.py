"""Scores the export with lm-evaluation-harness, on the held-out text of the evaluate stage."""
