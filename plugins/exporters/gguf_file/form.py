"""What each model is in GGUF: its name there, its numbers, and its tensors under llama.cpp's names."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from pipeline.plugin import ExportSource


class Form(NamedTuple):
    """What llama.cpp calls an architecture, its numbers (their keys without that name) and its tensors."""

    arch: str
    numbers: dict[str, int | float]
    tensors: dict[str, torch.Tensor]


def form(source: ExportSource) -> Form:
    """The model's form.

    Raises:
        ValueError: llama.cpp has none for this model.
    """
    name = source.config["name"]
    if name not in _FORMS:
        raise ValueError(
            f"llama.cpp has no form for the model {name!r}, only for {' and '.join(_FORMS)}: train with one of "
            "these as model.name, or leave gguf out of export.formats.use"
        )
    if source.config.get("document_end") is not None:
        raise ValueError(
            "llama.cpp has no mask between documents (model.document_mask): leave gguf out of export.formats.use"
        )
    return _FORMS[name](source)


def _sizes(source: ExportSource) -> dict[str, int | float]:
    config, weights = source.config, source.weights
    return {
        "context_length": config["context_length"],
        "embedding_length": config["emb_dim"],
        "block_count": config["n_layers"],
        "feed_forward_length": weights["blocks.0.mlp.up.weight"].shape[0],
        "attention.head_count": config["n_heads"],
        "vocab_size": config["vocab_size"],
    }


def _named(weights: Mapping[str, torch.Tensor], layers: int, parts: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The embedding, the head where it is not the embedding, and each block's `parts`: their name, our name."""
    named = {"token_embd.weight": weights["token_embedding.weight"]}
    if "head.weight" in weights:
        named["output.weight"] = weights["head.weight"]
    for layer in range(layers):
        named |= {f"blk.{layer}.{theirs}": weights[f"blocks.{layer}.{ours}"] for theirs, ours in parts.items()}
    return named


def _gpt2(source: ExportSource) -> Form:
    """A missing bias is one of zeros: there it is always added."""
    weights, parts = source.weights, {}
    for theirs, ours in (
        ("attn_norm", "attention_norm"),
        ("attn_qkv", "attention.qkv"),
        ("attn_output", "attention.out"),
        ("ffn_norm", "mlp_norm"),
        ("ffn_up", "mlp.up"),
        ("ffn_down", "mlp.down"),
    ):
        parts |= {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}
    zeros = {
        f"blocks.{layer}.attention.qkv.bias": torch.zeros(3 * source.config["emb_dim"])
        for layer in range(source.config["n_layers"])
    }
    return Form(
        "gpt2",
        {**_sizes(source), "attention.layer_norm_epsilon": 1e-5},
        {
            **_named(zeros | dict(weights), source.config["n_layers"], parts),
            "position_embd.weight": weights["position_embedding.weight"],
            "output_norm.weight": weights["norm.weight"],
            "output_norm.bias": weights["norm.bias"],
        },
    )


def _llama(source: ExportSource) -> Form:
    """Queries, keys and values have a projection each, the first two with their rows as llama.cpp turns them."""
    config, weights = source.config, source.weights
    heads, shared = config["n_heads"], config["n_kv_heads"] or config["n_heads"]
    size = config["emb_dim"] // heads
    parts = {
        "attn_norm.weight": "attention_norm.weight",
        "attn_output.weight": "attention.out.weight",
        "ffn_norm.weight": "mlp_norm.weight",
        "ffn_gate.weight": "mlp.gate.weight",
        "ffn_up.weight": "mlp.up.weight",
        "ffn_down.weight": "mlp.down.weight",
    }
    tensors = _named(weights, config["n_layers"], parts) | {"output_norm.weight": weights["norm.weight"]}
    for layer in range(config["n_layers"]):
        q, k, v = weights[f"blocks.{layer}.attention.qkv.weight"].split(
            [heads * size, shared * size, shared * size]
        )
        tensors[f"blk.{layer}.attn_q.weight"] = _interleaved(q, heads)
        tensors[f"blk.{layer}.attn_k.weight"] = _interleaved(k, shared)
        tensors[f"blk.{layer}.attn_v.weight"] = v
    numbers = {
        "attention.head_count_kv": shared,
        "attention.layer_norm_rms_epsilon": float(config["norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": size,
    }
    return Form("llama", _sizes(source) | numbers, tensors)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys: here a head's first half is turned with its second, there neighbours are."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


_FORMS = {"gpt2": _gpt2, "llama": _llama}
