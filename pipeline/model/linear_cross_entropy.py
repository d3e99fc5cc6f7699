"""Fused linear cross-entropy: computes the loss from hidden states and head in chunks of rows, so that the logits
of a large vocabulary are never in memory as a whole.

The forward pass computes the gradients, too, from the same logits (as in Liger Kernel, Hsu et al., 2024). They are
those of the sum of all tokens' losses; for other upstream gradients than a multiple of it, they are recomputed.

`torch.nn.functional.linear_cross_entropy` has neither label smoothing in its chunked form nor z-loss, computes the
logits twice for the losses of single tokens, and rounds the head's gradient to the hidden states' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from pipeline.model import functions
from pipeline.plugin.components import IGNORED, ModelOutput

_LOGITS_AT_ONCE = 1 << 25
_COMPILED_BYTES_AT_ONCE = 1 << 28
"""More, as compiled code has no float32 copies of the logits; each chunk adds to the whole gradient of the head."""
_LOGITS_AT_ONCE_ON_CUDA = 1 << 28
_LEAST_ROWS_ON_CUDA = 1024


class LossTerms(NamedTuple):
    """The constants of a loss.

    Attributes:
        vocab_size: V; the head's rows after it are padding.
        label_smoothing: The share of probability that is distributed evenly over the vocabulary.
        z_loss: The weight of the squared log-normaliser.
    """

    vocab_size: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0


Softmax = Callable[[torch.Tensor, torch.Tensor, LossTerms], tuple[torch.Tensor, torch.Tensor]]


def softmax_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, terms: LossTerms
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each row in nats [N] and its gradient with respect to the logits [N, padded V], in their dtype.

    Args:
        logits: [N, padded V]; the padding is overwritten.
        targets: Ids [N]; for IGNORED, loss and gradient are 0.
        terms: The loss's constants.
    """
    size, smoothing, z_loss = terms
    if logits.shape[1] > size:
        logits[:, size:] = -torch.inf
    counted = targets != IGNORED
    columns = targets.masked_fill(~counted, 0)[:, None]
    wide = torch.promote_types(logits.dtype, torch.float32)
    # One exponential per logit, and no log-probabilities in memory: compiled, a row stays in the cache.
    highest = logits.amax(dim=1, keepdim=True).to(wide)
    exponentials = (logits - highest).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    target_log_p = (logits.gather(1, columns).to(wide) - highest) - total.log()
    nats = -(1 - smoothing) * target_log_p
    if smoothing:
        mean = logits[:, :size].mean(dim=1, keepdim=True, dtype=wide)
        nats = nats - smoothing * ((mean - highest) - total.log())
    scale = p_scale = counted[:, None].to(wide)
    if z_loss:
        normaliser = highest + total.log()
        nats = nats + z_loss * normaliser.square()
        p_scale = scale * (1 + 2 * z_loss * normaliser)
    p_target = target_log_p.exp() * p_scale
    gradient = exponentials.mul_(p_scale / total)
    if smoothing:
        gradient[:, :size] -= scale * (smoothing / size)
    # Subtract in float32, then round: in bfloat16, p − 1 would be 0 for p near 1.
    at_target = p_target - scale * (1 - smoothing + smoothing / size)
    gradient = gradient.to(logits.dtype)
    rows = torch.arange(len(targets), device=targets.device)  # scatter_ would copy a bfloat16 gradient to float32
    gradient[rows, columns[:, 0]] = at_target[:, 0].to(logits.dtype)
    return (nats * scale)[:, 0], gradient


@dataclass(frozen=True)
class FusedOutput(ModelOutput):
    """A model's output whose cross-entropy is computed in chunks.

    Attributes:
        softmax: `softmax_and_gradient`, or its compiled version.
    """

    softmax: Softmax = softmax_and_gradient

    def cross_entropy(
        self, targets: torch.Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> torch.Tensor:
        hidden = self.hidden.flatten(0, 1)
        if torch.is_autocast_enabled(hidden.device.type):  # on a GPU, LayerNorm's output is float32
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        nats: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden,
            self.head_weight,
            targets.flatten(),
            LossTerms(self.vocab_size, label_smoothing, z_loss),
            self.softmax,
            torch.is_grad_enabled(),
        )
        return nats.view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    """hidden [N, D], head [padded V, D], targets [N] → nats [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        terms: LossTerms,
        softmax: Softmax,
        training: bool,
    ) -> torch.Tensor:
        needed = training and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        # All dtypes are chosen here; autocast would cast the float32 sums of the head's gradient.
        with torch.autocast(hidden.device.type, enabled=False):
            nats, *ctx.gradients = _compute(hidden, head, targets, terms, softmax, needed)
        ctx.save_for_backward(hidden, head, targets)
        ctx.terms, ctx.softmax = terms, softmax
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, head, targets = ctx.saved_tensors
        if ctx.gradients and grad_output.stride() == (0,):  # an expanded scalar: the gradient of a sum
            grad_hidden, grad_head = (_scaled(each, grad_output[0]) for each in ctx.gradients)
        elif hidden.dtype == torch.float16:  # products with weights up to 1: those of a gradient scaler overflow
            scale = grad_output.abs().amax().clamp_min(torch.finfo(grad_output.dtype).tiny)
            found = _compute(hidden, head, targets, ctx.terms, ctx.softmax, True, grad_output / scale)
            grad_hidden, grad_head = (_scaled(each, scale) for each in found[1:])
        else:
            _, grad_hidden, grad_head = _compute(hidden, head, targets, ctx.terms, ctx.softmax, True, grad_output)
        ctx.gradients = []  # scaled in place, so they must not be used again
        return grad_hidden, grad_head, None, None, None, None


def _scaled(gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The gradient times a 0-dim tensor; in place, except in float16, which cannot represent every scale."""
    if gradient.dtype == torch.float16:
        return (gradient.float() * scale).to(gradient.dtype)
    return gradient.mul_(scale.to(gradient.dtype))


def _compute(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    terms: LossTerms,
    softmax: Softmax,
    with_gradients: bool,
    grad_output: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Nats [N] and, `with_gradients`, those of their sum (weighted by `grad_output`) for hidden states and head."""
    path, eager = functions.code_path(hidden.device), softmax is softmax_and_gradient
    # A GPU would wait for the number of rows with a target, and compiled code be compiled for each number.
    if path == "cpu" and eager:
        counted = (targets != IGNORED).nonzero()[:, 0]
        if len(counted) < len(targets):
            upstream = None if grad_output is None else grad_output[counted]
            found = _compute(hidden[counted], head, targets[counted], terms, softmax, with_gradients, upstream)
            return *(_spread(each, counted, len(targets)) for each in found[:2]), *found[2:]
    weight = head.to(hidden.dtype)
    nats: list[torch.Tensor] = []
    grad_hidden, grad_head = torch.empty_like(hidden), None
    at_once = _LOGITS_AT_ONCE if eager else _COMPILED_BYTES_AT_ONCE // hidden.element_size()
    for rows in chunks(len(targets), len(head), path, at_once):
        row_nats, gradient = softmax(hidden[rows] @ weight.T, targets[rows], terms)  # softmax overwrites the logits
        nats.append(row_nats)
        if with_gradients:
            if grad_output is not None:
                gradient *= grad_output[rows, None].to(gradient.dtype)
            torch.mm(gradient, weight, out=grad_hidden[rows])
            wide = torch.promote_types(head.dtype, torch.float32)
            grad_head = _add_product(grad_head, gradient.T, hidden[rows], wide, path)
        del gradient  # free it before the next logits are allocated
    joined = torch.cat(nats) if nats else hidden.new_zeros(0)
    if not with_gradients:
        return (joined,)
    return joined, grad_hidden, torch.zeros_like(head) if grad_head is None else grad_head.to(head.dtype)


def _add_product(
    total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype, path: str
) -> torch.Tensor:
    """left·right, added to `total` in place, in a dtype at least as wide as theirs. On CUDA, the product itself
    adds in that dtype: its result is neither rounded to the factors' dtype nor written to memory first."""
    if path != "cuda":
        product = left @ right
        return product.to(dtype) if total is None else total.add_(product)
    wide: Any = {} if left.dtype == dtype else {"out_dtype": dtype}
    if total is None:
        return torch.mm(left, right, **wide)
    return torch.addmm(total, left, right, **wide, out=total)


def _spread(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The values [rows, …] at these rows of `count`; 0 at the others."""
    return values.new_zeros((count, *values.shape[1:])).index_copy_(0, rows, values)


def chunks(rows: int, vocab_size: int, path: str, at_once: int) -> Iterator[slice]:
    """Slices of rows with at most `at_once` logits on a CPU, of about equal size.

    On a GPU, all but the last one have the same size, so that at most two shapes are compiled: a power of two, to
    fill the tiles of matrix products, and large, since each chunk reads and writes the head's gradient.
    """
    if path == "cuda":
        most = max(_LEAST_ROWS_ON_CUDA, _LOGITS_AT_ONCE_ON_CUDA // vocab_size)
        size = 1 << (most.bit_length() - 1)
        yield from (slice(start, min(start + size, rows)) for start in range(0, rows, size))
        return
    most = max(1, at_once // vocab_size)
    count = -(-rows // most)
    for number in range(count):
        yield slice(rows * number // count, rows * (number + 1) // count)
