"""What the shipped eval callbacks do: who stops when, and who samples when."""

from __future__ import annotations

import csv
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, Project
from small_config import small_config

from pipeline.authoring.testing import check_eval_callback, event, step_event
from pipeline.model.architecture import LanguageModel
from pipeline.plugin import EvalCallback, StopTraining
from pipeline.plugin.registry import Registry


def callback(name: str, **options: Any) -> EvalCallback:
    registry = Registry.load(REPOSITORY / "plugins", ["eval_callbacks"])
    built: EvalCallback = registry.build("eval_callbacks", name, {name: options}, "")
    return built


class Training:
    """A run's evaluations as a callback sees them; `saved` and `restored` are a kill and a resume."""

    def __init__(self, total_steps: int = 40, model: torch.nn.Module | None = None) -> None:
        self.total_steps, self.model = total_steps, model or torch.nn.Linear(2, 2)
        self.history: list[dict[str, float]] = []
        self.memory: dict[str, Any] = {}
        self.shown: list[str] = []

    def evaluate(self, callback: EvalCallback, step: int, **metrics: float) -> dict[str, float]:
        row = {"step": step, "val.loss": 4.0 - step / 100, **metrics}
        numbers = callback.on_evaluation(
            event(
                step=step,
                total_steps=self.total_steps,
                metrics=dict(row),
                history=tuple(self.history),
                generate=lambda prompt, max_new_tokens, temperature: prompt,
                show=lambda text: self.shown.append(f"{step} {text}"),
                model=self.model,
                memory=self.memory,
            )
        )
        self.history.append({**row, **numbers})
        return numbers

    def saved(self) -> str:
        return json.dumps([self.history, self.memory])

    def restored(self, saved: str) -> None:
        self.history, self.memory = json.loads(saved)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("weight_norms", {}),
        ("target_loss", {}),
        ("target_loss", {"value": 0.5}),
        ("spike_guard", {}),
        ("spike_guard", {"rise": 0.1, "patience": 1}),
        ("sample_text", {"each": "epoch"}),
        ("temperature_scaling", {}),
    ],
)
def test_each_keeps_the_contract(name: str, options: dict[str, Any]) -> None:
    check_eval_callback(callback(name, **options))


# ── target_loss ───────────────────────────────────────────────────────────────────────────────────


def test_a_run_ends_at_the_first_evaluation_that_reaches_the_target(trained_project: Project) -> None:
    metrics = trained_project.root / "metrics"
    rows = csv.DictReader((metrics / "history.tsv").read_text().splitlines(), delimiter="\t")
    start, middle, end = (float(row["val.loss"]) for row in rows)
    assert start > middle > end

    def steps(value: float) -> int:
        use = ("--set", "train.eval_callbacks.use=[temperature_scaling,target_loss]")
        result = trained_project.succeed("train", *use, "--set", f"train.eval_callbacks.target_loss.value={value}")
        written: int = json.loads((metrics / "train.json").read_text())["steps"]
        assert ("the target" in result.out) == (value >= end)
        return written

    assert steps(middle) == 3  # at the value itself
    assert steps((middle + end) / 2) == 6
    assert steps(end / 2) == 6  # never reached


# ── weight_norms ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
def test_weight_norms_are_those_of_the_parts(tied: bool) -> None:
    torch.manual_seed(0)
    model = small_config(vocab_size=300, context_length=8, emb_dim=16, tied_head=tied, init="pytorch").make()
    parts = {
        "embedding": [model.token_embedding, model.position_embedding],
        "attention": [layer for block in model.blocks for layer in (block.attention.qkv, block.attention.out)],
        "mlp": [layer for block in model.blocks for layer in (block.mlp.up, block.mlp.down)],
        "norm": [norm for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)] + [model.norm],
        "head": [] if model.head is None else [model.head],
    }
    numbers = Training(model=model).evaluate(callback("weight_norms"), 0)
    expected = {}
    for part, modules in parts.items():
        if modules:
            weights = torch.cat([module.weight.detach().double().flatten() for module in modules])
            expected[f"weights.{part}"] = math.sqrt(weights.square().mean())
    assert numbers == pytest.approx(expected, rel=1e-5)
    assert ("weights.head" in numbers) != tied
    assert numbers == Training(model=model).evaluate(callback("weight_norms"), 0)


# ── sample_text ───────────────────────────────────────────────────────────────────────────────────


def test_a_sample_keeps_its_line_breaks() -> None:
    training = Training()
    training.evaluate(callback("sample_text", prompt="a\n\n  b"), 0)
    assert training.shown == ["0 a\n\n  b"]


def sampled(epochs: list[float], **options: Any) -> list[int]:
    """The evaluations, of which `epochs` tells how far each is, that show a sample."""
    training = Training(total_steps=len(epochs) - 1)
    for step, epoch in enumerate(epochs):
        training.evaluate(callback("sample_text", **options), step, epoch=epoch)
    return [int(text.split()[0]) for text in training.shown]


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [
        ([0, 0.5, 1, 1.5, 2], [0, 2, 4]),  # the textbook's: after each epoch
        ([0, 0.4, 0.8, 1.2, 1.6, 2.4, 2.8], [0, 3, 5, 6]),  # an epoch ends between two evaluations
        ([0, 2.5, 2.6], [0, 1, 2]),  # two epochs end: one sample
        ([0, 0.1, 0.2], [0, 2]),  # none ends
    ],
)
def test_a_sample_each_epoch(epochs: list[float], shown: list[int]) -> None:
    assert sampled(epochs, each="epoch") == shown
    assert sampled(epochs) == list(range(len(epochs)))


# ── spike_guard ───────────────────────────────────────────────────────────────────────────────────


def evaluated(losses: list[float], **options: Any) -> int:
    """After how many evaluations a spike guard ended the run; all of them where it did not."""
    training = Training()
    for number, loss in enumerate(losses):
        try:
            training.evaluate(callback("spike_guard", **options), number, **{"val.loss": loss})
        except StopTraining:
            return number + 1
        training.restored(training.saved())
    return len(losses)


def test_a_spike_that_stays_ends_the_run() -> None:
    assert evaluated([4.0, 3.0, 4.1, 4.2, 4.3]) == 4
    assert evaluated([4.0, 3.0, 4.1, 4.2, 4.3], patience=1) == 3
    assert evaluated([4.0, 3.0, 4.1, 4.2, 4.3], rise=1.15) == 5


def test_a_spike_that_comes_back_and_a_slow_rise_do_not() -> None:
    assert evaluated([4.0, 3.0, 5.0, 3.1, 5.0, 3.2, 2.0]) == 7
    assert evaluated([3.0, 3.4, 3.8, 3.9, 4.0]) == 5
    assert evaluated([8.0, 9.0, 9.0]) == 3  # one nat above is not yet more than one


# ── temperature_scaling ───────────────────────────────────────────────────────────────────────────


def overconfident(kind: str, tied: bool) -> tuple[LanguageModel, torch.Tensor]:
    """A model, and ids [64, 9] drawn from it at temperature 2."""
    torch.manual_seed(0)
    model = small_config(kind, vocab_size=30, context_length=8, tied_head=tied).make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        ids = torch.randint(30, (64, 1))
        for _ in range(8):
            logits = model(ids).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial((logits / 2).softmax(dim=-1), 1)], dim=1)
    return model, ids


@pytest.mark.parametrize(("kind", "tied"), [("modern", False), ("gpt2", False), ("gpt2", True), ("llama", True)])
@torch.no_grad()
def test_temperature_scaling_finds_the_temperature_of_val(kind: str, tied: bool) -> None:
    model, ids = overconfident(kind, tied)
    given = step_event(model=model, batches=lambda side: iter({"val": [ids[:40], ids[40:]]}[side]))
    before = model(ids[:, :-1]).logits
    weights = callback("temperature_scaling").eval_weights(given)
    assert weights is not None
    for name, tensor in weights.items():
        model.get_parameter(name).copy_(tensor)
    after = model(ids[:, :-1]).logits
    factor = float(after.norm() / before.norm())
    torch.testing.assert_close(after, before * factor)
    assert factor == pytest.approx(0.5, abs=0.05)

    def loss(times: float) -> float:
        return float(F.cross_entropy((before * times).flatten(0, 1), ids[:, 1:].flatten()))

    assert loss(factor) < min(loss(0.98 * factor), loss(1.02 * factor))


@torch.no_grad()
def test_temperature_scaling_leaves_a_model_alone_whose_logits_are_equal() -> None:
    model = small_config("modern", vocab_size=30, context_length=8).make().eval()  # its head is zero
    given = step_event(model=model, batches=lambda side: iter([torch.zeros(2, 9, dtype=torch.long)]))
    weights = callback("temperature_scaling").eval_weights(given)
    assert weights is not None
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in weights.items())


def test_temperature_scaling_needs_a_head_or_a_norm() -> None:
    with pytest.raises(ValueError, match=r"head\.weight"):
        callback("temperature_scaling").eval_weights(step_event(model=torch.nn.Linear(2, 2)))
