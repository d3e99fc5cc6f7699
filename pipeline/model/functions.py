"""Fused elementwise operations with hand-written backward passes, to cut memory traffic in models that are not
compiled, and fast dropout masks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

RMS_EPS = 1e-6


def code_path(device: torch.device) -> str:
    """The type of device whose code is run: "cpu", "cuda" or "mps". Tests replace this function, to run the code of
    a GPU on a CPU."""
    return device.type


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`. For bfloat16 weights on a CPU, as in generation, the weights are the first factor of the product:
    as the second one, they would be copied to another layout in each call (benchmarks/RESULTS.md).

    Args:
        x: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs].
    """
    if weight.dtype != torch.bfloat16 or code_path(weight.device) != "cpu":
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)
    # Contiguous: a transposed tensor would disable attention's fused kernel and slow down what follows.
    out = torch.mv(weight, rows[0])[None] if len(rows) == 1 else (weight @ rows.T).T.contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`linear` as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def rms_norm(x: torch.Tensor, eps: float = RMS_EPS) -> torch.Tensor:
    """`x` divided by its root mean square along the last dimension, without weights (Zhang & Sennrich, 2019)."""
    if code_path(x.device) == "cuda":
        # torch's kernel, or its parts if compiled, compute in float32; autocast would store float32 as well.
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, x.shape[-1:], eps=eps)
    return _RMSNorm.apply(x, eps)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """y = r·x with r = 1/√(mean x² + ε); dx = r·dy − x·r³·mean(x·dy)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).to(wide)
        root = (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        ctx.save_for_backward(x, root)
        return x * root  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        dtype = grad_output.dtype
        wide = torch.float32 if dtype == torch.float16 else dtype  # in float16, r³ overflows for a small x
        x, root, dy = (each.to(wide) for each in (*ctx.saved_tensors, grad_output))
        mean = (x * dy).mean(dim=-1, keepdim=True) * root**3
        return torch.addcmul(dy * root, x, mean, value=-1).to(dtype), None


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """relu(x)² (So et al., 2021)."""
    return _ReluSquared.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (positive,) = ctx.saved_tensors
        return (positive * grad_output).mul_(2)  # type: ignore[no-any-return]


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of GELU (Hendrycks & Gimpel, 2016)."""
    if code_path(x.device) != "cpu" or torch.compiler.is_exporting() or not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    # (1 + tanh u) / 2 = sigmoid(2u): compiled for a CPU, tanh takes more than twice as long.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    two_u = math.sqrt(8 / math.pi) * wide * (1 + 0.044715 * wide * wide)
    return (wide * torch.sigmoid(two_u)).to(x.dtype)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up (Shazeer, 2020)."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    """Recomputes SiLU in the backward pass, which costs less than storing it."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad_output * up, gate)
        return grad_gate, F.silu(gate).mul_(grad_output)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs of numbers, one from each half of the last dimension, clockwise (Su et al., 2021).

    Args:
        x: [..., D].
        cos, sin: The cosines and sines of the angles, [..., D / 2], broadcast to `x`.
    """
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]


class _Rotate(torch.autograd.Function):
    """The backward pass rotates the gradient by the negative angles."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_pairs(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad_output, cos, -sin), None, None


def _rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # it fuses the operations, but not those with `out`
        halves = [torch.addcmul(first * cos, second, sin), torch.addcmul(second * cos, first, -sin)]
        return torch.cat(halves, dim=-1)
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    one, other = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin)
    torch.mul(second, cos, out=other).addcmul_(first, sin, value=-1)
    return rotated


def keep_mask(shape: tuple[int, ...], dropout: float, device: torch.device) -> torch.Tensor:
    """Draws a dropout mask: True keeps a number, with probability 1 − dropout (rounded to 1/65536 on a CPU)."""
    if code_path(device) != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - dropout)
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)  # four 16-bit draws each
    threshold = min(round(dropout * (1 << 16)), (1 << 16) - 1) - (1 << 15)
    return (draws.view(torch.int16)[:count] >= threshold).view(shape)


def dropped(x: torch.Tensor, keep_mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """Dropout with a given mask: `x` with the numbers outside `keep_mask` set to 0 and the others divided by
    1 − dropout. `x` itself if the mask is None."""
    return x if keep_mask is None else x * (keep_mask.to(x.dtype) * (1 / (1 - dropout)))
