"""The contract of a loss."""

from __future__ import annotations

import torch

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.plugin.calls import supported_arguments
from pipeline.plugin.components import IGNORED, Loss, ModelOutput


@keeps_no_state
def check_loss(component: type[Loss] | Loss) -> None:
    """Checks a loss: finite nats [B, T]; 0 and without gradient at masked targets; gradients scale with the
    loss."""
    loss = instance_of(component)
    if supported_arguments(loss, "__call__", teacher=None):
        assert isinstance(getattr(loss, "teacher", None), str), (
            "__call__ takes a teacher, so it needs an option that names the teacher's folder: "
            'teacher: str = "data/weights/teacher"'
        )
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=generator)
    head = torch.randn(16, 8, generator=generator)  # 11 tokens and 5 rows of padding
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[0, :2] = targets[2, 4] = IGNORED
    inputs, teacher_hidden = (
        torch.randint(11, (3, 5), generator=generator),
        torch.randn(3, 5, 8, generator=generator),
    )

    def teacher(ids: torch.Tensor) -> ModelOutput:
        return ModelOutput(teacher_hidden, head, 11)

    def run(
        weights: torch.Tensor, wanted: torch.Tensor = targets
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden_leaf, head_leaf = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        optional = {"inputs": inputs.clone(), "step": 3, "total_steps": 10, "teacher": teacher}
        nats = loss(
            ModelOutput(hidden_leaf, head_leaf, 11), wanted, **supported_arguments(loss, "__call__", **optional)
        )
        assert nats.shape == wanted.shape, f"one number per target, {tuple(wanted.shape)}, not {tuple(nats.shape)}"
        assert nats.isfinite().all(), "the loss must be finite"
        (nats * weights).sum().backward()  # type: ignore[no-untyped-call]
        assert hidden_leaf.grad is not None, "the loss must have a gradient for output.hidden"
        assert head_leaf.grad is not None, "the loss must have a gradient for output.head_weight"
        return nats.detach(), hidden_leaf.grad, head_leaf.grad

    before = targets.clone()
    ones = torch.ones(3, 5)
    nats, hidden_gradient, head_gradient = run(ones)
    assert torch.equal(targets, before), "the targets must not be changed"
    ignored = targets == IGNORED
    assert (nats[ignored] == 0).all(), "the loss of an ignored target (-100) must be 0"
    assert (hidden_gradient[ignored] == 0).all(), "an ignored target (-100) must have no gradient"
    assert hidden_gradient[~ignored].abs().sum() > 0, "the other targets must have a gradient"
    assert (head_gradient[11:] == 0).all(), "padding rows of the head must have no gradient: use output.logits"
    assert torch.equal(run(ones)[0], nats), "the same input must give the same loss"

    halves = run(ones / 2)[1]
    assert torch.allclose(2 * halves, hidden_gradient, rtol=1e-5, atol=1e-7), "gradients must scale with the loss"
    weights = torch.rand(3, 5, generator=generator)
    parts = run(weights)[1] + run(ones - weights)[1]
    assert torch.allclose(parts, hidden_gradient, rtol=1e-4, atol=1e-6), (
        "the gradients of targets must add up: one target must not affect another"
    )
    nothing, gradient, _ = run(ones, torch.full_like(targets, IGNORED))
    assert (nothing == 0).all(), "the loss of a batch of ignored targets must be 0, not NaN"
    assert (gradient == 0).all(), "the gradient of a batch of ignored targets must be 0, not NaN"
