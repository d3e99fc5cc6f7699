"""Causal self-attention with rotary positions, a kernel chosen by shape, and a KV cache."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.model import functions
from pipeline.model.functions import Linear, dropped, rms_norm, rotate
from pipeline.plugin.components import ModelShape

PLAIN_UP_TO = 512
"""Tokens up to which plain matrix products beat the fused kernel on a CPU in bfloat16, except for a single query
(benchmarks/RESULTS.md)."""


BLOCK = 64
"""Queries that the attention within documents computes at once on a CPU (benchmarks/RESULTS.md)."""


_FLEX_BLOCK = 128
"""Queries, and keys, of a block of FlexAttention."""

_FLEX_LEAST_HEAD_DIM = 16

_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels that need no plan for each number of keys, unlike cuDNN's, which torch prefers on some GPUs."""


class DocumentMask(NamedTuple):
    """A mask with which each token sees its own document up to itself, for a text without earlier tokens.

    Attributes:
        starts: The index of the first token of each token's document [B, T], ascending.
        tables: The blocks of queries and keys for `flex`, computed once for all layers; None on a CPU. For each
            block of queries the number of blocks of keys that it sees in part, and their indices; the same for
            those that it sees as a whole; then these four for each block of keys.
    """

    starts: torch.Tensor
    tables: tuple[torch.Tensor, ...] | None = None

    @classmethod
    def of(cls, tokens: torch.Tensor, document_end: int) -> DocumentMask:
        """The mask of ids [B, T] in which `document_end` ends a document."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # After the last token, at place 0, a document begins anyway. No slice: an export could not have two tokens.
        first = tokens.roll(1, dims=1) == document_end
        starts = torch.where(first, places, 0).cummax(dim=1).values
        return cls(starts, _flex_tables(starts) if functions.code_path(tokens.device) == "cuda" else None)

    def flex(self) -> Any:
        """The mask as FlexAttention's BlockMask, from `tables`."""
        from torch.nn.attention.flex_attention import BlockMask

        starts, length = self.starts, self.starts.shape[1]

        def seen(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return (key <= query) & (key >= starts[b, query])

        arguments: tuple[Any, ...] = (*(self.tables or ()), (_FLEX_BLOCK, _FLEX_BLOCK), seen)
        return BlockMask((length, length), *arguments)

    def part(self, queries: slice, keys: slice) -> torch.Tensor:
        """Which of the keys each of the queries sees [B, 1, queries, keys]."""
        places = torch.arange(self.starts.shape[1], device=self.starts.device)
        seen = places[keys] >= self.starts[:, queries, None]
        return (seen & (places[keys] <= places[queries, None]))[:, None]

    def dense(self) -> torch.Tensor:
        """Which token each token sees [B, 1, T, T]."""
        return self.part(slice(None), slice(None))


def _flex_tables(starts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`DocumentMask.tables` from its starts [B, T], in memory that grows with (T / 128)², not T²."""
    length = starts.shape[1]
    number = torch.arange(-(-length // _FLEX_BLOCK), device=starts.device)
    query, key = number[:, None], number
    last = (number * _FLEX_BLOCK + _FLEX_BLOCK - 1).clamp(max=length - 1)
    some = (key <= query) & (key >= starts[:, ::_FLEX_BLOCK, None] // _FLEX_BLOCK)
    whole = (key < query) & (key * _FLEX_BLOCK >= starts[:, last, None]) & (query < length // _FLEX_BLOCK)
    tables: list[torch.Tensor] = []
    for blocks in (some & ~whole, whole, (some & ~whole).mT, whole.mT):
        tables.append(blocks.sum(dim=-1, dtype=torch.int32)[:, None])
        tables.append(blocks.int().argsort(dim=-1, descending=True, stable=True).int()[:, None])
    return tuple(tables)


Mask = torch.Tensor | DocumentMask
"""Which keys each query sees: broadcast to [B, n_heads, queries, keys], or by document."""


@dataclass
class KVCache:
    """Keys and values of the tokens so far, for generation.

    Attributes:
        capacity: The maximum number of tokens.
        length: The number of tokens in the cache.
        tokens: Their ids [B, length]; only with a document mask.
        layers: For each block, keys and values [B, kv_heads, capacity, head size].
    """

    capacity: int
    length: int = 0
    tokens: torch.Tensor | None = None
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values [B, kv_heads, new, head size] of new tokens; returns all of them."""
        if layer not in self.layers:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.layers[layer] = (k.new_empty(shape), v.new_empty(shape))
        keys, values = self.layers[layer]
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def append(self, tokens: torch.Tensor) -> torch.Tensor:
        """Appends the ids [B, new] of the new tokens; returns those of all tokens [B, length + new]."""
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], dim=1)
        return self.tokens

    def crop(self, length: int) -> None:
        """Removes all tokens after the first `length`."""
        self.length = length
        if self.tokens is not None:
            self.tokens = self.tokens[:, :length]


class Rotation(NamedTuple):
    """Cosines and sines [T, head size / 2] of the angles by which positions rotate queries and keys."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def at(cls, positions: torch.Tensor, head_dim: int, base: float = 10_000.0) -> Rotation:
        """The rotation of positions [T], in float32 (Su et al., 2021).

        The frequencies equal those of other programs exactly: at high positions, their last bit changes the fourth
        digit of the angle.
        """
        frequencies = 1 / base ** (torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
        angles = positions[:, None] * frequencies
        return cls(angles.cos(), angles.sin())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rotates queries or keys [B, heads, T, head size]: each pair of numbers by its position's angle."""
        return rotate(x, self.cos.to(x.dtype), self.sin.to(x.dtype))


class Attention(nn.Module):
    """Causal multi-head self-attention with one fused projection for queries, keys and values.

    With fewer key and value heads than query heads, it is grouped-query attention (Ainslie et al., 2023).
    """

    def __init__(
        self,
        shape: ModelShape,
        layer: int,
        *,
        kv_heads: int = 0,
        qkv_bias: bool = False,
        out_bias: bool = False,
        normalised: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            shape: The model's sizes.
            layer: The index of the block, for the cache.
            kv_heads: The number of key and value heads, a divisor of n_heads; 0 for n_heads.
            qkv_bias, out_bias: Whether the projections have a bias.
            normalised: Whether to normalise queries and keys after the rotation (Henry et al., 2020).
            dropout: The dropout of attention weights in training.
        """
        super().__init__()
        self.layer, self.n_heads, self.kv_heads = layer, shape.n_heads, kv_heads or shape.n_heads
        self.head_dim, self.normalised, self.dropout = shape.head_dim, normalised, dropout
        self.qkv = Linear(shape.emb_dim, (self.n_heads + 2 * self.kv_heads) * self.head_dim, bias=qkv_bias)
        self.out = Linear(shape.emb_dim, shape.emb_dim, bias=out_bias)

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation | None,
        mask: Mask | None,
        keep_mask: torch.Tensor | None,
        cache: KVCache | None,
    ) -> torch.Tensor:
        """x [B, T, D] → the output of attention [B, T, D].

        Args:
            x: The normalised residual stream.
            rotation: The rotation of the positions; None if `x` includes the positions.
            mask: Which tokens each token sees (see `visible`); None for a causal mask.
            keep_mask: The attention weights [B, n_heads, T, all] that dropout keeps; None keeps all, or, on a GPU,
                lets the fused kernel draw its own mask.
            cache: The KV cache of earlier tokens; the new tokens are appended.
        """
        batch, length, emb_dim = x.shape
        q, k, v = self.project(x, rotation)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        attended = attend(q, k, v, mask, keep_mask, self.dropout if self.training else 0.0)
        return self.out(attended.transpose(1, 2).reshape(batch, length, emb_dim))  # type: ignore[no-any-return]

    def project(
        self, x: torch.Tensor, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [B, T, D] → queries [B, n_heads, T, head size], keys and values [B, kv_heads, T, head size], rotated
        and normalised. Shared keys and values are not yet repeated."""
        heads, shared = self.n_heads, self.kv_heads
        qkv = self.qkv(x).view(*x.shape[:2], heads + 2 * shared, self.head_dim).transpose(1, 2)
        if rotation is None:
            q, k, v = qkv.split([heads, shared, shared], dim=1)
        else:
            qk, v = qkv.split([heads + shared, shared], dim=1)
            qk = rms_norm(rotation(qk)) if self.normalised else rotation(qk)
            q, k = qk.split([heads, shared], dim=1)  # type: ignore[no-untyped-call]
        return q, k, v


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Mask | None,
    keep_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q·k/√d)·v, [B, n_heads, T, head size].

    Args:
        q: Queries [B, n_heads, T, head size].
        k, v: Keys and values [B, kv_heads, all tokens so far, head size]; kv_heads divides n_heads.
        mask: Which keys each query sees; None for a causal mask.
        keep_mask: The attention weights [B, n_heads, T, all] that dropout keeps.
        dropout: The share of weights to drop. If `keep_mask` is None, the fused kernel draws its own mask.
    """
    path, groups = functions.code_path(q.device), q.shape[1] // k.shape[1]
    flexible = torch.compiler.is_compiling() and not dropout and q.shape[3] >= _FLEX_LEAST_HEAD_DIM
    if isinstance(mask, DocumentMask) and mask.tables is not None and flexible:
        from torch.nn.attention.flex_attention import flex_attention

        found: torch.Tensor = flex_attention(q, k, v, block_mask=mask.flex(), enable_gqa=groups > 1)
        return found
    # In bfloat16 and without a mask, the kernels of a GPU share keys and values themselves.
    if groups > 1 and not (path == "cuda" and mask is None and q.dtype == torch.bfloat16):
        k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
    if isinstance(mask, DocumentMask):
        if path == "cpu":
            in_blocks = _uncompiled_in_blocks if torch.compiler.is_compiling() else _attend_in_blocks
            return in_blocks(q, k, v, mask, keep_mask, dropout)
        mask = mask.dense()
    return _attend(q, k, v, mask, keep_mask, dropout)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    keep_mask: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """`attend` with a plain mask, by matrix products or the fused kernel.

    On a GPU, torch chooses the kernel: on Hopper and Blackwell first cuDNN's, otherwise flash attention, or with a
    mask or in float32 the memory-efficient one.
    """
    path, new, total = functions.code_path(q.device), q.shape[2], k.shape[2]
    quick = path == "cpu" and q.dtype == torch.bfloat16 and 1 < new <= total <= PLAIN_UP_TO
    plain = quick or keep_mask is not None
    if mask is None and 1 < new < total and not plain:  # is_causal would align query 0 with key 0
        mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    if plain:
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif new > 1:
            scores = scores + _causal_bias(new, total, q.dtype, q.device)
        return dropped(scores.softmax(dim=-1), keep_mask, dropout) @ v
    with sdpa_kernel(_ANY_LENGTH) if path == "cuda" and new < total else nullcontext():
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None and bool(new > 1),
            enable_gqa=k.shape[1] < q.shape[1],
        )


def _causal_bias(new: int, total: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What a causal mask adds to scores [new, total]: 0, or −inf for later tokens.

    A constant of compiled code, which otherwise computes it again for each score. With a bool mask, the compiled
    softmax takes 2.5 times as long (benchmarks/RESULTS.md).
    """
    return torch.full((new, total), -torch.inf, dtype=dtype, device=device).triu(total - new + 1)


# As `torch.compiler.assume_constant_result` does, which would import the compiler in every process.
_causal_bias._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _attend_in_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: DocumentMask,
    keep_mask: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """`attend`, a block of queries at a time, each with the keys from the start of its first document on: time and
    memory grow with the documents' lengths, not with T²."""
    # Splits, not slices: the gradient of a slice is as large as all keys.
    keys, values = torch.split(k, BLOCK, dim=2), torch.split(v, BLOCK, dim=2)
    attended = []
    for number, first in enumerate((mask.starts[:, ::BLOCK].amin(dim=0) // BLOCK).tolist()):
        queries = slice(BLOCK * number, BLOCK * number + keys[number].shape[2])
        seen = slice(BLOCK * first, queries.stop)
        attended.append(
            _attend(
                q[:, :, queries],
                torch.cat(keys[first : number + 1], dim=2),
                torch.cat(values[first : number + 1], dim=2),
                mask.part(queries, seen),
                None if keep_mask is None else keep_mask[:, :, queries, seen],
                dropout,
            )
        )
    return torch.cat(attended, dim=2)


# Its shapes depend on the batch's documents. `torch.compiler.disable` would import the compiler in every process.
_uncompiled_in_blocks = torch._disable_dynamo(_attend_in_blocks)  # type: ignore[attr-defined]
