"""The GPT-2 architecture."""

from typing import ClassVar, Literal

import torch
from torch import nn

from pipeline.model.blocks import (
    Attention,
    DropoutMasks,
    KVCache,
    Linear,
    Mask,
    dropped,
    gelu,
    init_gpt2,
    positions,
    residual,
    visible,
)
from pipeline.plugin import Model, ModelOutput, ModelShape, hookimpl


class GPT2(Model):
    """The GPT-2 architecture: learned positions, LayerNorm, tanh GELU and biases (Radford et al., 2019)."""

    name: ClassVar[str] = "gpt2"

    qkv_bias: bool = True
    """Whether the query, key and value projections have a bias (GPT-2: yes; many textbooks: no)."""
    tied_head: bool = False
    """Whether the output head shares the weight of the token embedding (GPT-2: yes; many textbooks: no)."""
    init: Literal["gpt2", "pytorch"] = "gpt2"
    """`gpt2`: normal(0, 0.02), residual projections scaled by 1/√(2 · n_layers); `pytorch`: PyTorch's defaults."""

    def build(self, shape: ModelShape) -> nn.Module:
        return Decoder(self, shape)


class MLP(nn.Module):
    """Two linear layers with tanh GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(gelu(self.up(x)))


class Block(nn.Module):
    """A pre-norm transformer block: attention and MLP, each with a residual connection."""

    def __init__(self, options: GPT2, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.attention_norm = nn.LayerNorm(shape.emb_dim)
        self.attention = Attention(shape, layer, qkv_bias=options.qkv_bias, out_bias=True, dropout=shape.dropout)
        self.mlp_norm = nn.LayerNorm(shape.emb_dim)
        self.mlp = MLP(shape.emb_dim)

    def forward(
        self, x: torch.Tensor, mask: Mask | None, dropout_masks: DropoutMasks, cache: KVCache | None
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(x), None, mask, dropout_masks.attention_weights, cache)
        x = x + dropped(attended, dropout_masks.attention_output, self.dropout)
        return x + dropped(self.mlp(self.mlp_norm(x)), dropout_masks.mlp_output, self.dropout)


class Decoder(nn.Module):
    """Embeddings, blocks, final norm and output head, which may be tied to the token embedding."""

    def __init__(self, options: GPT2, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.padded_vocab_size, shape.emb_dim)
        self.position_embedding = nn.Embedding(shape.context_length, shape.emb_dim)
        self.blocks = nn.ModuleList(Block(options, shape, layer) for layer in range(shape.n_layers))
        self.norm = nn.LayerNorm(shape.emb_dim)
        # A tied head has no parameter of its own: the embedding's weight is used.
        self.head = None if options.tied_head else nn.Linear(shape.emb_dim, shape.padded_vocab_size, bias=False)
        if options.init == "gpt2":
            init_gpt2(self, shape.n_layers)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> ModelOutput:
        """Ids [B, T] → hidden states [B, T, D] and the head's weight. With a cache, `ids` continue its tokens."""
        mask = visible(ids, cache, self.shape.document_end)
        dropout = self.shape.dropout if self.training else 0.0
        embedded = self.token_embedding(ids) + self.position_embedding(positions(ids, cache, mask))
        x = residual(embedded, dropout)
        for block in self.blocks:
            x = block(x, mask, DropoutMasks.draw(x, dropout, self.shape.n_heads), cache)
        if cache is not None:
            cache.length += ids.shape[1]
        head = self.token_embedding if self.head is None else self.head
        return ModelOutput(self.norm(x).to(x.dtype), head.weight, self.shape.vocab_size)

    def make_cache(self, batch: int) -> KVCache:
        """An empty cache for generation."""
        return KVCache(self.shape.context_length)


@hookimpl
def register_models() -> list[type[Model]]:
    return [GPT2]
