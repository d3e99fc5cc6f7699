"""Generation: tokens per processor-second of GPT-2 small, one prompt and eight, the same weights everywhere."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.measure import Measured, Side, Work, facts_of
from benchmarks.ours import SHAPES
from benchmarks.results import compared

_PROMPT, _NEW = 8, 200
_UNIT = "tokens per processor-second"


def run(context: Context) -> None:
    """Greedy generation after prompts of eight tokens: 200 tokens with one prompt and one thread; 50 tokens with
    two threads, and with eight prompts."""
    facts_of(Side("weights", "benchmarks.generation:weights", {"folder": str(context.folder)}, 2))
    _compare(context, 1, 1, _NEW // 4 if context.quick else _NEW)
    if not context.quick:
        _compare(context, 1, 2, _NEW // 4)
        _compare(context, 8, 2, _NEW // 4)


def _compare(context: Context, batch: int, threads: int, new: int) -> None:
    """Each side in fp32 and with bf16 weights; goals compare the faster variant of each side."""
    settings = {"folder": str(context.folder), "threads": threads, "batch": batch, "new": new}
    sides = [
        _side(name, dtype, {**settings, "dtype": dtype}, threads)
        for dtype in ("fp32", "bf16")
        for name in ("ours", "transformers")
    ]
    code = context.peer("book", "the book's generation") if (batch, threads) == (1, 1) else None
    if code:
        path = (code[0] / "ch05" / "01_main-chapter-code",)
        sides.append(Side("the book, fp32", "benchmarks.generation:book", settings, threads, path))
    done = context.take_turns(sides)
    what = f"generating, {batch} prompt{'s' * (batch > 1)}, {threads} thread{'s' * (threads > 1)}"
    for dtype in ("fp32", "bf16"):
        if f"transformers, {dtype}" in done:
            ours, theirs = done[f"ours, {dtype}"], done[f"transformers, {dtype}"]
            context.add(compared(f"{what}, {dtype}", "transformers", ours, theirs, _UNIT))
    ours = _fastest(done, "ours")
    for name in ("transformers", "the book"):
        if theirs := _fastest(done, name):
            goal = f"generation against {name}"
            context.add(compared(f"{what}, each at its fastest", name, done[ours], done[theirs], _UNIT, goal))
            context.results.rows[-1] = replace(context.results.rows[-1], note=f"{ours}; {theirs}")
    ids = {tuple(each.facts["ids"]) for name, each in done.items() if name.endswith("fp32")}
    if len(ids) > 1:
        context.skip("equal texts on all sides", "greedy ids differ, as they may where logits are all but equal")


def _fastest(done: dict[str, Measured], name: str) -> str:
    """The fastest variant of a side; empty if there is none."""
    candidates = [each for each in done if each.startswith(f"{name}, ")]
    return max(candidates, key=lambda each: done[each].rate, default="")


def _side(name: str, dtype: str, settings: dict[str, Any], threads: int) -> Side:
    return Side(f"{name}, {dtype}", f"benchmarks.generation:{name}", settings, threads)


def weights(folder: str) -> tuple[None, dict[str, Any]]:
    """Writes random GPT-2 small weights, in our format and exported for transformers."""
    import torch

    from benchmarks.measure import ROOT
    from benchmarks.ours import params
    from pipeline.export.stage import export_source
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.plugin.registry import Registry
    from pipeline.tokenize.vocabulary import raw_bytes
    from pipeline.train.components import Components

    torch.manual_seed(1)
    from benchmarks.ours import tokenizer

    whole = params(SHAPES["B"], ())
    components = Components.load(whole, ROOT / "plugins")
    model = components.architecture(whole.model, tokenizer(SHAPES["B"]["vocab_size"])).make().eval()
    config = json.dumps(asdict(model.architecture.config))
    torch.save({"config": config, "weights": model.state_dict()}, Path(folder) / "ours.pt")
    exporter = Registry.load(ROOT / "plugins", ["exporters"]).build("exporters", "huggingface", {}, "")
    (Path(folder) / "export").mkdir()
    exporter.export(export_source(Checkpoint(model, raw_bytes(), 0, "last"), ""), Path(folder) / "export")
    return None, {}


def _prompts(batch: int) -> Any:
    import torch

    return torch.randint(0, 50_000, (batch, _PROMPT), generator=torch.Generator().manual_seed(2))


def _as(dtype: str) -> Any:
    import torch

    return torch.bfloat16 if dtype == "bf16" else torch.float32


def ours(folder: str, threads: int, batch: int, new: int, dtype: str) -> tuple[Work, dict[str, Any]]:
    """`pipeline.model.generate`, which all commands use; bf16 means weights cast to bf16."""
    import torch
    from pydantic import TypeAdapter

    from benchmarks.measure import ROOT
    from pipeline.model.architecture import ModelConfig
    from pipeline.model.generate import generate
    from pipeline.plugin.registry import Registry

    torch.set_num_threads(threads)
    saved = torch.load(Path(folder) / "ours.pt", weights_only=True)
    config = TypeAdapter(ModelConfig).validate_json(saved["config"])
    model = config.architecture(Registry.load(ROOT / "plugins", ["models"]), Path(folder)).make().eval()
    model.load_state_dict(saved["weights"])
    model, tokens = model.to(_as(dtype)), _prompts(batch)

    def work() -> float:
        for _ in generate(model, tokens, new):
            pass
        return float(batch * new)

    return work, {"ids": [int(ids[0]) for ids in generate(model, tokens, 20)]}


def transformers(folder: str, threads: int, batch: int, new: int, dtype: str) -> tuple[Work, dict[str, Any]]:
    """`generate` of transformers with its key-value cache."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        Path(folder) / "export", dtype=_as(dtype), attn_implementation="sdpa", local_files_only=True
    ).eval()
    tokens = _prompts(batch)
    options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "use_cache": True, "pad_token_id": 0}

    def generated(count: int) -> torch.Tensor:
        with torch.inference_mode():
            return model.generate(tokens, max_new_tokens=count, min_new_tokens=count, **options)

    def work() -> float:
        generated(new)
        return float(batch * new)

    return work, {"ids": generated(20)[0, _PROMPT:].tolist()}


def book(folder: str, threads: int, batch: int, new: int) -> tuple[Work, dict[str, Any]]:
    """The book's generate_text_simple, which recomputes the whole text for each token.

    So a token's cost depends on how many are before it, and on nothing else: one token at every twentieth length
    tells what all of them take.
    """
    import torch
    from previous_chapters import GPTModel, generate_text_simple

    torch.set_num_threads(threads)
    shape = SHAPES["B"]
    config = {
        "vocab_size": shape["vocab_size"], "context_length": shape["context_length"], "emb_dim": shape["emb_dim"],
        "n_heads": shape["n_heads"], "n_layers": shape["n_layers"], "drop_rate": 0.0, "qkv_bias": True,
    }  # fmt: skip
    model = GPTModel(config).eval()
    _load_exported(model, Path(folder) / "export" / "model.safetensors")
    tokens, every = _prompts(batch), 20
    longest = torch.cat([tokens, torch.randint(0, 50_000, (batch, new))], dim=1)

    def generated(given: torch.Tensor, count: int) -> torch.Tensor:
        return generate_text_simple(model, given, count, context_size=shape["context_length"])

    def work() -> float:
        lengths = range(_PROMPT, _PROMPT + new, every)
        for length in lengths:
            generated(longest[:, :length], 1)
        return float(batch * len(lengths))

    return work, {"ids": generated(tokens, 20)[0, _PROMPT:].tolist()}


def _load_exported(model: Any, path: Path) -> None:
    """Copies weights with GPT-2's published names and shapes into the book's model."""
    import torch
    from safetensors.torch import load_file

    names = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    loaded = {"tok_emb.weight": names["wte.weight"], "pos_emb.weight": names["wpe.weight"]}
    loaded |= {"out_head.weight": names["wte.weight"], "final_norm.scale": names["ln_f.weight"]}
    loaded |= {"final_norm.shift": names["ln_f.bias"]}
    for layer in range(len(model.trf_blocks)):
        there, here = f"trf_blocks.{layer}.", f"h.{layer}."
        for kind in ("weight", "bias"):
            split = names[f"{here}attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, part in zip(("W_query", "W_key", "W_value"), split, strict=True):
                loaded[f"{there}att.{name}.{kind}"] = part.T if kind == "weight" else part
            for name, theirs in (
                ("att.out_proj", "attn.c_proj"), ("ff.layers.0", "mlp.c_fc"), ("ff.layers.2", "mlp.c_proj")
            ):  # fmt: skip
                tensor = names[f"{here}{theirs}.{kind}"]
                loaded[f"{there}{name}.{kind}"] = tensor.T if kind == "weight" else tensor
        for number in (1, 2):
            loaded[f"{there}norm{number}.scale"] = names[f"{here}ln_{number}.weight"]
            loaded[f"{there}norm{number}.shift"] = names[f"{here}ln_{number}.bias"]
    missing, _ = model.load_state_dict({name: torch.clone(tensor) for name, tensor in loaded.items()}, strict=False)
    if any(not name.endswith("mask") for name in missing):
        raise RuntimeError(f"weights were not found for {missing}")
