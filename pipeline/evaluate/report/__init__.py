"""The report: one HTML page that needs nothing from anywhere, and its figures as files."""
