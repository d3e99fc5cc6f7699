"""A mixture of experts: a few of many MLPs compute each token, and a balance loss keeps all of them in use."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from pipeline.model.blocks import (
    Attention,
    KVCache,
    Linear,
    RMSNorm,
    Rotation,
    init_gpt2,
    relu_squared,
    residual,
    rotary_width,
    visible,
)
from pipeline.plugin import Model, ModelOutput, ModelShape, hookimpl


class MixtureOfExperts(Model):
    """Rotary positions, RMSNorm, and in each block the `active` best of `experts` MLPs for each token."""

    name: ClassVar[str] = "moe"

    experts: Annotated[int, Field(ge=2, le=256)] = 4
    """MLPs in each block."""
    active: Annotated[int, Field(ge=1)] = 2
    """How many of them compute a token."""
    balance: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the balance loss, which is 1 where all experts get the same share (Fedus et al., 2021)."""

    def build(self, shape: ModelShape) -> nn.Module:
        if self.active > self.experts:
            raise ValueError(f"moe.active {self.active} must be at most moe.experts {self.experts}")
        return Decoder(self, shape)


class Expert(nn.Module):
    """Two linear layers with ReLU² between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = Linear(width, 2 * width, bias=False)
        self.down = Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(relu_squared(self.up(x)))


class Experts(nn.Module):
    """x [B, T, D] → the chosen experts' weighted mean [B, T, D], and how unevenly they were chosen.

    All experts compute all tokens and most results are weighted by 0: shapes stay fixed, so it compiles, and each
    expert has a gradient in each step. To save work, gather each expert's tokens instead.
    """

    def __init__(self, options: MixtureOfExperts, width: int) -> None:
        super().__init__()
        self.active = options.active
        self.router = Linear(width, options.experts, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(options.experts))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.router(x).float().softmax(dim=-1)  # [B, T, experts]
        best = p.topk(self.active, dim=-1).indices
        chosen = torch.zeros_like(p).scatter(-1, best, 1.0)
        weights = p * chosen / (p * chosen).sum(dim=-1, keepdim=True)
        out = torch.stack([weights[..., e, None].to(x.dtype) * each(x) for e, each in enumerate(self.experts)]).sum(
            0
        )
        share = chosen.mean(dim=(0, 1)) / self.active
        return out, len(self.experts) * (share * p.mean(dim=(0, 1))).sum()


class Block(nn.Module):
    """Attention and experts, each with a norm before it and a residual connection around it."""

    def __init__(self, options: MixtureOfExperts, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.emb_dim)
        self.attention = Attention(shape, layer)
        self.mlp_norm = RMSNorm(shape.emb_dim)
        self.mlp = Experts(options, shape.emb_dim)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self, x: torch.Tensor, rotation: Rotation, mask: torch.Tensor | None, cache: KVCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, None, cache))
        out, unevenness = self.mlp(self.mlp_norm(x))
        return x + self.dropout(out), unevenness


class Decoder(nn.Module):
    """The embedding, blocks, a last norm, and the output head."""

    def __init__(self, options: MixtureOfExperts, shape: ModelShape) -> None:
        super().__init__()
        self.shape, self.balance, self.head_dim = shape, options.balance, rotary_width(shape)
        self.token_embedding = nn.Embedding(shape.padded_vocab_size, shape.emb_dim)
        self.blocks = nn.ModuleList(Block(options, shape, layer) for layer in range(shape.n_layers))
        self.norm = RMSNorm(shape.emb_dim)
        self.head = nn.Linear(shape.emb_dim, shape.padded_vocab_size, bias=False)
        init_gpt2(self, shape.n_layers)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> ModelOutput:
        start = cache.length if cache is not None else 0
        rotation = Rotation.at(torch.arange(start, start + ids.shape[1], device=ids.device), self.head_dim)
        x = residual(self.token_embedding(ids), self.shape.dropout if self.training else 0.0)
        mask, total = visible(ids, cache, self.shape.document_end), 0.0
        for block in self.blocks:
            x, unevenness = block(x, rotation, mask, cache)
            total = total + unevenness
        if cache is not None:
            cache.length += ids.shape[1]
        auxiliary = self.balance * total / self.shape.n_layers
        return ModelOutput(self.norm(x).to(x.dtype), self.head.weight, self.shape.vocab_size, auxiliary)

    def make_cache(self, batch: int) -> KVCache:
        return KVCache(self.shape.context_length)


@hookimpl
def register_models() -> list[type[Model]]:
    return [MixtureOfExperts]
