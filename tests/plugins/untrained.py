"""Untrained models as exporters see them."""

from __future__ import annotations

from typing import Any

import torch
from conftest import made_up_text
from small_config import small_config

from pipeline.data.tokenizer import Tokenizer
from pipeline.export.stage import export_source
from pipeline.model.checkpoint import Checkpoint
from pipeline.plugin import ExportSource


def untrained(tokenizer: Tokenizer, shape: dict[str, Any], spread: bool) -> ExportSource:
    """A model with weights large enough that its logits differ.

    With embeddings `spread` wide, texts differ too, and do not end at once.
    """
    torch.manual_seed(0)
    model = small_config(vocab_size=tokenizer.vocab_size, **shape).make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if spread:
            model.token_embedding.weight.normal_()
    return export_source(Checkpoint(model, tokenizer, 1, "last"), made_up_text(1, 200))
