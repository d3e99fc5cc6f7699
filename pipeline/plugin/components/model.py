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
"""A target that is not to be learnt: 0 nats and no gradient there."""


@checked_dataclass(frozen=True, config=STRICT)
class ModelShape:
    """The sizes that every architecture has; most are keys of params.yaml's section `model`. They are checked.

    Attributes:
        vocab_size: V, the number of the tokenizer's ids.
        context_length: T, the most tokens seen at once.
        n_layers, n_heads, emb_dim: Blocks, heads in each, and width D, a multiple of n_heads.
        dropout: Share of activations dropped in training.
        pad_vocab_to: The rows of embedding and head are padded to a multiple of this.
        document_end: The id that ends a document, if a token is to see its own document only; else None.
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
            raise ValueError(f"document_end {self.document_end} is no id of a vocabulary of {self.vocab_size}")
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.emb_dim // self.n_heads


@dataclass(frozen=True)
class ModelOutput:
    """What the model computed for a batch.

    Attributes:
        hidden: The last hidden states, after the final norm: [B, T, D].
        head_weight: The output head, padding rows included: [padded V, D].
        vocab_size: V, the real vocabulary; ids from V on are padding.
        auxiliary: A scalar in nats that training adds to the mean loss of a target, such as a mixture of experts'
            balance loss. It is part of `train.objective`, never of `train.loss` and `val.loss`.
    """

    hidden: torch.Tensor
    head_weight: torch.Tensor
    vocab_size: int
    auxiliary: torch.Tensor | float = 0.0

    @cached_property
    def logits(self) -> torch.Tensor:
        """The logits over the real vocabulary in float32 (or wider): [B, T, V]. Computed when first asked for."""
        logits = self.hidden @ self.head_weight[: self.vocab_size].to(self.hidden.dtype).T
        return logits if logits.element_size() >= 4 else logits.float()

    def cross_entropy(
        self, targets: torch.Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> torch.Tensor:
        """The negative log-likelihood of each target in nats [B, T], 0 where it is `IGNORED`.

        In training it is computed without all logits ever being held, many times cheaper than through `logits`.

        Args:
            targets: Ids [B, T].
            label_smoothing: Share of the target's probability that is spread evenly over the vocabulary.
            z_loss: Weight of the squared log-normaliser, added to each.
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
    """An architecture. Its fields are the options that it alone has; what every architecture has is the shape."""

    @abstractmethod
    def build(self, shape: ModelShape) -> torch.nn.Module:
        """A decoder over token ids, its weights drawn from torch's random generator.

        The module's `forward(ids, cache=None)` takes ids [B, T] and returns a `ModelOutput`; no token may change
        what is computed for those before it. All that decides the result is in its state dict: parameters and
        persistent buffers. Embeddings have "embedding" in their name, and a head of its own is "head.weight".

        A module may also have

        - `blocks`, an `nn.ModuleList` of its layers: they are compiled and sharded one by one, else the whole is;
        - `make_cache(batch)`, for generation: an object that `forward` reads and extends, so that ids continue
          those before. Its optional `crop(length)` forgets all but the first tokens. Without a cache, each new
          token computes the whole text.

        Raises:
            ValueError: there is no such model: a size does not fit, or it cannot mask at a `document_end`.
        """
