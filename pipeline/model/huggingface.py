"""Reads a Hugging Face folder as one of the shipped models; refuses settings that these do not support, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from pipeline.core.errors import CheckpointError, ParamsError
from pipeline.core.values import explain, read_values
from pipeline.model.architecture import Architecture, ModelConfig
from pipeline.plugin.components import ModelShape

CONFIG = "config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FIX = "bring the whole folder, as `save_pretrained` or a download of the model writes it"


@dataclass(frozen=True)
class _Format:
    """How a Hugging Face folder stores a model type.

    Attributes:
        name: The name of the shipped model.
        sizes: For each size and option, the key in config.json and its default; None if the key is required.
        supported: The other keys that change the computation, with their supported values. The first value is the
            default of an absent key.
        prefix: The prefix of all weight names except the head's; some files omit it.
        block: The prefix of a block's weight names, before the block's index.
        names: For each module here, the modules of the file that are fused into it.
        transposed: Whether the matrices of blocks are stored as [inputs, outputs].
        optional: The suffix of weights that may be absent here if they are zero, and the option that adds them.
    """

    name: str
    sizes: Mapping[str, tuple[str, Any]]
    supported: Mapping[str, tuple[Any, ...]]
    prefix: str
    block: str
    names: Mapping[str, tuple[str, ...]]
    transposed: bool = False
    optional: tuple[str, str] | None = None


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
_SIZES = ("vocab_size", "context_length", "n_layers", "n_heads", "emb_dim")
_COMMON = {"quantization_config": (None,), "is_encoder_decoder": (False,)}
_ROTARY = {
    **_COMMON,
    "attention_bias": (False,),
    "partial_rotary_factor": (None, 1, 1.0),
    "sliding_window": (None,),
}

_FORMATS = {
    "gpt2": _Format(
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
        optional=(".attn.c_attn.bias", "qkv_bias"),
    ),
    "nanochat": _Format(
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
    ),
    "llama": _Format(
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
_ABSENT = {"final_logit_softcapping": 15.0}
"""Defaults of absent keys in transformers that are not supported here."""
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Suffixes of tensors in older files other than weights: masks and frequencies, which follow from the sizes."""


def read_config(folder: Path) -> ModelConfig:
    """Reads the model config of a Hugging Face folder. Its vocabulary may be larger than the tokenizer's.

    Raises:
        CheckpointError: config.json is missing, corrupt, or describes a model that is not supported.
    """
    path = folder / CONFIG
    values = read_values(path, dict[str, Any], _FIX, CheckpointError)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise CheckpointError(f"{path}: model_type is {kind!r}; supported model types: {', '.join(_FORMATS)}")
    values, form = {**_ABSENT, **values}, _FORMATS[kind]
    for key, supported in form.supported.items():
        _check(path, key, values.get(key, supported[0]), supported)
    fields = {field: _size(values, key, default, path) for field, (key, default) in form.sizes.items()}
    try:
        return _config(form, fields, values, path)
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = explain(error) if isinstance(error, ValueError) else str(error)
        raise CheckpointError(f"{path} holds invalid sizes ({reason}): {_FIX}") from None


def _check(path: Path, key: str, value: Any, supported: tuple[Any, ...]) -> None:
    if value not in supported or (isinstance(value, bool) and not any(value is each for each in supported)):
        known = " or ".join(repr(each) for each in supported)
        raise CheckpointError(f"{path}: {key} is {value!r}, but only {known} is supported: choose another model")


def _size(values: Mapping[str, Any], key: str, default: Any, path: Path) -> Any:
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, str | list | dict):
        raise CheckpointError(f"{path}: {key} must be a number, not {value!r}: {_FIX}")
    return value


def _config(form: _Format, fields: dict[str, Any], values: Mapping[str, Any], path: Path) -> ModelConfig:
    if form.name != "gpt2":
        theta = values.get("rope_theta")
        for key in ("rope_scaling", "rope_parameters"):  # in older and newer files; either may scale positions
            found = dict(values.get(key) or {})
            _check(path, f"{key}.rope_type", found.get("rope_type", found.get("type", "default")), ("default",))
            theta = found.get("rope_theta", theta)
        fields["rope_theta"] = float(theta or 10_000.0)
    width, heads = fields["emb_dim"], fields["n_heads"]
    head_dim = width // heads
    _check(path, "head_dim", values.get("head_dim", head_dim), (head_dim, None))
    inside, shared = fields.pop("mlp_dim") or 4 * width, fields.pop("n_kv_heads", 0) or heads
    if form.name == "llama":  # 0 stands for the default
        fields["mlp_dim"] = 0 if inside == -(-8 * width // (3 * 64)) * 64 else inside
        fields["n_kv_heads"] = 0 if shared == heads else shared
    else:
        _check(path, form.sizes["mlp_dim"][0], inside, (4 * width,))
        _check(path, "num_key_value_heads", shared, (heads,))
    if form.name == "modern":
        _check(path, "rope_theta", fields.pop("rope_theta"), (10_000.0,))
    sizes = {name: fields.pop(name) for name in _SIZES}
    return ModelConfig(form.name, fields, ModelShape(dropout=0.0, pad_vocab_to=1, **sizes))


@dataclass(frozen=True)
class _Index:
    """The index of several safetensors files: the file of each weight."""

    weight_map: dict[str, str]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the weights.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        pickled = next((path.name for path in folder.glob("*.bin")), None)
        found = f"; {pickled} may run code when it is loaded: convert it to safetensors" if pickled else f": {_FIX}"
        raise CheckpointError(f"{folder} holds no {_WEIGHTS}{found}")
    names = sorted(set(read_values(folder / _INDEX, _Index, _FIX, CheckpointError).weight_map.values()))
    if not names:
        raise CheckpointError(f"{folder / _INDEX} lists no files: {_FIX}")
    for name in names:
        if PurePath(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, but {_INDEX} lists it: {_FIX}")
    return [folder / name for name in names]


def read_weights(folder: Path, model: Architecture) -> dict[str, torch.Tensor]:
    """Reads the weights of a Hugging Face folder, whose config is that of `model`, in float32, and renames them.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape.
        ParamsError: an option of the model excludes a weight of the file.
    """
    form = next(form for form in _FORMATS.values() if form.name == model.component.name)
    found = dict(_tensors(folder, form))
    weights = {}
    for name, (shape, _) in model.tensor_specs.items():
        names = _names(name, form)
        parts = [found.pop(each) for each in names if each in found]
        if len(parts) < len(names):
            raise CheckpointError(f"{folder}: the weights lack {' or '.join(names)}: {_FIX}")
        if form.transposed and name.startswith("blocks.") and len(shape) == 2:
            parts = [part.T for part in parts]
        rows = sum(part.shape[:1].numel() for part in parts)
        if rows != shape[0] or any(part.shape[1:] != shape[1:] for part in parts):
            shown = [list(part.shape) for part in parts]
            raise CheckpointError(f"{folder}: {', '.join(names)} is {shown}, but by {CONFIG} {list(shape)}: {_FIX}")
        weights[name] = torch.cat([part.float() for part in parts]).contiguous()
    if "head.weight" not in weights:
        found.pop("lm_head.weight", None)  # a copy of the embedding
    if form.optional:
        _leave_out(found, *form.optional, folder, form)
    if found:
        raise CheckpointError(f"{folder}: the model {form.name} has no weight {sorted(found)[0]}")
    return weights


def _leave_out(found: dict[str, torch.Tensor], end: str, option: str, folder: Path, form: _Format) -> None:
    """Removes weights with the suffix `end` from `found`, if they are zero."""
    for name in [name for name in found if name.endswith(end)]:
        if bool(found.pop(name).any()):
            raise ParamsError(
                f"train.init_from: {folder} has the weight {name}: set model.{form.name}.{option}: true"
            )


def _tensors(folder: Path, form: _Format) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights of the folder, with their names without the prefix."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for path in weight_files(folder):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:160]}): {_FIX}") from None
        for name, tensor in tensors.items():
            if name.endswith(_NOT_WEIGHTS):
                continue
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{path}: {name} is {tensor.dtype}, but only floating-point weights are supported"
                )
            yield name.removeprefix(form.prefix), tensor


def _names(name: str, form: _Format) -> list[str]:
    """The names in the file, without the prefix, of a weight here."""
    module, _, kind = name.rpartition(".")
    before = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        before = f"{form.block}{layer}."
    return [f"{before}{each}.{kind}" for each in form.names[module]]
