"""How many bytes training needs on each device; known before a model is made.

The formulas count what autograd keeps of each operation, after Korthikanti et al. (2022, "Reducing Activation
Recomputation in Large Transformer Models", section 4.1), for this model and this loss; tests hold them against what
torch's allocator gives out on a CPU. What is different on a GPU (fused attention, dropout masks of one byte) is
taken from torch's source and was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.errors import ParamsError
from pipeline.files import readable
from pipeline.model.config import GPTConfig
from pipeline.model.device import memory_of

_FREE = 0.1
"""Share of a device's memory that is left to its driver, to fragments, and to Python and torch themselves."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs on one device, which is one rank's.

    Attributes:
        weights: The parameters in float32.
        gradients: Of each of them in float32, as a step of several micro-batches accumulates them.
        optimizer: The optimizer's state.
        activations: The most that one micro-batch adds: what is saved for backward (under bf16 also the matrices'
            bfloat16 copies), and what lives beside it at the worst moment, which with a large vocabulary is the
            beginning of backward: logits, their log-softmax and the gradients of both.
        gathered: Under FSDP, the parameters and unreduced gradients that are whole at that moment.
        saving: In the machine's own memory, on the first rank only: the copy of weights, optimizer state and best
            weights that is written in the background; under FSDP that of the whole model, which is made once, to
            publish it.
        shared: Whether the device's memory is the machine's own.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    saving: int
    shared: bool

    @property
    def lasting(self) -> int:
        """Bytes that stay from step to step: weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Bytes on the device; a GPU's do not include `saving`."""
        return self.lasting + self.activations + self.gathered + (self.saving if self.shared else 0)

    def __str__(self) -> str:
        """The total and its parts, as people read them."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "gathered": self.gathered, "saving": self.saving * self.shared}
        text = ", ".join(f"{name} {readable(size)}" for name, size in parts.items() if size)
        beside = "" if self.shared else f"; and {readable(self.saving)} of the machine's memory for saving"
        return f"{readable(self.total)} ({text}){beside}"


def estimate(
    config: GPTConfig,
    micro_batch_size: int,
    precision: str,
    optimizer_bytes: float = 8.0,
    device_type: str = "cpu",
    strategy: str = "ddp",
    processes: int = 1,
) -> Memory:
    """What a training step needs on the first rank's device, with the shipped cross-entropy and without compiling.

    Not counted: Python and torch themselves, a GPU's driver, fragments, and the workspace of matrix products.

    Args:
        config: The model.
        micro_batch_size: B, windows that a rank computes at once.
        precision: "fp32", or "bf16" for autocast with float32 weights.
        optimizer_bytes: The optimizer's state, for each parameter; AdamW keeps two float32.
        device_type: "cpu", "cuda" or "mps".
        strategy: "ddp" keeps everything on every rank, the gradients in its buckets and nowhere else; "fsdp" (FSDP2
            over every block and over the rest) divides weights, gradients and optimizer state by the number of
            ranks, and exchanges gradients after each micro-batch. A single process has no use for either.
        processes: Ranks that train together.
    """
    sharded = strategy == "fsdp" and processes > 1
    count = config.parameter_count
    share = count / processes if sharded else count
    peaks = _peaks(config, micro_batch_size, precision, device_type, sharded)
    activations, gathered = max(peaks.values(), key=sum)
    return Memory(
        weights=round(4 * share),
        gradients=round(4 * share),
        optimizer=round(optimizer_bytes * share),
        activations=activations,
        gathered=gathered,
        saving=round((4 + optimizer_bytes + 4) * count),
        shared=device_type != "cuda",
    )


def _peaks(
    config: GPTConfig, micro_batch_size: int, precision: str, device_type: str, sharded: bool
) -> dict[str, tuple[int, int]]:
    """(activations, gathered) in bytes, at each moment of a micro-batch that can be the worst one.

    The logits [B, T, V] live as long as the model's output does: to the end of backward.
    """
    tokens = micro_batch_size * config.context_length
    numbers = tokens * config.emb_dim  # of one tensor [B, T, D]
    attention, mlp = _saved_by_block(config, micro_batch_size, precision, device_type)
    dropped = (1 if device_type == "cuda" else 4) * numbers if config.dropout else 0
    last_norm = 8 * numbers + 8 * tokens
    saved = config.n_layers * (attention + mlp) + last_norm + 24 * tokens + dropped  # 24: ids, targets, places
    logits = 4 * tokens * config.vocab_size
    head = 4 * config.vocab_size * config.emb_dim
    embedding = 4 * config.padded_vocab_size * config.emb_dim

    # The largest gradient of a matrix, before it is added to the others; a tied head's waits for the embedding's.
    matrix = 0 if sharded else 16 * config.emb_dim**2
    waiting = embedding if config.tied_head and not sharded else 0
    moving = (16 if precision == "fp32" else 8 + 2) * numbers  # gradients around an MLP: inside it, and one cast
    in_mlp = saved + logits + waiting + moving + matrix
    in_attention = saved - mlp + logits + waiting + 12 * numbers + _probabilities(config, micro_batch_size) + matrix
    in_block = max(in_mlp, in_attention) if _keeps_probabilities(config, device_type) else in_mlp

    # The root (embeddings, last norm, head) is gathered all along, and the gradient of its head waits to the end.
    # Of blocks, there are at most the weights of one, its gradients, those of the one before it, which are being
    # exchanged, and the weights of the next one.
    block = 4 * config.block_parameter_count if sharded else 0
    root = 4 * config.parameter_count - config.n_layers * block if sharded else 0
    held = root + embedding if sharded else 0
    return {
        "loss": (saved + 4 * logits, root),
        "head": (saved + logits + head + max(logits, embedding) + 4 * numbers, root),
        "last block": (in_block, held + min(config.n_layers + 1, 3) * block),
        "other block": (in_block - attention - mlp, held + min(config.n_layers + 1, 4) * block),
    }


def _saved_by_block(config: GPTConfig, micro_batch_size: int, precision: str, device_type: str) -> tuple[int, int]:
    """Bytes that one block saves for backward: its attention's half, and its MLP's.

    Both save the norm's input in float32 with its means and scales, the input of each matrix and, under bf16, the
    matrix itself in bfloat16; then attention its queries, keys, values and log-sums, or its probabilities, and the
    MLP its GELU's input.
    """
    batch, length = micro_batch_size, config.context_length
    tokens, numbers = batch * length, batch * length * config.emb_dim
    computed = 2 if precision == "bf16" else 4  # bytes of a number that a matrix gives
    copied = 2 * config.emb_dim**2 if precision == "bf16" else 0
    dropped = (1 if device_type == "cuda" else computed) * numbers if config.dropout else 0
    norm = 4 * numbers + 8 * tokens
    if _keeps_probabilities(config, device_type):
        attended = 12 * numbers + (3 if config.dropout else 1) * _probabilities(config, batch)
    else:
        mask = computed * tokens * length if config.document_end is not None else 0
        attended = 3 * computed * numbers + 4 * tokens * config.n_heads + mask
    attention = norm + 2 * computed * numbers + attended + dropped + 4 * copied
    mlp = norm + 9 * computed * numbers + dropped + 8 * copied
    return attention, mlp


def _keeps_probabilities(config: GPTConfig, device_type: str) -> bool:
    """Whether attention takes the way that keeps its probabilities [B, n_heads, T, T], in float32 at any precision:
    a CPU's fused kernel knows no dropout, and MPS has none that knows backward."""
    return device_type == "mps" or (device_type == "cpu" and config.dropout > 0)


def _probabilities(config: GPTConfig, micro_batch_size: int) -> int:
    """Bytes of one tensor [B, n_heads, T, T] in float32."""
    return 4 * micro_batch_size * config.n_heads * config.context_length**2


def bytes_per_parameter(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state that an optimizer keeps for each parameter, once it has made a step; before, 0."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    size: int = sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
    count: int = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    return size / count


# ── what to do about it ───────────────────────────────────────────────────────────────────────────


def check_fits(config: GPTConfig, device: torch.device, strategy: str = "ddp", processes: int = 1) -> None:
    """Raises ParamsError when the parameters and their optimizer alone need more memory than there is.

    It is known before the model is made, which would fill the memory first.
    """
    needed = estimate(config, 1, "fp32", strategy=strategy, processes=processes).lasting
    memory = memory_of(device)
    if needed > memory:
        raise ParamsError(
            f"a model of {config.parameter_count:,} parameters needs {readable(needed)} with its gradients and "
            f"optimizer, and {device} has {readable(memory)}: lower model.n_layers or model.emb_dim"
        )


def out_of_memory(
    config: GPTConfig,
    micro_batch_size: int,
    precision: str,
    device: torch.device,
    optimizer_bytes: float = 8.0,
    strategy: str = "ddp",
    processes: int = 1,
) -> str:
    """What a person whose step ran out of memory can do, in one line; the arguments are `estimate`'s."""

    def needed(size: int) -> Memory:
        return estimate(config, size, precision, optimizer_bytes, device.type, strategy, processes)

    sharing = processes if device.type == "cpu" else 1
    room = memory_of(device) // sharing
    now = needed(micro_batch_size)
    parts = f"weights, gradients and optimizer {readable(now.lasting)}, activations {readable(now.activations)}"
    parts += f", gathered {readable(now.gathered)}" if now.gathered else ""
    parts += f", saving {readable(now.saving)}" if now.shared else ""
    each = f" for each of {processes} processes" if sharing > 1 else ""
    others = ", of which something else takes a part" if now.total <= room else ""
    told = (
        f"out of memory: a step needs about {readable(now.total)} on {device} ({parts}) and there are "
        f"{readable(room)}{each}{others}: lower "
    )
    smaller = [micro_batch_size >> shift for shift in range(1, micro_batch_size.bit_length())]
    fitting = next((size for size in smaller if needed(size).total <= (1 - _FREE) * room), None)
    if fitting is not None:
        told += f"train.micro_batch_size from {micro_batch_size} ({fitting} needs about "
        told += f"{readable(needed(fitting).total)}), or model.context_length or model.emb_dim"
    elif now.lasting <= room:
        told += "model.context_length or model.emb_dim"
    else:
        told += "model.n_layers or model.emb_dim"
    if fitting is None and device.type == "cuda" and strategy == "ddp":
        told += ", or divide it over several GPUs with runtime.strategy: fsdp"
    return told


_TABLE = {
    "GPT-2": (12, 12, 768),
    "GPT-2 XL": (48, 25, 1600),
    "7B class": (32, 32, 4096),
    "70B class": (80, 64, 8192),
}
"""Layers, heads and width of well-known sizes."""


def table() -> str:
    """The Markdown table of docs/scaling.md: bytes on each GPU with bf16, AdamW, and one window of 1,024 tokens."""
    ways = {"ddp": ("ddp", 1)} | {f"fsdp, {count} GPUs": ("fsdp", count) for count in (8, 64, 512)}
    rows = [["", "layers × width", "parameters", *ways], ["---"] * 2 + ["---:"] * (1 + len(ways))]
    for name, (n_layers, n_heads, emb_dim) in _TABLE.items():
        config = GPTConfig(
            vocab_size=50257, context_length=1024, n_layers=n_layers, n_heads=n_heads, emb_dim=emb_dim, dropout=0.0,
            qkv_bias=True, tied_head=True, init="gpt2", pad_vocab_to=64,
        )  # fmt: skip
        totals = [estimate(config, 1, "bf16", 8.0, "cuda", *way).total for way in ways.values()]
        count = f"{config.parameter_count / 1e6:,.0f} million"
        rows.append([name, f"{n_layers} × {emb_dim:,}", count, *(readable(total) for total in totals)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
