"""The GGUF form of each model: architecture name, metadata, and tensors with llama.cpp's names."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from pipeline.plugin import ExportSource


class Form(NamedTuple):
    """llama.cpp's name of the architecture, its metadata (keys without the name as prefix), and its tensors."""

    arch: str
    numbers: dict[str, int | float]
    tensors: dict[str, torch.Tensor]


def form(source: ExportSource) -> Form:
    """The GGUF form of the model.

    Raises:
        ValueError: llama.cpp does not support the model.
    """
    name = source.config["name"]
    if name not in _FORMS:
        raise ValueError(
            f"llama.cpp does not support the model {name!r}, only {' and '.join(_FORMS)}: train with one of "
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


def _rename_tensors(
    weights: Mapping[str, torch.Tensor], layers: int, parts: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The embedding, the untied head, and the `parts` of each block (GGUF name → name in this project)."""
    tensors = {"token_embd.weight": weights["token_embedding.weight"]}
    if "head.weight" in weights:
        tensors["output.weight"] = weights["head.weight"]
    for layer in range(layers):
        tensors |= {f"blk.{layer}.{theirs}": weights[f"blocks.{layer}.{ours}"] for theirs, ours in parts.items()}
    return tensors


def _gpt2(source: ExportSource) -> Form:
    """GPT-2. llama.cpp always adds the qkv bias, so a missing one is written as zeros."""
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
            **_rename_tensors(zeros | dict(weights), source.config["n_layers"], parts),
            "position_embd.weight": weights["position_embedding.weight"],
            "output_norm.weight": weights["norm.weight"],
            "output_norm.bias": weights["norm.bias"],
        },
    )


def _llama(source: ExportSource) -> Form:
    """Llama. Queries, keys and values are separate tensors; rows of the first two are in llama.cpp's rotary
    order."""
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
    tensors = _rename_tensors(weights, config["n_layers"], parts) | {"output_norm.weight": weights["norm.weight"]}
    for layer in range(config["n_layers"]):
        q, k, v = weights[f"blocks.{layer}.attention.qkv.weight"].split(
            [heads * size, shared * size, shared * size]
        )
        tensors[f"blk.{layer}.attn_q.weight"] = _interleave_rows(q, heads)
        tensors[f"blk.{layer}.attn_k.weight"] = _interleave_rows(k, shared)
        tensors[f"blk.{layer}.attn_v.weight"] = v
    numbers = {
        "attention.head_count_kv": shared,
        "attention.layer_norm_rms_epsilon": float(config["norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": size,
    }
    return Form("llama", _sizes(source) | numbers, tensors)


def _interleave_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorders rows of queries or keys: here the first half of a head rotates with the second, there adjacent
    rows."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


_FORMS = {"gpt2": _gpt2, "llama": _llama}
