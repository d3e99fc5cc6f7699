"""Weights that others made: a Hugging Face folder read as a model of ours, or refused, naming what is not computed
here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch

from pipeline.core.errors import CheckpointError
from pipeline.core.files import read_json
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MEND = "bring the whole folder, as `save_pretrained` or a download of the model writes it"


@dataclass(frozen=True)
class _Form:
    """How a family is written there.

    Attributes:
        family: Ours.
        sizes: Our fields, each with its key in config.json and the value where it is absent; None where it must be
            there.
        given: The other keys that decide what a model computes, each with the values that are computed here; an
            absent key stands for the first,
        absent: or for this.
        prefix: What stands before all names but the head's, or does not.
        block: What stands before a block's names.
        names: Our modules, each with its name there, or the names of those that it is fused from.
        transposed: Whether a block's matrices are.
    """

    family: str
    sizes: Mapping[str, tuple[str, Any]]
    given: Mapping[str, tuple[Any, ...]]
    prefix: str
    block: str
    names: Mapping[str, tuple[str, ...]]
    transposed: bool = False
    absent: Mapping[str, Any] = field(default_factory=dict)


_ROTARY_SIZES = {
    "vocab_size": ("vocab_size", None),
    "context_length": ("max_position_embeddings", None),
    "n_layers": ("num_hidden_layers", None),
    "n_heads": ("num_attention_heads", None),
    "emb_dim": ("hidden_size", None),
    "mlp_dim": ("intermediate_size", None),
}
_ROTARY_NAMES = {
    "token_embedding": ("embed_tokens",),
    "norm": ("norm",),
    "head": ("lm_head",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "attention_norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
}
_COMMON = {"quantization_config": (None,), "is_encoder_decoder": (False,)}
_ROTARY = {
    **_COMMON,
    "attention_bias": (False,),
    "partial_rotary_factor": (None, 1, 1.0),
    "sliding_window": (None,),
}

_FORMS = {
    "gpt2": _Form(
        "gpt2",
        {
            "vocab_size": ("vocab_size", 50257),
            "context_length": ("n_positions", 1024),
            "n_layers": ("n_layer", 12),
            "n_heads": ("n_head", 12),
            "emb_dim": ("n_embd", 768),
            "mlp_dim": ("n_inner", 0),
            "tied_head": ("tie_word_embeddings", True),
        },
        {
            **_COMMON,
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        "transformer.",
        "h.",
        {
            "token_embedding": ("wte",),
            "position_embedding": ("wpe",),
            "norm": ("ln_f",),
            "head": ("lm_head",),
            "attention.qkv": ("attn.c_attn",),
            "attention.out": ("attn.c_proj",),
            "attention_norm": ("ln_1",),
            "mlp_norm": ("ln_2",),
            "mlp.up": ("mlp.c_fc",),
            "mlp.down": ("mlp.c_proj",),
        },
        transposed=True,
    ),
    "nanochat": _Form(
        "modern",
        {**_ROTARY_SIZES, "n_kv_heads": ("num_key_value_heads", 0)},
        {
            **_ROTARY,
            "hidden_act": ("relu2",),
            "rms_norm_eps": (1e-6,),
            "final_logit_softcapping": (None,),
            "tie_word_embeddings": (False,),
        },
        "model.",
        "layers.",
        {**_ROTARY_NAMES, "mlp.up": ("mlp.fc1",), "mlp.down": ("mlp.fc2",)},
        absent={"final_logit_softcapping": 15.0},
    ),
    "llama": _Form(
        "llama",
        {
            **_ROTARY_SIZES,
            "n_kv_heads": ("num_key_value_heads", 0),
            "norm_eps": ("rms_norm_eps", 1e-6),
            "tied_head": ("tie_word_embeddings", False),
        },
        {**_ROTARY, "hidden_act": ("silu",), "mlp_bias": (False,)},
        "model.",
        "layers.",
        {
            **_ROTARY_NAMES,
            "mlp.gate": ("mlp.gate_proj",),
            "mlp.up": ("mlp.up_proj",),
            "mlp.down": ("mlp.down_proj",),
        },
    ),
}
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names that older files hold beside the weights: masks and frequencies, which follow from the sizes."""


def read_config(folder: Path) -> GPTConfig:
    """The model that config.json describes; its vocabulary are all rows, perhaps more than the tokenizer has ids.

    Raises:
        CheckpointError: config.json is missing or damaged, or describes what is not computed here.
    """
    path = folder / CONFIG
    values = read_json(path, _MEND)
    form = _form(values, path)
    for key, computed in form.given.items():
        _check(path, key, values.get(key, form.absent.get(key, computed[0])), computed)
    fields = {own: _size(values, key, default, path) for own, (key, default) in form.sizes.items()}
    try:
        if form.family != "gpt2":
            fields["rope_theta"] = _rope_theta(values, path)
        return _config(form.family, fields, values, path)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} holds sizes that are no model's ({error}): {_MEND}") from None


def _form(values: Any, path: Path) -> _Form:
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _FORMS:
        raise CheckpointError(
            f"{path} describes a model of the type {kind!r}; those that can be gone on with: {', '.join(_FORMS)}"
        )
    return _FORMS[kind]


def _check(path: Path, key: str, value: Any, computed: tuple[Any, ...]) -> None:
    if value not in computed or (isinstance(value, bool) and not any(value is each for each in computed)):
        known = " or ".join(repr(each) for each in computed)
        raise CheckpointError(
            f"{path}: {key} is {value!r}, and only {known} is computed here: choose another model"
        )


def _size(values: Mapping[str, Any], key: str, default: Any, path: Path) -> Any:
    value = values.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float):
        raise CheckpointError(f"{path}: {key} is {value!r} where a number is expected: {_MEND}")
    return value


def _rope_theta(values: Mapping[str, Any], path: Path) -> float:
    """It has stood in two places, and in each a scaling beside it, which is not computed here."""
    theta = values.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        found = dict(values.get(key) or {})
        _check(path, f"{key}.rope_type", found.get("rope_type", found.get("type", "default")), ("default",))
        theta = found.get("rope_theta", theta)
    return float(theta or 10_000.0)


def _config(family: str, fields: dict[str, Any], values: Mapping[str, Any], path: Path) -> GPTConfig:
    own = {"tied_head": False, **fields}
    own["n_kv_heads"] = own.get("n_kv_heads") or own["n_heads"]
    own["mlp_dim"] = own["mlp_dim"] or 4 * own["emb_dim"]
    head_dim = own["emb_dim"] // own["n_heads"]
    _check(path, "head_dim", values.get("head_dim", head_dim), (head_dim, None))
    if family != "llama":
        form = _FORMS["gpt2" if family == "gpt2" else "nanochat"]
        _check(path, form.sizes["mlp_dim"][0], own.pop("mlp_dim"), (4 * own["emb_dim"],))
        _check(path, "num_key_value_heads", own.pop("n_kv_heads"), (own["n_heads"],))
    if family == "modern":
        _check(path, "rope_theta", own.pop("rope_theta"), (10_000.0,))
    return GPTConfig(dropout=0.0, qkv_bias=family == "gpt2", init="gpt2", pad_vocab_to=1, family=family, **own)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights.

    Raises:
        CheckpointError: there are none, or one of several is missing.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        pickled = next((path.name for path in folder.glob("*.bin")), None)
        found = f"; {pickled} may run code when it is read: convert it to safetensors" if pickled else f": {_MEND}"
        raise CheckpointError(f"{folder} holds no {_WEIGHTS}{found}")
    index = read_json(folder / _INDEX, _MEND)
    try:
        names = sorted({str(name) for name in index["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        names = []
    if not names:
        raise CheckpointError(f"{folder / _INDEX} names no files: {_MEND}")
    for name in names:
        if PurePath(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, and {_INDEX} names it: {_MEND}")
    return [folder / name for name in names]


def read_weights(folder: Path, config: GPTConfig) -> dict[str, torch.Tensor]:
    """The weights under our names, in float32; those of the head where it is not tied.

    Args:
        folder: The Hugging Face folder.
        config: What `read_config` gave.

    Raises:
        CheckpointError: a weight is missing, is of another shape, or is none that such a model has.
    """
    form = next(form for form in _FORMS.values() if form.family == config.family)
    found = dict(_found(folder, form))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        parts = [found.pop(theirs, None) for theirs in _theirs(name, form)]
        present = [part.T if form.transposed and _is_matrix(name) else part for part in parts if part is not None]
        if len(present) < len(parts):
            raise CheckpointError(f"{folder}: the weights lack {' or '.join(_theirs(name, form))}: {_MEND}")
        if {part.shape[1:] for part in present} != {shape[1:]} or sum(
            part.shape[:1].numel() for part in present
        ) != shape[0]:
            shown = [list(part.shape) for part in present]
            raise CheckpointError(
                f"{folder}: {', '.join(_theirs(name, form))} is {shown}, and by {CONFIG} {list(shape)}: {_MEND}"
            )
        weights[name] = torch.cat([part.float() for part in present]).contiguous()
    if config.tied:
        found.pop("lm_head.weight", None)  # the embedding once more
    if found:
        raise CheckpointError(
            f"{folder}: the weight {sorted(found)[0]} is none that a model of the family {config.family} has here"
        )
    return weights


def _found(folder: Path, form: _Form) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for path in weight_files(folder):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({' '.join(str(error).split())[:160]}): {_MEND}"
            ) from None
        for name, tensor in tensors.items():
            if not name.endswith(_NOT_WEIGHTS):
                if not tensor.is_floating_point():
                    raise CheckpointError(
                        f"{path}: {name} is {tensor.dtype}, and only floating-point weights can be used"
                    )
                yield name.removeprefix(form.prefix), tensor


def _theirs(name: str, form: _Form) -> list[str]:
    """The names there of one of our weights, without the prefix."""
    module, _, kind = name.rpartition(".")
    before = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        before = f"{form.block}{layer}."
    return [f"{before}{theirs}.{kind}" for theirs in form.names[module]]


def _is_matrix(name: str) -> bool:
    """Whether it is a matrix in a block."""
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
