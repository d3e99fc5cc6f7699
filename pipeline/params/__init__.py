"""The params: types, reader, presets, JSON schema and reference."""
