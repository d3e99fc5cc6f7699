"""A small model's config, one value of which a test may change."""

from __future__ import annotations

from typing import Any

from pipeline.model.config import GPTConfig


def small_config(**changes: Any) -> GPTConfig:
    """In the form of GPT-2, with a vocabulary that hardly counts."""
    values = {
        "vocab_size": 10,
        "context_length": 64,
        "n_layers": 2,
        "n_heads": 2,
        "emb_dim": 64,
        "dropout": 0.0,
        "qkv_bias": True,
        "tied_head": True,
        "init": "gpt2",
        "pad_vocab_to": 8,
    }
    return GPTConfig(**values | changes)
