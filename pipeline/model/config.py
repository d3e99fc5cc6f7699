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
        qkv_bias: Whether queries, keys and values have a bias.
        tied_head: Whether the output head is the token embedding.
        init: "gpt2" or "pytorch".
        pad_vocab_to: The embedding's and head's rows are padded to a multiple of this.
        document_end: The id that ends a document, where tokens are to see nothing of other documents; else None.
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

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def parameter_count(self) -> int:
        """Trained numbers, padding rows included, a tied head counted once; known before the model is made."""
        width = self.emb_dim
        embeddings = self.padded_vocab_size * width * (1 if self.tied_head else 2) + self.context_length * width
        return embeddings + self.n_layers * self.block_parameter_count + 2 * width

    @property
    def block_parameter_count(self) -> int:
        """Trained numbers of one block."""
        return 12 * self.emb_dim**2 + (13 if self.qkv_bias else 10) * self.emb_dim

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
