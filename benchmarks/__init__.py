"""Benchmarks of the project against similar projects, on the current machine: `make bench`."""
