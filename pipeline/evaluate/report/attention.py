"""Where each head looks: the weights of its attention in one text, computed beside the model's own forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.data.tokens import Ids
from pipeline.evaluate.report.excerpt import shown
from pipeline.evaluate.report.heads import spread
from pipeline.evaluate.report.records import AttentionMaps
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.attention import Attention
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.scoring import evaluating

TOKENS = 28
"""The most tokens of a map: each is still to be told apart on a phone."""
_LAYERS, _HEADS = 12, 12


def read_attention(checkpoint: Checkpoint, ids: Ids) -> AttentionMaps | None:
    """The maps of the first tokens of a held-out text; None where the context is too short to
    look anywhere, or the model has no `Attention` of the pipeline's blocks."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    tokens = ids[: min(TOKENS, model.architecture.shape.context_length)].astype(np.int64)
    if len(tokens) < 2 or not any(isinstance(module, Attention) for module in model.modules()):
        return None
    weights = attention_weights(model, torch.from_numpy(tokens).to(device_of(model))).cpu().numpy()
    layers, heads = spread(weights.shape[0], _LAYERS), spread(weights.shape[1], _HEADS)
    return AttentionMaps(
        tokens=[shown(tokenizer, int(token)) for token in tokens],
        weights=weights[np.ix_(layers, heads)],
        layers=[layer + 1 for layer in layers],
        heads=[head + 1 for head in heads],
    )


@torch.no_grad()
def attention_weights(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """How much each token [T] looks at each one, as [layers, heads, T, T] in float32; rows add up to 1.

    Each attention's own input is read on its way in, and softmax(q·k/√d) is formed from the very queries and keys
    that it computes from that, so the fused kernels, which never hold these weights, stay as they are.
    """
    seen: list[torch.Tensor] = []

    def look(attention: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        x, rotation, mask, *_ = inputs
        q, k, _ = attention.project(x, rotation)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # heads may share their keys
        if mask is None:
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
