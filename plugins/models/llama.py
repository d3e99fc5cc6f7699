"""The Llama architecture."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pipeline.model.blocks import (
    Attention,
    DropoutMasks,
    KVCache,
    Linear,
    Mask,
    RMSNorm,
    Rotation,
    dropped,
    init_gpt2,
    positions,
    residual,
    rotary_width,
    swiglu,
    visible,
)
from pipeline.plugin import Model, ModelOutput, ModelShape, hookimpl


class Llama(Model):
    """The Llama architecture: rotary positions, RMSNorm, SwiGLU, no biases, and optional grouped-query attention
    (Touvron et al., 2023). Most inference programs load it."""

    name: ClassVar[str] = "llama"

    n_kv_heads: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The number of key-value heads for grouped-query attention, a divisor of n_heads; 0: n_heads."""
    mlp_dim: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The hidden width of the MLP; 0: 8/3 of emb_dim, rounded up to a multiple of 64."""
    rope_theta: Annotated[float, Field(gt=1)] = 10_000.0
    """The base of the rotary frequencies (Llama 1 and 2: 10,000; more for long contexts)."""
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The epsilon of the RMSNorm layers."""
    tied_head: bool = False
    """Whether the output head shares the weight of the token embedding."""
    init: Literal["gpt2", "pytorch"] = "gpt2"
    """`gpt2`: normal(0, 0.02), residual projections scaled by 1/√(2 · n_layers); `pytorch`: PyTorch's defaults."""

    def build(self, shape: ModelShape) -> nn.Module:
        if self.n_kv_heads and shape.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {shape.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        return Decoder(self, shape)


class MLP(nn.Module):
    """A SwiGLU feed-forward layer."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.gate = Linear(width, inside, bias=False)
        self.up = Linear(width, inside, bias=False)
        self.down = Linear(inside, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)
        return self.down(swiglu(self.gate(x), up))


class Block(nn.Module):
    """A pre-norm transformer block: attention and MLP, each with a residual connection."""

    def __init__(self, options: Llama, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.attention_norm = RMSNorm(shape.emb_dim, options.norm_eps)
        self.attention = Attention(shape, layer, kv_heads=options.n_kv_heads)
        self.mlp_norm = RMSNorm(shape.emb_dim, options.norm_eps)
        self.mlp = MLP(shape.emb_dim, options.mlp_dim or -(-8 * shape.emb_dim // (3 * 64)) * 64)

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        mask: Mask | None,
        dropout_masks: DropoutMasks,
        cache: KVCache | None,
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(x), rotation, mask, None, cache)
        x = x + dropped(attended, dropout_masks.attention_output, self.dropout)
        return x + dropped(self.mlp(self.mlp_norm(x)), dropout_masks.mlp_output, self.dropout)


class Decoder(nn.Module):
    """Embedding, blocks, final norm and output head, which may be tied to the token embedding."""

    def __init__(self, options: Llama, shape: ModelShape) -> None:
        super().__init__()
        self.shape, self.head_dim, self.rope_theta = shape, rotary_width(shape), options.rope_theta
        self.token_embedding = nn.Embedding(shape.padded_vocab_size, shape.emb_dim)
        self.blocks = nn.ModuleList(Block(options, shape, layer) for layer in range(shape.n_layers))
        self.norm = RMSNorm(shape.emb_dim, options.norm_eps)
        # A tied head has no parameter of its own: the embedding's weight is used.
        self.head = None if options.tied_head else nn.Linear(shape.emb_dim, shape.padded_vocab_size, bias=False)
        if options.init == "gpt2":
            init_gpt2(self, shape.n_layers)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> ModelOutput:
        """Ids [B, T] → hidden states [B, T, D] and the head's weight. With a cache, `ids` continue its tokens."""
        backwards = -positions(ids, cache)  # Llama rotates in the opposite direction
        rotation = Rotation.at(backwards, self.head_dim, self.rope_theta)
        dropout = self.shape.dropout if self.training else 0.0
        x = residual(self.token_embedding(ids), dropout)
        mask = visible(ids, cache, self.shape.document_end)
        for block in self.blocks:
            x = block(x, rotation, mask, DropoutMasks.draw(x, dropout), cache)
        if cache is not None:
            cache.length += ids.shape[1]
        head = self.token_embedding if self.head is None else self.head
        return ModelOutput(self.norm(x).to(x.dtype), head.weight, self.shape.vocab_size)

    def make_cache(self, batch: int) -> KVCache:
        """An empty cache for generation."""
        return KVCache(self.shape.context_length)


@hookimpl
def register_models() -> list[type[Model]]:
    return [Llama]
