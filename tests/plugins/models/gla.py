"""Gated linear attention, without softmax and without positions: a sum over the past that fades as the text says.

It has neither `blocks` nor a cache: it is compiled and sharded as a whole, and generation computes the text again.
"""

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.model.blocks import Linear, RMSNorm, residual, swiglu
from pipeline.plugin import Model, ModelOutput, ModelShape, hookimpl


class GatedLinearAttention(Model):
    """Linear attention with a gate for each head and token (Yang et al., 2023; one number a head, as in Dao & Gu,
    2024), RMSNorm, SwiGLU."""

    name: ClassVar[str] = "gla"

    open: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """The share of the past that a gate keeps, at first, from one token to the next."""

    def build(self, shape: ModelShape) -> nn.Module:
        if shape.document_end is not None:
            raise ValueError("gla does not know where a document ends: set model.document_mask: false")
        return Decoder(self, shape)


class GatedAttention(nn.Module):
    """o[t] = Σ over s ≤ t of (q[t]·k[s]) · a[s+1]···a[t] · v[s], with gates a in (0, 1)."""

    def __init__(self, options: GatedLinearAttention, shape: ModelShape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.qkv = Linear(shape.emb_dim, 3 * shape.emb_dim, bias=False)
        self.gate = Linear(shape.emb_dim, shape.n_heads)
        self.norm = RMSNorm(shape.head_dim)
        self.out = Linear(shape.emb_dim, shape.emb_dim, bias=False)
        nn.init.constant_(self.gate.bias, math.log(options.open / (1 - options.open)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
        # The gates as sums of logarithms [B, heads, T]: their differences never overflow.
        fading = F.logsigmoid(self.gate(x).float()).transpose(1, 2).cumsum(dim=-1)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        kept = (fading[..., :, None] - fading[..., None, :]).masked_fill(~causal, -torch.inf).exp()
        attended = (q @ k.transpose(-1, -2) * kept.to(x.dtype)) @ v
        return self.out(self.norm(attended).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """Gated attention and an MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, options: GatedLinearAttention, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(shape.emb_dim), RMSNorm(shape.emb_dim)
        self.attention = GatedAttention(options, shape)
        self.gate, self.up = (Linear(shape.emb_dim, 2 * shape.emb_dim, bias=False) for _ in range(2))
        self.down = Linear(2 * shape.emb_dim, shape.emb_dim, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        y = self.mlp_norm(x)
        return x + self.dropout(self.down(swiglu(self.gate(y), self.up(y))))


class Decoder(nn.Module):
    """The embedding, layers, a last norm; the output head is the token embedding."""

    def __init__(self, options: GatedLinearAttention, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.padded_vocab_size, shape.emb_dim)
        self.layers = nn.ModuleList(Layer(options, shape) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.emb_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> ModelOutput:
        x = residual(self.token_embedding(ids), self.shape.dropout if self.training else 0.0)
        for layer in self.layers:
            x = layer(x)
        return ModelOutput(self.norm(x).to(x.dtype), self.token_embedding.weight, self.shape.vocab_size)


@hookimpl
def register_models() -> list[type[Model]]:
    return [GatedLinearAttention]
