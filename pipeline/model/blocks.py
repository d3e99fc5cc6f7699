"""Building blocks of models: attention and KV cache, norms, activations, dropout, document masks, initial weights.

A model plugin may import this module and `pipeline.plugin`, and nothing else of the pipeline.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from pipeline.model import functions
from pipeline.model.attention import Attention, DocumentMask, KVCache, Mask, Rotation, attend
from pipeline.model.functions import (
    RMS_EPS,
    Linear,
    dropped,
    gelu,
    keep_mask,
    relu_squared,
    rms_norm,
    rotate,
    swiglu,
)
from pipeline.plugin.components import ModelShape

__all__ = [
    "Attention",
    "DocumentMask",
    "DropoutMasks",
    "KVCache",
    "Linear",
    "Mask",
    "RMSNorm",
    "Rotation",
    "attend",
    "dropped",
    "gelu",
    "init_gpt2",
    "keep_mask",
    "positions",
    "relu_squared",
    "residual",
    "rms_norm",
    "rotary_width",
    "rotate",
    "swiglu",
    "visible",
]


class RMSNorm(nn.Module):
    """`rms_norm` as a module, with `width` weights; without weights if `width` is None."""

    def __init__(self, width: int | None = None, eps: float = RMS_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = None if width is None else nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(x, self.eps)
        return normed if self.weight is None else normed * self.weight.to(x.dtype)


class DropoutMasks(NamedTuple):
    """The dropout masks of one block: True keeps a number. None keeps all of them.

    Attributes:
        attention_weights: For attention's weights [B, n_heads, T, T]. Also None on a GPU, where the fused kernel
            draws its own mask.
        attention_output, mlp_output: For what attention and MLP add to the residual stream [B, T, D].
    """

    attention_weights: torch.Tensor | None = None
    attention_output: torch.Tensor | None = None
    mlp_output: torch.Tensor | None = None

    @classmethod
    def draw(cls, x: torch.Tensor, dropout: float, n_heads: int = 0) -> DropoutMasks:
        """Draws the masks of a block with the input `x` [B, T, D]. Call it outside of blocks: in compiled code,
        drawing is slow.

        Args:
            x: The residual stream.
            dropout: The share to drop; 0 outside of training.
            n_heads: The number of heads, if attention weights are dropped, too; otherwise 0.
        """
        if not dropout:
            return cls()
        (batch, length, _), weights = x.shape, None
        if n_heads and functions.code_path(x.device) == "cpu":
            weights = keep_mask((batch, n_heads, length, length), dropout, x.device)
        return cls(weights, keep_mask(x.shape, dropout, x.device), keep_mask(x.shape, dropout, x.device))


def residual(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """The start of the residual stream [B, T, D]: embedded tokens with `dropout` (0 outside of training), under
    autocast in its dtype, which halves the memory traffic."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return dropped(x, keep_mask(x.shape, dropout, x.device), dropout) if dropout else x


def visible(tokens: torch.Tensor, cache: KVCache | None, document_end: int | None) -> Mask | None:
    """The attention mask: which tokens each new token sees. None for a plain causal mask.

    Args:
        tokens: The new ids [B, new].
        cache: The KV cache of earlier tokens; with a `document_end`, the new ids are appended to its `tokens`.
        document_end: The id that ends a document, if tokens see only their own document.
    """
    new = tokens.shape[1]
    total = new + (cache.length if cache is not None else 0)
    if document_end is None and new in (1, total):
        return None
    if document_end is not None and cache is None:
        mask = DocumentMask.of(tokens, document_end)
        # On a CPU, the attention of a DocumentMask is not compiled.
        compiled_on_cpu = torch.compiler.is_compiling() and functions.code_path(tokens.device) == "cpu"
        return mask.dense() if compiled_on_cpu else mask
    causal = torch.ones(new, total, dtype=torch.bool, device=tokens.device).tril(total - new)
    if document_end is None or cache is None:
        return causal
    tokens = cache.append(tokens)
    ends = (tokens == document_end).int()
    document = ends.cumsum(dim=1) - ends  # [B, total]; the end token belongs to its document
    return (causal & (document[:, -new:, None] == document[:, None, :]))[:, None]


def positions(tokens: torch.Tensor, cache: KVCache | None, mask: Mask | None = None) -> torch.Tensor:
    """The position of each new token, from 0: in the text, or with a `mask` of `visible` in what it sees, which may
    be its own document. [new], or [B, new].

    Args:
        tokens: The new ids [B, new].
        cache: The KV cache of earlier tokens.
        mask: The mask; None for models whose positions are relative, such as rotary ones.
    """
    start = cache.length if cache is not None else 0
    places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
    if isinstance(mask, DocumentMask):
        return places - mask.starts
    if mask is None or mask.dim() == 2:
        return places
    return mask[:, 0].sum(dim=-1) - 1


def rotary_width(shape: ModelShape) -> int:
    """The head size of a model with rotary positions.

    Raises:
        ValueError: it is odd; rotary positions need pairs.
    """
    if shape.head_dim % 2:
        raise ValueError(
            f"emb_dim {shape.emb_dim} / n_heads {shape.n_heads} must be even: rotary positions need pairs"
        )
    return shape.head_dim


def init_gpt2(model: nn.Module, n_layers: int) -> None:
    """GPT-2's initial weights (Radford et al., 2019, 2.3): Normal(0, 0.02) and zero biases. The standard deviation
    of residual projections, `attention.out` and `mlp.down`, is divided by √(2 · n_layers).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers))
