"""Others that train the same model: transformers as installed; nanoGPT, litgpt and the book's code from clones.

Their code is imported from the clone. Each takes steps on tokens that are at hand: no loader, no clipping, nothing
that would slow it down. Each precision that a project has is tried eager and compiled, and the fastest is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Side, SideFailedError, Work, facts_of, measured

if TYPE_CHECKING:
    import torch

    from benchmarks.context import Context

Shape = dict[str, int]
Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]

_PRECISIONS = {
    "transformers": ("fp32", "bf16 autocast"),
    "nanoGPT": ("fp32",),
    "litgpt": ("fp32", "bf16 autocast"),
    "the book": ("fp32",),
}
"""The other projects and their precisions: the training scripts of nanoGPT and the book use only fp32 on a CPU."""

_FUNCTIONS = {"nanoGPT": "nanogpt", "the book": "book"}
"""The names of function and clone, if they differ from the name of the side."""

_TRIALS = 3


def settings(name: str, quick: bool) -> list[str]:
    """All settings to try for a side; the short version does not compile."""
    forms = ("eager",) if quick else ("eager", "compiled")
    return [f"{precision}, {form}" for precision in _PRECISIONS[name] for form in forms]


@dataclass(frozen=True)
class Chosen:
    """The fastest setting of a side, and the processor seconds per step of all tried settings."""

    setting: str
    tried: dict[str, float]

    def __str__(self) -> str:
        return "; ".join(f"{setting} {seconds:.2f}" for setting, seconds in self.tried.items())


def training_sides(context: Context, shape: Shape, threads: int, chosen: dict[str, Chosen]) -> list[Side]:
    """The sides that can train this shape, each with its fastest setting.

    Args:
        context: How to measure.
        shape: The model and its batch.
        threads: The number of threads of torch.
        chosen: The settings found so far, by side. Missing ones are found and added, in separate processes, so that
            tried settings and compilation do not count in the peak memory of a side.
    """
    sides = []
    for name in _PRECISIONS:
        function = _FUNCTIONS.get(name, name)
        code = () if name == "transformers" else context.peer(function, name)
        if code is None:
            continue
        if function == "book":
            code = (code[0] / "ch05" / "01_main-chapter-code",)
        options: dict[str, Any] = {"shape": shape, "threads": threads, "settings": settings(name, context.quick)}
        side = Side(name, f"benchmarks.peers:{function}", options, threads, code)
        if len(options["settings"]) == 1:
            chosen[name] = Chosen(options["settings"][0], {})
        if name not in chosen:
            try:
                facts = facts_of(side)
            except SideFailedError as error:
                context.skip(name, f"it failed: {str(error).splitlines()[-1]}")
                continue
            for setting, why in facts["failed"].items():
                context.skip(f"{name}, {setting}", f"it failed: {why}")
            chosen[name] = fastest(facts["tried"])
        sides.append(replace(side, settings={**options, "settings": [chosen[name].setting]}))
    return sides


def fastest(tried: dict[str, float]) -> Chosen:
    """The setting with the fewest processor seconds per step."""
    return Chosen(min(tried, key=lambda setting: tried[setting]), tried)


def transformers(shape: Shape, threads: int, settings: Sequence[str]) -> tuple[Work, dict[str, Any]]:
    """GPT2LMHeadModel in a plain loop (its Trainer would only add overhead), with SDPA attention and fused
    AdamW."""
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

    return _prepared(shape, loss, optimizer, settings)


def nanogpt(shape: Shape, threads: int, settings: Sequence[str]) -> tuple[Work, dict[str, Any]]:
    """nanoGPT's model and optimizer; its train.py supports only fp32 on a CPU."""
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

    return _prepared(shape, loss, optimizer, settings)


def litgpt(shape: Shape, threads: int, settings: Sequence[str]) -> tuple[Work, dict[str, Any]]:
    """litgpt's model in the configuration closest to GPT-2: LayerNorm, GELU, tied head, rotary positions."""
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

    return _prepared(shape, loss, optimizer, settings)


def book(shape: Shape, threads: int, settings: Sequence[str]) -> tuple[Work, dict[str, Any]]:
    """The book's GPTModel, loss and optimizer, as in its training chapter."""
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

    return _prepared(shape, loss, optimizer, settings)


def _prepared(
    shape: Shape, loss: Loss, optimizer: torch.optim.Optimizer, settings: Sequence[str]
) -> tuple[Work, dict[str, Any]]:
    """The step for a single setting; for several settings, the time of each, or its error."""
    steps: dict[str, Work] = {}
    failed: dict[str, str] = {}
    for setting in settings:
        step = _step(shape, loss, optimizer, setting)
        try:
            step()
            step()
        except Exception as error:  # compilers raise many types of exceptions; try the other settings
            failed[setting] = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            steps[setting] = step
    if not steps:
        raise RuntimeError("; ".join(f"{setting}: {why}" for setting, why in failed.items()))
    if len(settings) == 1:
        return steps[settings[0]], {"setting": settings[0]}
    rounds = [{setting: measured(step).processor for setting, step in steps.items()} for _ in range(_TRIALS)]
    tried = {setting: median(each[setting] for each in rounds) for setting in steps}
    return steps[fastest(tried).setting], {"tried": tried, "failed": failed}


def _step(shape: Shape, loss: Loss, optimizer: torch.optim.Optimizer, setting: str) -> Work:
    """An optimizer step. If compiled: forward pass, loss and backward pass as a whole."""
    import torch

    precision, _, form = setting.partition(", ")
    called = torch.compile(loss, dynamic=False) if form == "compiled" else loss
    batch, length = shape["batch_size"], shape["context_length"]
    tokens = torch.randint(
        0, shape["vocab_size"] - 1, (batch, length + 1), generator=torch.Generator().manual_seed(1)
    )
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def work() -> float:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16 autocast" else nullcontext():
            nats = called(x, y)
        optimizer.zero_grad(set_to_none=True)
        nats.backward()
        optimizer.step()
        return float(batch * length)

    return work


def book_run(text: str, epochs: int, threads: int) -> tuple[Work, dict[str, Any]]:
    """The book's training chapter from its text to the last sample, with the settings of its published curve."""
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
