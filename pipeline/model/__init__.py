"""The GPT, and generation from it."""
