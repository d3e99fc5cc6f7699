"""The shape of a GPT: all that is needed, beside the weights, to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import CheckpointError


@dataclass(frozen=True)
class GPTConfig:
    """A GPT's architecture; the fields but `vocab_size` are those of params.yaml's `model` section.

    Attributes:
        vocab_size: V, the ids that the tokenizer gives.
        context_length: T, the most tokens seen at once.
        n_layers, n_heads, emb_dim: Blocks, heads in each, and width D.
        dropout: Share of activations dropped in training.
        qkv_bias: Whether queries, keys and values have a bias (never in the modern family).
        tied_head: Whether the output head is the token embedding (never in the modern family).
        init: "gpt2" or "pytorch"; the modern family has its own.
        pad_vocab_to: The embedding's and head's rows are padded to a multiple of this.
        document_end: The id that ends a document, where tokens are to see nothing of other documents; else None.
        family: "gpt2" (Radford et al., 2019) or "modern" (see `GPT`).
    """

    vocab_size: int
    context_length: int
    n_layers: int
    n_heads: int
    emb_dim: int
    dropout: float
    qkv_bias: bool
    tied_head: bool
    init: str
    pad_vocab_to: int
    document_end: int | None = None
    family: str = "gpt2"

    @property
    def modern(self) -> bool:
        """Whether it is of the modern family."""
        return self.family == "modern"

    @property
    def head_dim(self) -> int:
        """Numbers of a query, key or value in one head."""
        return self.emb_dim // self.n_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def parameter_count(self) -> int:
        """Trained numbers, padding rows included, a tied head counted once; known before the model is made."""
        width = self.emb_dim
        embeddings = self.padded_vocab_size * width * (1 if self.tied_head and not self.modern else 2)
        beside = 0 if self.modern else self.context_length * width + 2 * width  # positions, and the last norm
        return embeddings + beside + self.n_layers * self.block_parameter_count

    @property
    def block_parameter_count(self) -> int:
        """Trained numbers of one block."""
        vectors = 0 if self.modern else 13 if self.qkv_bias else 10  # norms and biases
        return 12 * self.emb_dim**2 + vectors * self.emb_dim

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations a trained token costs, forward and backward: 6N + 12·L·T·D, N without the
        embeddings but with the head (Chowdhery et al., 2022, appendix B)."""
        vectors = 0 if self.modern else 2 * self.emb_dim
        n = self.n_layers * self.block_parameter_count + self.padded_vocab_size * self.emb_dim + vectors
        return 6 * n + 12 * self.n_layers * self.context_length * self.emb_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> GPTConfig:
        """The config that `to_dict` wrote; `where` names the file in the error."""
        try:
            return cls(**values)
        except TypeError as error:
            reason = str(error).replace("GPTConfig.__init__() ", "")
            raise CheckpointError(f"{where} does not describe a model ({reason}): train again") from None
