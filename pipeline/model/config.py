"""The shape of a GPT: all that is needed, beside the weights, to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.errors import CheckpointError


@dataclass(frozen=True)
class GPTConfig:
    """A GPT's architecture; the fields but `vocab_size` are those of params.yaml's `model` section.

    Attributes:
        vocab_size: V, the ids that the tokenizer gives.
        context_length: T, the most tokens seen at once.
        n_layers, n_heads, emb_dim: Blocks, heads in each, and width D.
        dropout: Share of activations dropped in training.
        qkv_bias: Whether queries, keys and values have a bias (in GPT-2's family only).
        tied_head: Whether the output head is the token embedding (never in the modern family).
        init: "gpt2" or "pytorch"; the modern family has its own.
        pad_vocab_to: The embedding's and head's rows are padded to a multiple of this.
        document_end: The id that ends a document, where tokens are to see nothing of other documents; else None.
        family: "gpt2" (Radford et al., 2019), "modern" or "llama" (Touvron et al., 2023); see `GPT`.
        n_kv_heads: Llama's heads of keys and values, each shared by n_heads / n_kv_heads queries; 0 for n_heads.
        mlp_dim: Llama's width inside the MLP; 0 for the usual one.
        rope_theta: The base of Llama's rotary frequencies.
        norm_eps: What Llama's norms add to the mean square.
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
    n_kv_heads: int = 0
    mlp_dim: int = 0
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def modern(self) -> bool:
        """Whether it is of the modern family."""
        return self.family == "modern"

    @property
    def llama(self) -> bool:
        """Whether it is of Llama's family."""
        return self.family == "llama"

    @property
    def rotary(self) -> bool:
        """Whether positions turn queries and keys; else they are learned and added to the embedding.

        Such a family has no biases either, and drops none of attention's weights.
        """
        return self.family != "gpt2"

    @property
    def tied(self) -> bool:
        """Whether the output head is the token embedding."""
        return self.tied_head and not self.modern

    @property
    def head_dim(self) -> int:
        """Numbers of a query, key or value in one head."""
        return self.emb_dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and of values."""
        return (self.n_kv_heads if self.llama else 0) or self.n_heads

    @property
    def qkv_dim(self) -> int:
        """Rows of the fused projection: queries, keys, values."""
        return (self.n_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def inner_dim(self) -> int:
        """Width inside the MLP: 4·D; in Llama's, whose gate is a third matrix, 8/3·D up to a multiple of 64."""
        if not self.llama:
            return 4 * self.emb_dim
        return self.mlp_dim or -(-8 * self.emb_dim // (3 * 64)) * 64

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def parameter_count(self) -> int:
        """Trained numbers, padding rows included, a tied head counted once; known before the model is made."""
        embeddings = self.padded_vocab_size * self.emb_dim * (1 if self.tied else 2)
        positions = 0 if self.rotary else self.context_length * self.emb_dim
        return embeddings + positions + self._norm_size + self.n_layers * self.block_parameter_count

    @property
    def block_parameter_count(self) -> int:
        """Trained numbers of one block."""
        width, inside = self.emb_dim, self.inner_dim
        attention = (self.qkv_dim + width) * width
        mlp = (3 if self.llama else 2) * inside * width
        biases = 0 if self.rotary else 2 * width + inside + (self.qkv_dim if self.qkv_bias else 0)
        return attention + mlp + biases + 2 * self._norm_size

    @property
    def _norm_size(self) -> int:
        """Trained numbers of one norm."""
        return 0 if self.modern else self.emb_dim if self.llama else 2 * self.emb_dim

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations a trained token costs, forward and backward: 6N + 12·L·T·D, N without the
        embeddings but with the head (Chowdhery et al., 2022, appendix B)."""
        n = self.n_layers * self.block_parameter_count + self.padded_vocab_size * self.emb_dim + self._norm_size
        return 6 * n + 12 * self.n_layers * self.context_length * self.emb_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str, mend: str) -> GPTConfig:
        """The config that `to_dict` wrote; `where` names the file in the error, and `mend` says what helps."""
        try:
            return cls(**values)
        except TypeError as error:
            reason = str(error).replace("GPTConfig.__init__() ", "")
            raise CheckpointError(f"{where} does not describe a model ({reason}): {mend}") from None
