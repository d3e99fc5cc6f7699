"""Tokenizer, token files and batches."""
