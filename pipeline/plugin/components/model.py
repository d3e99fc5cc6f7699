"""Models: architectures, their sizes and their output."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from pipeline.core.values import STRICT, Dimension, LayerCount
from pipeline.plugin.components.base import Component

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""A masked target: its loss is 0 nats and it has no gradient."""


@checked_dataclass(frozen=True, config=STRICT)
class ModelShape:
    """The sizes that all architectures share, validated. Most are keys of the section `model` in params.yaml.

    Attributes:
        vocab_size: V, the number of ids of the tokenizer.
        context_length: T, the maximum number of input tokens.
        n_layers: The number of blocks.
        n_heads: The number of attention heads per block.
        emb_dim: D, the width of the residual stream; a multiple of n_heads.
        dropout: The dropout probability in training.
        pad_vocab_to: The number of rows of the embedding and the head is padded to a multiple of this.
        document_end: The id that ends a document, if tokens must attend only within their own document; else None.
    """

    vocab_size: Dimension
    context_length: Dimension
    n_layers: LayerCount
    n_heads: Dimension
    emb_dim: Dimension
    dropout: Annotated[float, Field(ge=0, lt=1)]
    pad_vocab_to: Dimension
    document_end: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ModelShape:
        if self.emb_dim % self.n_heads:
            raise ValueError(f"emb_dim {self.emb_dim} must be a multiple of n_heads {self.n_heads}")
        if self.document_end is not None and self.document_end >= self.vocab_size:
            raise ValueError(f"document_end {self.document_end} must be below vocab_size {self.vocab_size}")
        return self

    @property
    def padded_vocab_size(self) -> int:
        """The number of rows of the embedding and the head, padding included."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.emb_dim // self.n_heads


@dataclass(frozen=True)
class ModelOutput:
    """The output of a model for one batch.

    Attributes:
        hidden: The last hidden states [B, T, D], after the final norm.
        head_weight: The weight of the output head [padded V, D], padding rows included.
        vocab_size: V, the size of the vocabulary; the head's rows from V on are padding.
        auxiliary: An auxiliary loss: a scalar in nats, such as the load-balancing loss of a mixture of experts.
            Training adds it to the mean loss per target. It is part of `train.objective`, but not of `train.loss`
            and `val.loss`.
    """

    hidden: torch.Tensor
    head_weight: torch.Tensor
    vocab_size: int
    auxiliary: torch.Tensor | float = 0.0

    @cached_property
    def logits(self) -> torch.Tensor:
        """The logits [B, T, V] in float32 or wider, without padding. Computed on first access."""
        logits = self.hidden @ self.head_weight[: self.vocab_size].to(self.hidden.dtype).T
        return logits if logits.element_size() >= 4 else logits.float()

    def cross_entropy(
        self, targets: torch.Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> torch.Tensor:
        """The negative log-likelihood of each target in nats [B, T]; 0 where the target is `IGNORED`.

        Training uses a fused version that never holds all logits in memory; it is much cheaper than `logits`.

        Args:
            targets: The target ids [B, T].
            label_smoothing: The probability mass taken from the target and spread evenly over the vocabulary
                (Szegedy et al., 2016).
            z_loss: The weight of the added z-loss, log² Z per target, where Z is the softmax normaliser
                (Chowdhery et al., 2022).
        """
        import torch.nn.functional as F

        flat = self.logits.flatten(0, -2)
        nats = F.cross_entropy(
            flat, targets.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
        ).view(targets.shape)
        if z_loss == 0:
            return nats
        normaliser = self.logits.logsumexp(dim=-1)
        return nats + z_loss * normaliser.square().masked_fill(targets == IGNORED, 0.0)


class Model(Component):
    """A model architecture. Its fields are its own options; the sizes that all architectures share are
    `ModelShape`."""

    @abstractmethod
    def build(self, shape: ModelShape) -> torch.nn.Module:
        """Builds a causal decoder, its weights initialised with torch's global random generator.

        The module's `forward(ids, cache=None)` takes ids [B, T] and returns a `ModelOutput`. It must be causal: the
        output at a position depends only on the tokens up to it. Its state dict (parameters and persistent buffers)
        must determine its output completely. Naming rules: embeddings have "embedding" in their name; an output
        head that is not tied to the embedding is named "head.weight".

        Optional attributes of the module:

        - `blocks`, an `nn.ModuleList` of its layers, which are then compiled and sharded one by one (without it:
          the whole module at once);
        - `make_cache(batch)`, a key-value cache for generation: an object that `forward` reads and extends, so that
          `ids` continue the tokens seen so far. Its optional method `crop(length)` drops all tokens but the first
          `length`. Without a cache, the whole text is recomputed for each new token.

        Raises:
            ValueError: a size does not fit this architecture, or it does not support `document_end`.
        """
