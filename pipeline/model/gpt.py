"""GPT-2's architecture (Radford et al., 2019): learned positions, pre-LayerNorm, tanh GELU, causal attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.config import GPTConfig
from pipeline.plugin.components import ModelOutput


@dataclass
class KVCache:
    """Keys and values of the tokens seen so far, for generation.

    Attributes:
        length: Tokens in the cache.
        tokens: Their ids [B, length], kept where documents do not see each other.
        layers: For each block, keys and values [B, n_heads, capacity, head size].
    """

    capacity: int
    length: int = 0
    tokens: torch.Tensor | None = None
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the new tokens' keys and values and returns all of them so far."""
        if layer not in self.layers:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.layers[layer] = (k.new_empty(shape), v.new_empty(shape))
        keys, values = self.layers[layer]
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Causal multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.dropout
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, cache: KVCache | None) -> torch.Tensor:
        batch, length, emb_dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_heads, emb_dim // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, n_heads, T, head size]
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        attended = F.scaled_dot_product_attention(
            q, k, v,
            dropout_p=self.dropout if self.training else 0.0,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
        )  # fmt: skip
        out: torch.Tensor = self.out(attended.transpose(1, 2).reshape(batch, length, emb_dim))
        return out


class MLP(nn.Module):
    """Four times wider inside, with GELU (its tanh form, as GPT-2's)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.emb_dim, 4 * config.emb_dim)
        self.down = nn.Linear(4 * config.emb_dim, config.emb_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down: torch.Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return down


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.emb_dim)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.emb_dim)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, cache: KVCache | None) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache))
        out: torch.Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class GPT(nn.Module):
    """A decoder-only transformer over token ids [B, T].

    Attributes:
        recompute: Whether training keeps each block's input only and computes the block again for its gradients:
            a third more work, and the activations of one block instead of all (Chen et al., 2016).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.emb_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.emb_dim)
        # A tied head is the embedding's own weight: one parameter, so it is saved, decayed and updated once.
        self.head = None if config.tied_head else nn.Linear(config.emb_dim, config.padded_vocab_size, bias=False)
        if config.init == "gpt2":
            self._init_gpt2()

    @property
    def head_weight(self) -> torch.Tensor:
        """The output head [padded V, D]."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def forward(self, tokens: torch.Tensor, cache: KVCache | None = None) -> ModelOutput:
        """Ids [B, T] → hidden states [B, T, D] and the head; with a cache, `tokens` continue what is in it."""
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        mask = self._mask(tokens, cache)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, cache, use_reentrant=False)
            else:
                x = block(x, mask, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return ModelOutput(self.norm(x), self.head_weight, self.config.vocab_size)

    def _mask(self, tokens: torch.Tensor, cache: KVCache | None) -> torch.Tensor | None:
        """Which positions each new token may see; None where that is every one up to its own."""
        new = tokens.shape[1]
        total = new + (cache.length if cache is not None else 0)
        end = self.config.document_end
        if end is None and new in (1, total):
            return None
        causal = torch.ones(new, total, dtype=torch.bool, device=tokens.device).tril(total - new)
        if end is None:
            return causal
        if cache is not None:
            cache.tokens = tokens = tokens if cache.tokens is None else torch.cat([cache.tokens, tokens], dim=1)
        ends = (tokens == end).int()
        document = ends.cumsum(dim=1) - ends  # [B, total]: an end still belongs to the document it ends
        return (causal & (document[:, -new:, None] == document[:, None, :]))[:, None]

    def _init_gpt2(self) -> None:
        """Normal(0, 0.02), zero biases, and residual projections divided by √(2 · layers) (section 2.3)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layers))

    def parameter_count(self) -> int:
        """Trained numbers, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Floating-point operations a trained token costs, forward and backward: 6N + 12·L·T·D, N without the
        embeddings but with the head (Chowdhery et al., 2022, appendix B)."""
        embeddings = self.token_embedding.weight.numel() + self.position_embedding.weight.numel()
        n = self.parameter_count() - embeddings
        if self.head is None:
            n += self.token_embedding.weight.numel()
        config = self.config
        return 6 * n + 12 * config.n_layers * config.context_length * config.emb_dim
