"""Functions of the modern family with gradients written by hand: the same numbers in half the passes over memory,
which is what a small model's step consists of where blocks are not compiled."""

from __future__ import annotations

from typing import Any

import torch

RMS_EPS = 1e-6


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """`x` divided by the root of its mean square over the last dimension, without weights (Zhang & Sennrich, 2019)."""
    return _RMSNorm.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """y = r·x with r = 1/√(mean x² + ε); dx = r·dy − x·r³·mean(x·dy)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).to(wide)
        root = (norm.square() / x.shape[-1] + RMS_EPS).rsqrt().to(x.dtype)
        ctx.save_for_backward(x, root)
        return x * root

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x, root = ctx.saved_tensors
        shared = (x * upstream).mean(dim=-1, keepdim=True) * root**3
        return torch.addcmul(upstream * root, x, shared, value=-1)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """The square of `x` where it is positive, else 0 (So et al., 2021)."""
    return _ReluSquared.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (positive,) = ctx.saved_tensors
        return (positive * upstream).mul_(2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns pairs of numbers of `x`, one from each half of its last dimension, clockwise by angles (Su et al., 2021).

    Args:
        x: [..., D].
        cos, sin: Of the angles [..., D / 2], broadcast to `x`.
    """
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]


class _Rotate(torch.autograd.Function):
    """The gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turned(upstream, cos, -sin), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([torch.addcmul(first * cos, second, sin), torch.addcmul(second * cos, first, -sin)], dim=-1)
