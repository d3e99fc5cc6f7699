"""The report: a self-contained HTML page, and its figures as files."""
