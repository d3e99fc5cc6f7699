"""params.yaml: typed, read, preset, described."""
