"""The shipped losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY

from pipeline.plugin.components import IGNORED, Loss, ModelOutput
from pipeline.plugin.registry import Registry

VOCAB = 7


def make(name: str = "cross_entropy", **options: float) -> Loss:
    registry = Registry.load(REPOSITORY / "plugins", ["losses"])
    loss: Loss = registry.build("losses", name, {name: options}, "train.loss")
    return loss


def output() -> ModelOutput:
    """Three padding rows lie behind the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    head = torch.randn(VOCAB + 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    return ModelOutput(hidden, head, VOCAB)


TARGETS = torch.tensor([[0, IGNORED, 6], [IGNORED, 3, IGNORED]])


def test_cross_entropy_is_the_negative_log_probability_of_each_target() -> None:
    out, targets = output(), TARGETS.clamp(min=0)
    expected = -out.logits.softmax(dim=-1).gather(-1, targets[..., None])[..., 0].log()
    torch.testing.assert_close(make()(out, targets), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_masked_targets_have_0_nats_and_no_gradient(label_smoothing: float) -> None:
    out = output()
    nats = make(label_smoothing=label_smoothing)(out, TARGETS)
    masked = TARGETS == IGNORED
    assert nats.shape == TARGETS.shape
    assert (nats[masked] == 0).all()
    assert (nats[~masked] > 0).all()
    nats.sum().backward()
    assert out.hidden.grad is not None
    assert (out.hidden.grad[masked] == 0).all()
    assert out.hidden.grad[~masked].count_nonzero() == out.hidden.grad[~masked].numel()


def test_the_padding_of_the_vocabulary_gets_no_gradient() -> None:
    out = output()
    make(label_smoothing=0.1)(out, TARGETS).sum().backward()
    assert out.head_weight.grad is not None
    assert (out.head_weight.grad[VOCAB:] == 0).all()


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution() -> None:
    out, targets = output(), TARGETS.clamp(min=0)
    log_p = out.logits.log_softmax(dim=-1)
    truth = F.one_hot(targets, VOCAB).double() * 0.9 + 0.1 / VOCAB
    expected = -(truth * log_p).sum(dim=-1)
    torch.testing.assert_close(make(label_smoothing=0.1)(out, targets), expected, rtol=1e-12, atol=1e-12)


def test_z_loss_adds_the_squared_log_normaliser() -> None:
    out, targets = output(), TARGETS.clamp(min=0)
    expected = make()(out, targets) + 0.5 * out.logits.logsumexp(-1) ** 2
    torch.testing.assert_close(make(z_loss=0.5)(out, targets), expected)


def test_z_loss_costs_nothing_at_masked_targets() -> None:
    assert (make(z_loss=0.5)(output(), TARGETS)[TARGETS == IGNORED] == 0).all()


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    torch.testing.assert_close(make("focal", gamma=0.0)(output(), TARGETS), make()(output(), TARGETS))


def test_focal_weighs_each_target_by_what_is_missing_to_certainty() -> None:
    out, targets = output(), TARGETS.clamp(min=0)
    p = out.logits.softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(make("focal", gamma=2.0)(out, targets), -((1 - p) ** 2) * p.log())


def test_focal_is_finite_where_the_model_is_certain() -> None:
    hidden = torch.tensor([[[200.0]]], requires_grad=True)
    nats = make("focal", gamma=0.5)(ModelOutput(hidden, torch.tensor([[1.0], [-1.0]]), 2), torch.tensor([[0]]))
    nats.sum().backward()
    assert nats.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
