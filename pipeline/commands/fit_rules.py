"""The rules of `pipeline fit`: settings follow from the size of the text and the computation that fits the time.

Each rule is a formula or a small table. They join the values of the presets, which were tuned from ten seconds to
five minutes of training; short runs on English text of one to two megabytes chose vocabulary and context.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any

_SHAPES = (
    (1, 64, 2), (2, 64, 2), (2, 96, 3), (2, 128, 2), (3, 128, 2), (4, 128, 2), (4, 160, 5), (4, 192, 3),
    (5, 256, 4), (6, 320, 5), (6, 384, 6), (8, 512, 8), (10, 640, 10), (12, 768, 12), (16, 1024, 16),
    (20, 1280, 20), (24, 1536, 24),
)  # fmt: skip
"""Layers, width and heads, by size: the width is some 40 to 64 times the number of layers."""
_ANCHOR_FLOPS, _ANCHOR_BLOCKS, _ANCHOR_BATCH = 5e13, 1.77e6, 2048
"""The default run: its computation, the parameters of its blocks, and the tokens of a step."""
_MOST_EPOCHS = 15
"""Reading a text 4 times is nearly as good as reading new text; beyond 16 times little is gained (Muennighoff et
al., 2023, "Scaling Data-Constrained Language Models")."""
_BLOCKS_PER_TOKEN = 3.5
"""The largest number of block parameters per token of the text; a larger model overfits."""
_HELD_OUT_TOKENS = 100_000
"""Tokens of val, and of test, that are enough; more only make evaluations slower."""


@dataclass(frozen=True)
class Setting:
    """What the rules choose.

    Attributes:
        n_layers, emb_dim, n_heads, context_length, dropout: Of the model.
        batch_size: Windows in a step.
        micro_batch_size: Windows computed at once.
        steps: How long to train.
        warmup_steps: Steps in which the rate climbs.
        lr, adamw_lr, momentum: Of the optimizer muon.
        epochs: How often the text is read.
        limited: Whether the text, and not the time, ends the run.
    """

    n_layers: int
    emb_dim: int
    n_heads: int
    context_length: int
    dropout: float
    batch_size: int
    micro_batch_size: int
    steps: int
    warmup_steps: int
    lr: float
    adamw_lr: float
    momentum: float
    epochs: float
    limited: bool

    def values(self) -> dict[str, Any]:
        """The settings as keys of params.yaml."""
        return {
            "model.name": "modern",
            "model.context_length": self.context_length,
            "model.n_layers": self.n_layers,
            "model.n_heads": self.n_heads,
            "model.emb_dim": self.emb_dim,
            "model.dropout": self.dropout,
            "train.budget.unit": "steps",
            "train.budget.amount": self.steps,
            "train.extension.amount": 0,
            "train.batch_size": self.batch_size,
            "train.micro_batch_size": self.micro_batch_size,
            "train.schedule.name": "linear",
            "train.schedule.warmup_steps": self.warmup_steps,
            "train.schedule.linear.final": 0.0,
            "train.optimizer.name": "muon",
            "train.optimizer.muon.lr": self.lr,
            "train.optimizer.muon.momentum": self.momentum,
            "train.optimizer.muon.weight_decay": 0.1,
            "train.optimizer.muon.adamw_lr": self.adamw_lr,
            "train.evaluation.every": max(1, -(-self.steps // 8)),
            "train.evaluation.windows": max(16, 8192 // self.context_length),
        }


def vocabulary(size: float, flops: float) -> int:
    """The size of the BPE vocabulary for a text of `size` bytes; 0 for characters.

    With a larger vocabulary the text has fewer tokens, so the same computation reads more of it. Two things limit
    the vocabulary: each token must occur often enough to be learned, and the output head must not cost much more
    than the blocks.
    """
    if size < 50e3:
        return 0
    steps = (50e3, 200e3, 500e3, 1e6, 10e6, 100e6, 1e9)
    most = (512, 1024, 2048, 4096, 8192, 16384, 32768)[bisect_right(steps, size) - 1]
    layers, width, _ = _SHAPES[_shape(_blocks(flops))]
    while most > 512 and most * width > 1.5 * 12 * layers * width * width:
        most //= 2
    return most


def split_share(tokens: float) -> float:
    """The share of val, and of test: 5%, more of a small text and less of a large one, where less is enough."""
    share = 0.1 if tokens < 100e3 else min(0.05, _HELD_OUT_TOKENS / tokens)
    return float(f"{share:.1g}")


def setting(tokens: float, vocab_size: int, flops: float) -> Setting:
    """The setting for a training text of `tokens` tokens and a number of floating-point operations, C.

    The blocks get N ∝ C^0.4 parameters, a step ∝ C^0.1 tokens (C^0.25 for large runs), and the number of steps
    follows. These exponents join the presets, from 5·10¹¹ to 5·10¹³ operations.
    """
    size = min(_blocks(flops), _BLOCKS_PER_TOKEN * tokens)
    layers, width, heads = _SHAPES[_shape(size)]
    dense, most = 6 * (12 * layers * width * width + vocab_size * width), _MOST_EPOCHS * tokens
    useful = min(flops, dense * most)
    context = (64, 128, 256, 512, 1024)[bisect_right([1.5e13, 4e13, 1e15, 1e17], useful)]
    while context > 16 and context > tokens / 50:  # several windows of even a tiny text
        context //= 2
    affordable = flops / (dense + 12 * layers * context * width)
    trained = min(affordable, most)
    batch = _ANCHOR_BATCH * (useful / _ANCHOR_FLOPS) ** (0.1 if useful < _ANCHOR_FLOPS else 0.25)
    if most < affordable:  # enough steps for a small text
        batch = min(batch, max(256.0, trained / 400))
    windows = max(1, round(batch / context))
    steps = max(20, int(trained / (windows * context)))
    epochs = steps * windows * context / tokens
    return _with_steps(
        Setting(
            n_layers=layers, emb_dim=width, n_heads=heads, context_length=context, dropout=_dropout(epochs),
            batch_size=windows, micro_batch_size=min(windows, max(1, 16384 // context)), steps=steps,
            warmup_steps=0, lr=0.0, adamw_lr=0.0, momentum=0.0, epochs=epochs, limited=most < affordable,
        ),
        steps,
        tokens,
    )  # fmt: skip


def with_steps(chosen: Setting, steps: int, tokens: float) -> Setting:
    """The setting with another number of steps, after the duration of a step was measured.

    Shorter runs need higher learning rates, ∝ 1/√steps, and less momentum. The AdamW part gets half of Muon's rate,
    and less in wide models.
    """
    most = max(20, int(_MOST_EPOCHS * tokens / (chosen.batch_size * chosen.context_length)))
    return _with_steps(chosen, min(steps, most), tokens, limited=steps >= most)


def _with_steps(chosen: Setting, steps: int, tokens: float, limited: bool | None = None) -> Setting:
    epochs = steps * chosen.batch_size * chosen.context_length / tokens
    lr = min(0.08, max(0.01, 0.03 * math.sqrt(1000 / steps)))
    return replace(
        chosen,
        steps=steps,
        epochs=epochs,
        dropout=_dropout(epochs),
        warmup_steps=max(2, min(steps // 50, 200)),
        lr=_short(lr),
        adamw_lr=_short(min(0.03, lr / 2) * min(1.0, math.sqrt(192 / chosen.emb_dim))),
        momentum=0.85 if steps < 200 else 0.9 if steps < 700 else 0.95,
        limited=chosen.limited if limited is None else limited,
    )


def _dropout(epochs: float) -> float:
    """No dropout for a text that is read once; more, the more often it is read."""
    return (0.0, 0.1, 0.2, 0.3)[bisect_right([1.5, 4, 10], epochs)]


def _blocks(flops: float) -> float:
    return float(_ANCHOR_BLOCKS * (flops / _ANCHOR_FLOPS) ** 0.4)


def _shape(blocks: float) -> int:
    """The index of the shape whose blocks have nearest to so many parameters."""
    return min(
        range(len(_SHAPES)),
        key=lambda index: abs(math.log(12 * _SHAPES[index][0] * _SHAPES[index][1] ** 2 / max(1.0, blocks))),
    )


def _short(value: float) -> float:
    """Two digits are enough."""
    return float(f"{value:.2g}")
