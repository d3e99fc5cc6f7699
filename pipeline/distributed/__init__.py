"""A stage in several processes: their ranks, their launcher and process group, and requests to stop."""
