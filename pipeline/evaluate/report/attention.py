"""Attention maps: the attention weights of each head for one text, computed during the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.data.joined import AnyIds
from pipeline.evaluate.report.excerpt import token_text
from pipeline.evaluate.report.heads import evenly_spaced_indices
from pipeline.evaluate.report.records import AttentionMaps
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.attention import Attention, DocumentMask
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.scoring import evaluating

TOKENS = 28
"""The maximum number of tokens of a map, so that tokens are distinguishable on a phone."""
_LAYERS, _HEADS = 12, 12


def read_attention(checkpoint: Checkpoint, ids: AnyIds) -> AttentionMaps | None:
    """The maps for the first tokens of a held-out text. None if the context has only one token, or the model does
    not use `Attention` of `pipeline.model.blocks`."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    tokens = ids[: min(TOKENS, model.architecture.shape.context_length)].astype(np.int64)
    if len(tokens) < 2 or not any(isinstance(module, Attention) for module in model.modules()):
        return None
    weights = attention_weights(model, torch.from_numpy(tokens).to(device_of(model))).cpu().numpy()
    layers, heads = (
        evenly_spaced_indices(weights.shape[0], _LAYERS),
        evenly_spaced_indices(weights.shape[1], _HEADS),
    )
    return AttentionMaps(
        tokens=[token_text(tokenizer, int(token)) for token in tokens],
        weights=weights[np.ix_(layers, heads)],
        layers=[layer + 1 for layer in layers],
        heads=[head + 1 for head in heads],
    )


@torch.no_grad()
def attention_weights(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """The attention weights for tokens [T] as [layers, heads, T, T] in float32; each row adds up to 1.

    The fused kernels do not return the weights, so hooks read the input of each attention, and softmax(q·k/√d) is
    computed from the queries and keys of this input.
    """
    seen: list[torch.Tensor] = []

    def look(attention: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        x, rotation, mask, *_ = inputs
        q, k, _ = attention.project(x, rotation)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # grouped-query attention: heads share keys
        if isinstance(mask, DocumentMask):
            mask = mask.dense()
        elif mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
        seen.append(scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)[0])

    handles = [
        module.register_forward_pre_hook(look) for module in model.modules() if isinstance(module, Attention)
    ]
    try:
        with evaluating(model):
            checked_forward(model, tokens[None])
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)
