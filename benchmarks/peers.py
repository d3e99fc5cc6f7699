"""Others that train the same model: transformers as installed; nanoGPT, litgpt and the book's code from clones.

Their code is imported where it lies. Each takes steps on tokens that are at hand: no loader, no clipping, nothing
that would slow it down. Where a project has several settings, each is tried and the fastest is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Side, Work, measured

if TYPE_CHECKING:
    import torch

    from benchmarks.context import Context

Shape = dict[str, int]
Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def training_sides(context: Context, shape: Shape, threads: int, settings: dict[str, str]) -> list[Side]:
    """Everyone who can train this shape; `settings` names those that were the fastest before."""
    sides = []
    for name, function, clone in (
        ("transformers", "transformers", None),
        ("nanoGPT", "nanogpt", "nanogpt"),
        ("litgpt", "litgpt", "litgpt"),
        ("the book", "book", "book"),
    ):
        code = context.peer(clone, name) if clone else ()
        if code is None:
            continue
        if clone == "book":
            code = (code[0] / "ch05" / "01_main-chapter-code",)
        options = {
            "shape": shape, "threads": threads, "compiled": context.compile_peers, "only": settings.get(name, ""),
        }  # fmt: skip
        sides.append(Side(name, f"benchmarks.peers:{function}", options, threads, code))
    return sides


def transformers(shape: Shape, threads: int, compiled: bool, only: str) -> tuple[Work, dict[str, Any]]:
    """GPT2LMHeadModel in a plain loop, which its Trainer can only add to; SDPA attention and fused AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape["vocab_size"], n_positions=shape["context_length"], n_embd=shape["emb_dim"],
        n_layer=shape["n_layers"], n_head=shape["n_heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    torch.set_num_threads(threads)
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, fused=True)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())

    return _fastest(shape, loss, optimizer, ["fp32", "bf16 autocast"], compiled, only)


def nanogpt(shape: Shape, threads: int, compiled: bool, only: str) -> tuple[Work, dict[str, Any]]:
    """Its GPT and its optimizer; its train.py knows nothing but fp32 on a CPU."""
    import torch
    from model import GPT, GPTConfig

    torch.set_num_threads(threads)
    model = GPT(
        GPTConfig(
            block_size=shape["context_length"], vocab_size=shape["vocab_size"], n_layer=shape["n_layers"],
            n_head=shape["n_heads"], n_embd=shape["emb_dim"], dropout=0.0, bias=True,
        )
    )  # fmt: skip
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return model(x, y)[1]

    return _fastest(shape, loss, optimizer, ["fp32"], compiled, only)


def litgpt(shape: Shape, threads: int, compiled: bool, only: str) -> tuple[Work, dict[str, Any]]:
    """Its GPT in the form nearest to GPT-2's: LayerNorm, GELU, a tied head, rotary instead of learned positions."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    torch.set_num_threads(threads)
    model = GPT(
        Config(
            name="benchmark", block_size=shape["context_length"], vocab_size=shape["vocab_size"],
            padded_vocab_size=shape["vocab_size"], n_layer=shape["n_layers"], n_head=shape["n_heads"],
            n_embd=shape["emb_dim"], parallel_residual=False, gelu_approximate="tanh",
        )
    )  # fmt: skip
    model.apply(model._init_weights)
    model.transformer.wte.weight = model.lm_head.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1, fused=True)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return chunked_cross_entropy(model(x), y, chunk_size=0)

    return _fastest(shape, loss, optimizer, ["fp32", "bf16 autocast"], compiled, only)


def book(shape: Shape, threads: int, compiled: bool, only: str) -> tuple[Work, dict[str, Any]]:
    """Its GPTModel, loss and optimizer, as its chapter has them."""
    import torch
    from gpt_train import calc_loss_batch
    from previous_chapters import GPTModel

    torch.set_num_threads(threads)
    config = {
        "vocab_size": shape["vocab_size"], "context_length": shape["context_length"], "emb_dim": shape["emb_dim"],
        "n_heads": shape["n_heads"], "n_layers": shape["n_layers"], "drop_rate": 0.0, "qkv_bias": True,
    }  # fmt: skip
    model = GPTModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return calc_loss_batch(x, y, model, torch.device("cpu"))

    return _fastest(shape, loss, optimizer, ["fp32"], False, only)


def _fastest(
    shape: Shape, loss: Loss, optimizer: torch.optim.Optimizer, precisions: list[str], compiled: bool, only: str
) -> tuple[Work, dict[str, Any]]:
    """The fastest of the ways to take a step; a single one (or `only`, found before) is not tried out."""
    import torch

    ways = {precision: _step(shape, loss, optimizer, precision) for precision in precisions}
    if compiled:
        whole = torch.compile(loss)
        ways |= {f"{each}, compiled": _step(shape, whole, optimizer, each) for each in precisions}
    if only in ways:
        ways = {only: ways[only]}
    for work in ways.values():
        work()
    times = {name: measured(work).processor for name, work in ways.items()} if len(ways) > 1 else {}
    chosen = min(times, key=lambda name: times[name]) if times else next(iter(ways))
    return ways[chosen], {"setting": chosen, "tried": times}


def _step(shape: Shape, loss: Loss, optimizer: torch.optim.Optimizer, precision: str) -> Work:
    import torch

    batch, length = shape["batch_size"], shape["context_length"]
    tokens = torch.randint(
        0, shape["vocab_size"] - 1, (batch, length + 1), generator=torch.Generator().manual_seed(1)
    )
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def work() -> float:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16 autocast" else nullcontext():
            nats = loss(x, y)
        optimizer.zero_grad(set_to_none=True)
        nats.backward()
        optimizer.step()
        return float(batch * length)

    return work


def book_run(text: str, epochs: int, threads: int) -> tuple[Work, dict[str, Any]]:
    """The book's chapter from its text to its last sample, with the settings of its published curve."""
    import gpt_train
    import tiktoken
    import torch
    from previous_chapters import GPTModel, create_dataloader_v1

    config = {
        "vocab_size": 50257, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 12,
        "drop_rate": 0.1, "qkv_bias": False,
    }  # fmt: skip

    def loader(part: str, training: bool) -> Any:
        return create_dataloader_v1(
            part, batch_size=2, max_length=256, stride=256, drop_last=training, shuffle=training, num_workers=0
        )

    def work() -> float:
        torch.set_num_threads(threads)
        torch.manual_seed(123)
        with open(text, encoding="utf-8") as file:
            whole = file.read()
        model = GPTModel(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
        cut = int(0.9 * len(whole))
        train, val = loader(whole[:cut], True), loader(whole[cut:], False)
        gpt_train.train_model_simple(
            model, train, val, optimizer, torch.device("cpu"), num_epochs=epochs, eval_freq=5, eval_iter=5,
            start_context="Every effort moves you", tokenizer=tiktoken.get_encoding("gpt2"),
        )  # fmt: skip
        return float(epochs)

    return work, {}
