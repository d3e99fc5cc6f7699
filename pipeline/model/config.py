"""The architecture of a GPT: with the weights, all that is needed to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from pipeline.core.errors import CheckpointError
from pipeline.core.values import STRICT, Layers, Size, read_values

Family = Literal["gpt2", "modern", "llama"]

_NOT_LLAMA = {"n_kv_heads": 0, "mlp_dim": 0, "rope_theta": 10_000.0, "norm_eps": 1e-5}
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _NOT_LLAMA,
    "modern": {**_NOT_LLAMA, "qkv_bias": False, "tied_head": False, "init": "modern"},
    "llama": {"qkv_bias": False},
}
"""The fields that a family does not leave to params.yaml, with the values that its configs have."""


def effective_model(params: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` of params.yaml without the keys that its family does not use."""
    return {name: value for name, value in params.items() if name not in _FIXED[params["family"]]}


@dataclass(frozen=True, config=STRICT)
class GPTConfig:
    """A GPT's architecture; most fields are keys of params.yaml's `model` section. Its values are checked.

    Attributes:
        vocab_size: V, the number of the tokenizer's ids.
        context_length: T, the most tokens seen at once.
        n_layers, n_heads, emb_dim: Blocks, heads in each, and width D.
        dropout: Share of activations dropped in training.
        qkv_bias: Whether queries, keys and values have a bias (gpt2 only).
        tied_head: Whether the output head is the token embedding (never in modern).
        init: "gpt2" or "pytorch"; modern has its own.
        pad_vocab_to: The rows of embedding and head are padded to a multiple of this.
        document_end: The id that ends a document, if attention stays within documents; else None.
        family: "gpt2" (Radford et al., 2019), "modern" or "llama" (Touvron et al., 2023); see `GPT`.
        n_kv_heads: Heads of keys and values (llama only), each for n_heads / n_kv_heads queries; 0 for n_heads.
        mlp_dim: Width inside the MLP (llama only); 0 for the usual one.
        rope_theta: The base of the rotary frequencies (llama only).
        norm_eps: What norms add to the mean square (llama only).
    """

    vocab_size: Size
    context_length: Size
    n_layers: Layers
    n_heads: Size
    emb_dim: Size
    dropout: Annotated[float, Field(ge=0, lt=1)]
    qkv_bias: bool
    tied_head: bool
    init: Literal["gpt2", "pytorch", "modern"]
    pad_vocab_to: Size
    document_end: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    family: Family = "gpt2"
    n_kv_heads: Annotated[int, Field(ge=0, lt=2**31)] = 0
    mlp_dim: Annotated[int, Field(ge=0, lt=2**31)] = 0
    rope_theta: Annotated[float, Field(gt=1)] = 10_000.0
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @model_validator(mode="after")
    def _heads_divide_width(self) -> GPTConfig:
        if self.emb_dim % self.n_heads:
            raise ValueError(f"emb_dim {self.emb_dim} must be a multiple of n_heads {self.n_heads}")
        if self.rotary and self.head_dim % 2:
            raise ValueError(f"emb_dim {self.emb_dim} / n_heads {self.n_heads} must be even: heads turn in pairs")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.document_end is not None and self.document_end >= self.vocab_size:
            raise ValueError(f"document_end {self.document_end} is no id of a vocabulary of {self.vocab_size}")
        return self

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
        """Whether positions are rotary (queries and keys are turned) instead of learned and added to the embedding.

        Rotary families have no biases either, and no dropout on attention's weights.
        """
        return self.family != "gpt2"

    @property
    def tied(self) -> bool:
        """Whether the output head is the token embedding."""
        return self.tied_head and not self.modern

    @property
    def head_dim(self) -> int:
        """Width of a query, key or value in one head."""
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
        """Width inside the MLP: 4·D; in llama, which has a third matrix, 8/3·D rounded up to a multiple of 64."""
        if not self.llama:
            return 4 * self.emb_dim
        return self.mlp_dim or -(-8 * self.emb_dim // (3 * 64)) * 64

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def parameter_count(self) -> int:
        """Parameters, with padding rows, a tied head counted once; known before the model is made."""
        embeddings = self.padded_vocab_size * self.emb_dim * (1 if self.tied else 2)
        positions = 0 if self.rotary else self.context_length * self.emb_dim
        return embeddings + positions + self._norm_size + self.n_layers * self.block_parameter_count

    @property
    def block_parameter_count(self) -> int:
        """Parameters of one block."""
        width, inside = self.emb_dim, self.inner_dim
        attention = (self.qkv_dim + width) * width
        mlp = (3 if self.llama else 2) * inside * width
        biases = 0 if self.rotary else 2 * width + inside + (self.qkv_dim if self.qkv_bias else 0)
        return attention + mlp + biases + 2 * self._norm_size

    @property
    def _norm_size(self) -> int:
        """Parameters of one norm."""
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
    def from_file(cls, path: Path, mend: str) -> GPTConfig:
        """The config whose `to_dict` is in a config.json.

        Raises:
            CheckpointError: the file is missing, or holds something else; `mend` ends the message.
        """
        return read_values(path, cls, mend, CheckpointError)

    @classmethod
    def from_params(cls, model_params: Mapping[str, Any], vocab_size: int, document_end: int | None) -> GPTConfig:
        """The architecture that params.yaml describes.

        Args:
            model_params: The values of its `model` section; keys that the family does not use are ignored.
            vocab_size: V, the number of the tokenizer's ids.
            document_end: The tokenizer's end-of-text; used if `document_mask` is set.
        """
        used = effective_model(model_params)
        end = document_end if used.pop("document_mask") else None
        return cls(vocab_size=vocab_size, document_end=end, **used, **_FIXED[used["family"]])
