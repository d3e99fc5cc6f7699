"""A folder in the format of Hugging Face transformers."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field

from pipeline.exporting import (
    chat_proof,
    check_greedy,
    check_ids,
    check_logits,
    check_tokenizer_json,
    portable_template,
    reader_errors,
    tokenizer_json,
)
from pipeline.plugin import Exporter, ExportSource, hookimpl

_TEMPLATE = "chat_template.jinja"


class HuggingFace(Exporter):
    """A Hugging Face folder for AutoModelForCausalLM (gpt2 as GPT2LMHeadModel, modern as NanoChatForCausalLM,
    llama as LlamaForCausalLM) and AutoTokenizer (a fast one)."""

    name: ClassVar[str] = "huggingface"

    max_shard_gb: Annotated[float, Field(gt=0)] = 5.0
    """Larger weights are written as several files of at most this size, in GB (10⁹ bytes)."""

    def export(self, source: ExportSource, folder: Path) -> None:
        form, end, named = _form(source), source.special_tokens[source.end_of_text], _named_tokens(source)
        _write_weights(form.weights(source), self.max_shard_gb * 1e9, folder)
        begin = source.special_tokens[named.get("bos_token", source.end_of_text)]
        ids = {"bos_token_id": begin, "eos_token_id": source.ends if source.chat else end}
        _write(folder / "config.json", {**form.config(source), **ids, "dtype": "float32"})
        _write(folder / "generation_config.json", {**ids, "pad_token_id": end})
        if source.chat:
            (folder / _TEMPLATE).write_text(portable_template(source.chat, empty_only=True), encoding="utf-8")
        _write(folder / "tokenizer.json", tokenizer_json(source))
        _write(
            folder / "tokenizer_config.json",
            {
                # Other classes would replace the split pattern by their own and give wrong ids.
                "tokenizer_class": "PreTrainedTokenizerFast",
                **named,
                "clean_up_tokenization_spaces": False,
                "model_max_length": source.config["context_length"],
            },
        )

    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        if importlib.util.find_spec("transformers") is None:
            return _read_back(source, folder)
        import transformers

        transformers.utils.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

        held = model.state_dict()
        for name, tensor in _form(source).weights(source).items():
            if name not in held or not torch.equal(held[name], tensor):
                raise ValueError(f"transformers: the numbers in {name} are not the checkpoint's")

        def ids(text: str) -> list[int]:
            read = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            given: list[int] = read["input_ids"]
            return given

        def chat_ids(messages: list[dict[str, str]]) -> list[int]:
            with reader_errors(folder / _TEMPLATE, "transformers"):
                read: list[int] = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False, tokenizer_kwargs={"verbose": False}
                )
            return read

        return {
            "reader": f"transformers {transformers.__version__}",
            "texts_with_equal_ids": check_ids(source, ids, "transformers", tokenizer.decode),
            "largest_logit_difference": check_logits(source, lambda tokens: model(tokens).logits, "transformers"),
            # min_new_tokens keeps transformers from ending at end-of-text; so it is compared up to there.
            "equal_greedy_tokens": check_greedy(source, lambda *of: _continued(model, *of, of[1]), "transformers"),
            **chat_proof(source, chat_ids, lambda *of: _continued(model, *of), "transformers"),
        }


def _named_tokens(source: ExportSource) -> dict[str, str]:
    """The special tokens that transformers knows by a name; those that the chat template reads are its own."""
    tokens = {"bos_token": source.end_of_text, "eos_token": source.end_of_turn, "pad_token": source.end_of_text}
    named = {name: source.template_token(name, token) for name, token in {**tokens, "unk_token": ""}.items()}
    return {name: token for name, token in named.items() if token}


def _continued(model: Any, prompt: list[int], count: int, least: int = 0) -> list[int]:
    """The ids of the greedy continuation by transformers, which ends at eos_token_id after at least `least` ids."""
    with torch.inference_mode():
        ids = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count, min_new_tokens=least, do_sample=False,
        )  # fmt: skip
    continued: list[int] = ids[0, len(prompt) :].tolist()
    return continued


def _read_back(source: ExportSource, folder: Path) -> dict[str, Any]:
    """Verification without transformers: reads the files with safetensors and tokenizers, and compares them."""
    from safetensors import safe_open

    left = _form(source).weights(source)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                if name not in left or not torch.equal(file.get_tensor(name), left.pop(name)):
                    raise ValueError(f"{path.name}: the numbers in {name} are not the checkpoint's")
    if left:
        raise ValueError(f"*.safetensors: the checkpoint's {min(left)} is missing")
    chat = source.chat
    if chat and (folder / _TEMPLATE).read_text(encoding="utf-8") != portable_template(chat, empty_only=True):
        raise ValueError(f"{_TEMPLATE}: not the checkpoint's chat template")
    return {"reader": "none", "texts_with_equal_ids": check_tokenizer_json(source, folder / "tokenizer.json")}


def _write_weights(weights: Mapping[str, torch.Tensor], limit: float, folder: Path) -> None:
    """Writes the weights into one file or, with an index, into several of at most `limit` bytes; a larger tensor is
    alone in its file. Weights that are views, such as transposed ones, are copied one file at a time."""
    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    of = len(shards)
    files = [f"model-{n:05}-of-{of:05}.safetensors" for n in range(1, of + 1)] if of > 1 else ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        save_file({name: weights[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # readable like the other files: another user may serve it
    if of > 1:
        totals = {
            "total_parameters": sum(tensor.numel() for tensor in weights.values()),
            "total_size": sum(tensor.nbytes for tensor in weights.values()),
        }
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write(folder / "model.safetensors.index.json", {"metadata": totals, "weight_map": weight_map})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ── the models ────────────────────────────────────────────────────────────────────────────────────


class _Form(NamedTuple):
    """The form of a model in transformers: its config.json, and its weights by their names there."""

    config: Callable[[ExportSource], dict[str, Any]]
    weights: Callable[[ExportSource], dict[str, torch.Tensor]]  # views of the source's: nothing is copied


def _form(source: ExportSource) -> _Form:
    name = source.config["name"]
    if name not in _FORMS:
        raise ValueError(f"transformers does not support the model {name!r}, only: {', '.join(_FORMS)}")
    return _FORMS[name]


def _gpt2_config(source: ExportSource) -> dict[str, Any]:
    config = source.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config["vocab_size"],
        "n_positions": config["context_length"],
        "n_ctx": config["context_length"],
        "n_embd": config["emb_dim"],
        "n_layer": config["n_layers"],
        "n_head": config["n_heads"],
        "activation_function": "gelu_new",
        "resid_pdrop": config["dropout"],
        "embd_pdrop": config["dropout"],
        "attn_pdrop": config["dropout"],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config["tied_head"],
    }


def _gpt2_weights(source: ExportSource) -> dict[str, torch.Tensor]:
    """GPT-2. Conv1D in transformers has the transposed weight of a linear layer, and always a bias."""
    source_weights = source.weights
    named = {
        "transformer.wte.weight": source_weights["token_embedding.weight"],
        "transformer.wpe.weight": source_weights["position_embedding.weight"],
        "transformer.ln_f.weight": source_weights["norm.weight"],
        "transformer.ln_f.bias": source_weights["norm.bias"],
    }
    for layer in range(source.config["n_layers"]):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for norm, their_norm in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            for part in ("weight", "bias"):
                named[f"{theirs}.{their_norm}.{part}"] = source_weights[f"{ours}.{norm}.{part}"]
        for linear, conv in (
            ("attention.qkv", "attn.c_attn"),
            ("attention.out", "attn.c_proj"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ):
            weight = source_weights[f"{ours}.{linear}.weight"]
            bias = source_weights.get(f"{ours}.{linear}.bias", weight.new_zeros(weight.shape[0]))
            named[f"{theirs}.{conv}.weight"] = weight.T
            named[f"{theirs}.{conv}.bias"] = bias
    if not source.config["tied_head"]:
        named["lm_head.weight"] = source_weights["head.weight"]
    return named


def _rotary_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config entries that the two models with rotary positions share, including defaults of transformers."""
    return {
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["context_length"],
        "hidden_size": config["emb_dim"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "pad_token_id": None,  # a pad token would not be trained; end-of-text is used for padding
    }


def _modern_config(source: ExportSource) -> dict[str, Any]:
    config = source.config
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **_rotary_config(config),
        "num_key_value_heads": config["n_heads"],
        "intermediate_size": 4 * config["emb_dim"],
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    }


def _llama_config(source: ExportSource) -> dict[str, Any]:
    """Llama. The base of the rotary frequencies is written twice, because transformers 5 renamed its key."""
    config = source.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_rotary_config(config),
        "num_key_value_heads": config["n_kv_heads"] or config["n_heads"],
        "head_dim": config["emb_dim"] // config["n_heads"],
        "intermediate_size": source.weights["blocks.0.mlp.up.weight"].shape[0],
        "hidden_act": "silu",
        "mlp_bias": False,
        "rms_norm_eps": config["norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "rope_theta": config["rope_theta"],
        "tie_word_embeddings": config["tied_head"],
    }


def _modern_weights(source: ExportSource) -> dict[str, torch.Tensor]:
    """modern (NanoChat). Norms have no weights."""
    return _rotary_weights(source, {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"})


def _llama_weights(source: ExportSource) -> dict[str, torch.Tensor]:
    named = {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    return {**_rotary_weights(source, named), "model.norm.weight": source.weights["norm.weight"]}


def _rotary_weights(source: ExportSource, named: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Separate query, key and value projections. `named` maps the other parts of a block from our names to
    theirs."""
    source_weights, config = source.weights, source.config
    head_dim = config["emb_dim"] // config["n_heads"]
    shared = config.get("n_kv_heads") or config["n_heads"]
    rows = [heads * head_dim for heads in (config["n_heads"], shared, shared)]
    weights = {"model.embed_tokens.weight": source_weights["token_embedding.weight"]}
    if "head.weight" in source_weights:  # absent if it is tied to the embedding
        weights["lm_head.weight"] = source_weights["head.weight"]
    for layer in range(config["n_layers"]):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        parts = source_weights[f"{ours}.attention.qkv.weight"].split(rows)
        weights |= {f"{theirs}.self_attn.{x}_proj.weight": part for x, part in zip("qkv", parts, strict=True)}
        weights[f"{theirs}.self_attn.o_proj.weight"] = source_weights[f"{ours}.attention.out.weight"]
        weights |= {
            f"{theirs}.{there}.weight": source_weights[f"{ours}.{here}.weight"] for here, there in named.items()
        }
    return weights


_FORMS = {
    "gpt2": _Form(_gpt2_config, _gpt2_weights),
    "modern": _Form(_modern_config, _modern_weights),
    "llama": _Form(_llama_config, _llama_weights),
}


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    return [HuggingFace]
