"""The GPT in three families: GPT-2's architecture, Llama's, and a modern one that trains small models faster."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.attention import Attention, KVCache, Rotation
from pipeline.model.config import GPTConfig
from pipeline.model.functions import RMS_EPS, Linear, dropped, keep_mask, relu_squared, rms_norm, swiglu
from pipeline.model.linear_cross_entropy import GPTOutput, Softmax, softmax_and_gradient
from pipeline.plugin.components import ModelOutput


class RMSNorm(nn.Module):
    """`rms_norm` as a module, with `width` weights or, for None, without."""

    def __init__(self, width: int | None = None, eps: float = RMS_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = None if width is None else nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(x, self.eps)
        return normed if self.weight is None else normed * self.weight.to(x.dtype)


def make_norm(config: GPTConfig) -> nn.Module:
    """LayerNorm in gpt2, RMSNorm in llama, RMSNorm without weights in modern."""
    if config.llama:
        return RMSNorm(config.emb_dim, config.norm_eps)
    return RMSNorm() if config.modern else nn.LayerNorm(config.emb_dim)


class MLP(nn.Module):
    """Two linear layers with tanh GELU (gpt2) or ReLU² (modern) between them, or SwiGLU (llama)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.modern = config.modern
        self.gate = Linear(config.emb_dim, config.inner_dim, bias=False) if config.llama else None
        self.up = Linear(config.emb_dim, config.inner_dim, bias=not config.rotary)
        self.down = Linear(config.inner_dim, config.emb_dim, bias=not config.rotary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.up(x)
        if self.gate is not None:
            inside = swiglu(self.gate(x), inside)
        else:
            inside = relu_squared(inside) if self.modern else F.gelu(inside, approximate="tanh")
        return self.down(inside)  # type: ignore[no-any-return]


class DropoutMasks(NamedTuple):
    """What dropout keeps in a block. Drawn outside of blocks, because compiled blocks draw slowly.

    Attributes:
        weights: Of attention's weights [B, n_heads, T, T]. None where they have no dropout (all families but gpt2)
            and on a GPU, whose fused kernel draws its own mask.
        attended, inside: Of what attention and MLP add to the residual stream [B, T, D].
    """

    weights: torch.Tensor | None
    attended: torch.Tensor
    inside: torch.Tensor


class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection around it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation | None = None,
        mask: torch.Tensor | None = None,
        kept: DropoutMasks | None = None,
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        weights, first, second = kept or (None, None, None)
        attended = self.attention(self.attention_norm(x), rotation, mask, weights, cache)
        x = x + dropped(attended, first, self.dropout)
        return x + dropped(self.mlp(self.mlp_norm(x)), second, self.dropout)


class GPT(nn.Module):
    """A decoder-only transformer over token ids [B, T].

    The family "gpt2" (Radford et al., 2019) has learned positions, LayerNorm, tanh GELU and biases. "llama"
    (Touvron et al., 2023), which every serving program supports, has rotary positions, RMSNorm, SwiGLU, no biases
    and optionally fewer heads of keys and values than of queries. "modern" is nanochat's, which trains small models
    fastest: rotary positions, RMSNorm without weights (also after the embedding), normalised queries and keys,
    ReLU², no biases, an untied head, and projections onto the residual stream that start at zero.

    Attributes:
        recompute: Whether training stores each block's input only and computes the block again for its gradients:
            a third more work, but the activations of one block instead of all (Chen et al., 2016).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self._softmax: Softmax = softmax_and_gradient
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.emb_dim)
        if not config.rotary:
            self.position_embedding = nn.Embedding(config.context_length, config.emb_dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        # A tied head is the embedding's weight: one parameter, saved, decayed and updated once.
        self.head = None if config.tied else nn.Linear(config.emb_dim, config.padded_vocab_size, bias=False)
        if config.modern:
            self._init_modern()
        elif config.init == "gpt2":
            self._init_gpt2()

    @property
    def head_weight(self) -> torch.Tensor:
        """The output head [padded V, D]."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def forward(self, tokens: torch.Tensor, cache: KVCache | None = None) -> ModelOutput:
        """Ids [B, T] → hidden states [B, T, D] and the head. With a cache, `tokens` continue its tokens."""
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x, rotation = self.token_embedding(tokens), None
        if self.config.modern:
            x, rotation = rms_norm(x), Rotation.at(positions, self.config.head_dim)
        elif self.config.llama:  # turns in the other direction
            rotation = Rotation.at(-positions, self.config.head_dim, self.config.rope_theta)
        else:
            x = x + self.position_embedding(positions)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # the residual stream, too: half the memory to move
        if self._drops:
            x = dropped(x, keep_mask(x.shape, self.config.dropout, x.device), self.config.dropout)
        mask, recompute = self._mask(tokens, cache), self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x = run(x, rotation, mask, self._masks(x), cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return GPTOutput(self.norm(x).to(x.dtype), self.head_weight, self.config.vocab_size, self._softmax)

    def compile_parts(self) -> None:
        """Compiles the blocks one by one, and the loss's softmax: this takes seconds, the whole model minutes.
        Blocks of one shape share the compiled code."""
        for block in self.blocks:
            block.compile(dynamic=False)
        self._softmax = torch.compile(softmax_and_gradient, dynamic=False)

    @property
    def _drops(self) -> bool:
        return self.training and self.config.dropout > 0

    def _masks(self, x: torch.Tensor) -> DropoutMasks | None:
        """Draws the masks of a block whose input is `x`; None without dropout."""
        if not self._drops:
            return None
        (batch, length, _), dropout, weights = x.shape, self.config.dropout, None
        if x.device.type == "cpu" and not self.config.rotary:
            weights = keep_mask((batch, self.config.n_heads, length, length), dropout, x.device)
        return DropoutMasks(weights, *(keep_mask(x.shape, dropout, x.device) for _ in range(2)))

    def _mask(self, tokens: torch.Tensor, cache: KVCache | None) -> torch.Tensor | None:
        """Which positions each new token sees; None if it sees all up to its own."""
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
        document = ends.cumsum(dim=1) - ends  # [B, total]: an end belongs to the document it ends
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

    def _init_modern(self) -> None:
        """Embeddings: normal(0, 0.02). A norm follows, and what a rare token learns soon outweighs so small a value
        (worth 0.04 bits a byte on two megabytes). Matrices: uniform with the deviation 1/√inputs. Projections onto
        the residual stream, and the head: zero, so that at first all tokens are equally likely."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.qkv.weight", "mlp.up.weight")):
                bound = math.sqrt(3 / parameter.shape[1])
                nn.init.uniform_(parameter, -bound, bound)
            elif name.endswith(("attention.out.weight", "mlp.down.weight", "head.weight")):
                nn.init.zeros_(parameter)

    def parameter_count(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def weight_shapes(config: GPTConfig) -> dict[str, torch.Size]:
    """The shapes in a model's state dict, without making the model."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
