"""The training loop: gradients, clipping, what stops a run, and that evaluating changes no bit."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from small_run import (
    ARCHITECTURE,
    CONTEXT,
    REGISTRY,
    TOKENIZER,
    Disturbs,
    assert_same_bits,
    changed,
    make_model,
    make_run,
    masked_windows,
    small_params,
    weights,
)

from pipeline.core.errors import ParamsError, PipelineError, PluginError
from pipeline.data.batches import TrainingWindows
from pipeline.data.tokenizer import END_OF_TEXT
from pipeline.model.architecture import LanguageModel
from pipeline.plugin import BatchSampler, TokenIndex
from pipeline.plugin.components import IGNORED, EvalCallback, EvaluationEvent, Loss, ModelOutput, StopTraining
from pipeline.train.components import Components
from pipeline.train.evaluation import evaluate
from pipeline.train.loop import train, train_step
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


def gradient(run: TrainingRun) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])


# ── accumulation ──────────────────────────────────────────────────────────────────────────────────


def ragged_gradient(folder: Path, micro_batch_size: int, dtype: torch.dtype, **changes: Any) -> torch.Tensor:
    run = make_run(
        folder,
        model=make_model().to(dtype),
        windows=masked_windows(),
        batch_size=8,
        total_windows=8,
        micro_batch_size=micro_batch_size,
        **changes,
    )
    state = TrainState()
    _, tokens = train_step(run, state)
    _, targets = run.data.windows.batch(run.offsets(0))
    assert tokens == state.objective_tokens == (targets != IGNORED).sum()
    assert 0 < tokens < targets.size
    return gradient(run)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
@pytest.mark.parametrize("grad_clip", [0.0, 1e-3])
def test_accumulated_gradients_of_ragged_batches_are_those_of_the_whole_batch(
    tmp_path: Path, micro_batch_size: int, grad_clip: float
) -> None:
    whole = ragged_gradient(tmp_path, 8, torch.float64, grad_clip=grad_clip)
    accumulated = ragged_gradient(tmp_path, micro_batch_size, torch.float64, grad_clip=grad_clip)
    torch.testing.assert_close(accumulated, whole, rtol=1e-6, atol=1e-12)


def test_accumulated_gradients_in_float32_are_near_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole, accumulated = (ragged_gradient(tmp_path, size, torch.float32) for size in (8, 1))
    assert (accumulated - whole).norm() <= 1e-5 * whole.norm()


def plain_gradient(model: LanguageModel, data: TrainingWindows, offsets: list[int]) -> torch.Tensor:
    """The gradient of the mean loss over all of a batch's targets, the plain way."""
    x, y = (torch.from_numpy(array) for array in data.batch(offsets))
    model.zero_grad()
    F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_the_gradient_is_that_of_the_mean_over_the_batchs_targets(tmp_path: Path) -> None:
    data = masked_windows()
    expected = plain_gradient(make_model().double(), data, data.offsets(0, 8))
    torch.testing.assert_close(ragged_gradient(tmp_path, 2, torch.float64), expected, rtol=1e-6, atol=1e-12)


def test_the_last_incomplete_batch_has_its_own_divisor(tmp_path: Path) -> None:
    run = make_run(tmp_path, model=make_model().double(), total_windows=23, micro_batch_size=2)
    state = TrainState(step=5)
    assert len(run.offsets(4)) == 4
    assert len(run.offsets(5)) == 3
    _, tokens = train_step(run, state)
    assert tokens == 3 * CONTEXT
    expected = plain_gradient(make_model().double(), run.data.windows, run.offsets(5))
    torch.testing.assert_close(gradient(run), expected, rtol=1e-6, atol=1e-12)


def test_an_epochs_budget_reads_every_window_the_same_number_of_times(tmp_path: Path) -> None:
    data = make_run(tmp_path, shift_windows="false").data.windows
    run = make_run(tmp_path, windows=data, total_windows=3 * data.per_epoch)
    assert run.length.total_windows % run.length.batch_size
    read = [offset for step in range(run.total_steps) for offset in run.offsets(step)]
    assert sorted(read) == sorted(3 * list(range(0, CONTEXT * data.per_epoch, CONTEXT)))


class Backwards(BatchSampler):
    """Reads from the run's last sample back to its first, then from the start of the text."""

    name: ClassVar[str] = "backwards"

    def offset(self, sample: int, seed: int, index: TokenIndex, total_samples: int) -> int:
        return max(total_samples - 1 - sample, 0)


def test_a_batch_sampler_may_ask_for_the_samples_of_the_run_before_its_extension(tmp_path: Path) -> None:
    run = make_run(tmp_path, total_windows=6)
    run = replace(run, data=replace(run.data, windows=replace(run.data.windows, sampler=Backwards())))
    run = replace(run, phase=replace(run.phase, length=replace(run.length, phase_windows=(6, 4))))
    read = [offset for step in range(run.total_steps) for offset in run.offsets(step)]
    assert read == [5, 4, 3, 2, 1, 0, 0, 0, 0, 0]


def test_a_budget_in_flops_ends_with_the_window_that_reaches_it(tmp_path: Path) -> None:
    window = ARCHITECTURE.flops_per_token * CONTEXT
    extended = {"budget.unit": "flops", "extension.amount": 3.5 * window}
    run = make_run(tmp_path, total_windows=10 * ARCHITECTURE.flops_per_token, **extended)
    assert run.length.phase_windows == (10, 4)
    assert run.total_steps == 3 + 1


# ── clipping, masks, what is not finite ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_clipping_scales_the_whole_accumulated_gradient_to_its_largest_norm(
    tmp_path: Path, micro_batch_size: int
) -> None:
    free, clipped = (
        make_run(tmp_path, model=make_model().double(), grad_clip=clip, micro_batch_size=micro_batch_size)
        for clip in (0.0, 0.125)
    )
    states = [TrainState(), TrainState()]
    for run, state in zip((free, clipped), states, strict=True):
        train_step(run, state)
    norm = gradient(free).norm().item()
    assert norm > 0.5
    assert [state.grad_norm for state in states] == pytest.approx([norm, norm], rel=1e-12)
    torch.testing.assert_close(gradient(clipped), gradient(free) * (0.125 / norm), rtol=1e-5, atol=1e-12)


def test_a_gradient_below_the_largest_norm_is_left_as_it_is(tmp_path: Path) -> None:
    free, clipped = (make_run(tmp_path, grad_clip=clip) for clip in (0.0, 1e3))
    for run in (free, clipped):
        train_step(run, TrainState())
    assert_same_bits(gradient(clipped), gradient(free))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_whose_targets_are_all_masked_is_skipped(tmp_path: Path, optimizer: str) -> None:
    run = make_run(tmp_path, optimizer=optimizer)
    before, state = weights(run), TrainState()
    without = changed(run, windows=masked_windows((CONTEXT,), shift=True))
    assert train_step(without, state) == (0.0, 0)
    assert_same_bits(weights(run), before)
    assert (state.step, state.grad_norm, state.objective_nats, state.objective_tokens) == (1, 0.0, 0.0, 0)
    train_step(run, state)
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


class Broken(Loss):
    """A loss that is not finite, or whose gradient is not."""

    name: ClassVar[str] = "broken"
    value: str = "nan"

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        if self.value == "gradient":
            return (output.logits.sum(dim=-1) * 0).sqrt()
        return output.logits.sum(dim=-1) * float(self.value)


@pytest.mark.parametrize(
    ("value", "what"), [("nan", "the loss is nan"), ("gradient", "the gradient's norm is nan")]
)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rate_and_place(
    tmp_path: Path, value: str, what: str
) -> None:
    run = make_run(tmp_path)
    state = TrainState()
    for _ in range(3):
        train_step(run, state)
    before = weights(run)
    with pytest.raises(PipelineError) as error:
        train_step(changed(run, loss=Broken(value=value)), state)
    message = str(error.value)
    rates = ", ".join(f"{group['lr']:.3g}" for group in run.optimizer.param_groups)
    assert f"step 3: {what} (learning rate {rates}; " in message
    assert ", ".join(map(str, run.offsets(3))) in message
    assert state.step == 3
    assert_same_bits(weights(run), before)


# ── the chapter ───────────────────────────────────────────────────────────────────────────────────


def test_each_steps_loss_is_that_of_the_chapters_training_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, schedule=lambda step: 1.0)
    plain = REGISTRY.build("optimizers", "adamw", {"adamw": {"plain": True, "beta2": 0.999}}, "")
    run = changed(replace(run, optimizer=plain.build(run.model.named_parameters())), micro_batch_size=4)
    state, losses = TrainState(), []
    for _ in range(6):
        nats, tokens = train_step(run, state)
        losses.append(nats / tokens)

    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0004, weight_decay=0.1)
    expected = []
    for step in range(6):
        input_batch, target_batch = (torch.from_numpy(array) for array in run.data.windows.batch(run.offsets(step)))
        optimizer.zero_grad()
        logits = model(input_batch).logits
        loss = F.cross_entropy(logits.flatten(0, 1), target_batch.flatten())
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5, rel=0)
    assert expected[-1] < expected[0]


# ── evaluations do not disturb ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_evaluating_every_step_or_never_gives_the_same_weights_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    callbacks = (Disturbs(), REGISTRY.build("eval_callbacks", "sample_text", {}, ""))
    found = []
    for every in (1, 1000):
        torch.manual_seed(0)
        run = make_run(
            tmp_path, model=make_model(dropout=0.5), optimizer=optimizer, every=every, callbacks=callbacks
        )
        state = TrainState()
        train(run, state)
        found.append(weights(run))
        assert [row["step"] for row in state.history] == (list(range(7)) if every == 1 else [0, 6])
        assert run.model.training
    assert_same_bits(*found)


def test_the_history_tells_of_the_loss_that_was_optimised_and_of_the_data_seen(tmp_path: Path) -> None:
    run, nats = make_run(tmp_path, every=3), []
    original = run.components.loss

    def watched(output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        nats.append(original(output, targets))
        return nats[-1]

    state = TrainState()
    train(changed(run, loss=watched), state)
    assert [row["tokens"] for row in state.history] == [0, 3 * 4 * CONTEXT, 6 * 4 * CONTEXT]
    means = [torch.cat(nats[first : first + 6]).double().mean().item() for first in (0, 6)]
    assert [row["train.objective"] for row in state.history[1:]] == pytest.approx(means, rel=1e-6)
    lowest = min(state.history, key=lambda row: row["val.loss"])
    assert (state.best_step, state.best_loss) == (lowest["step"], lowest["val.loss"])


class Stops(EvalCallback):
    """Stops the run at a step."""

    name: ClassVar[str] = "stops"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        event.memory["seen"] = event.memory.get("seen", 0) + 1
        if event.step == 4:
            raise StopTraining("enough")
        return {}


def test_a_callback_ends_the_run_after_its_evaluation(tmp_path: Path) -> None:
    run, state = make_run(tmp_path, callbacks=(Stops(),)), TrainState()
    train(run, state)
    assert (state.step, state.stop_reason, state.complete) == (4, "enough", True)
    assert [row["step"] for row in state.history] == [0, 2, 4]
    assert state.memory == {"stops": {"seen": 3}}


class Keeps(EvalCallback):
    """Keeps something in its memory that no saved state can hold."""

    name: ClassVar[str] = "keeps"

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        event.memory["seen"] = [{"path": Path()}]
        return {}


def test_a_callbacks_memory_holds_plain_values_only(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'keeps' .*memory holds a PosixPath"):
        train(make_run(tmp_path, callbacks=(Keeps(),)), TrainState())


# ── steps that are skipped ────────────────────────────────────────────────────────────────────────


class BrokenAt:
    """A loss that is not finite in the given micro-batches, counted from 0; a step has two."""

    name = "broken"

    def __init__(self, *places: int) -> None:
        self.places, self.asked = places, 0
        self.loss = REGISTRY.build("losses", "cross_entropy", {}, "")

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        nats: torch.Tensor = self.loss(output, targets) * (float("nan") if self.asked in self.places else 1.0)
        self.asked += 1
        return nats


def test_bad_steps_are_skipped_up_to_the_bound_and_each_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, state = make_run(tmp_path, loss=BrokenAt(3, 8), skip_bad_steps=2), TrainState()
    train(run, state)
    assert (state.step, state.complete) == (6, True)
    assert [each["step"] for each in state.skipped] == [1, 4]
    assert all(np.isfinite([row["val.loss"], row.get("train.objective", 0)]).all() for row in state.history)
    out = capsys.readouterr().out
    for number, step in enumerate((1, 4), start=1):
        (line,) = [line for line in out.splitlines() if f"skipped ({number} of at most 2)" in line]
        assert line.split()[:2] == ["step", str(step)]
        assert "the loss is nan" in line
        assert ", ".join(map(str, run.offsets(step))) in line


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(tmp_path: Path) -> None:
    run, state = make_run(tmp_path, loss=BrokenAt(2), skip_bad_steps=1), TrainState()
    train_step(run, state)
    before, moments = weights(run), run.parallel.full(run.optimizer.state_dict()["state"])
    train_step(run, state)
    assert_same_bits(weights(run), before)
    assert_same_bits(run.optimizer.state_dict()["state"], moments)
    assert state.step == 2


def test_one_bad_step_more_than_allowed_stops_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, loss=BrokenAt(3, 8), skip_bad_steps=1)
    with pytest.raises(PipelineError, match="stopped at step 4, after 1 skipped steps: the loss is nan"):
        train(run, TrainState())


@pytest.mark.parametrize("mask", [True, False])
def test_documents_end_at_end_of_text_where_attention_is_masked(mask: bool) -> None:
    params = small_params().model.model_copy(update={"document_mask": mask})
    components = Components.load(small_params(), REPOSITORY / "plugins", REGISTRY)
    shape = components.architecture(params, TOKENIZER).shape
    assert shape.vocab_size == 257
    assert shape.document_end == (256 if mask else None)


@pytest.mark.parametrize("end", ["<|im_end|>", END_OF_TEXT])
def test_a_template_whose_turns_end_documents_does_not_go_with_the_mask(end: str) -> None:
    params = small_params().model.model_copy(update={"document_mask": True})
    components = Components.load(small_params(), REPOSITORY / "plugins", REGISTRY)
    turn = "<|im_start|>{{ message.role }} {{ message.content }}" + end
    template = "{% for message in messages %}" + turn + "{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    names = {**TOKENIZER.special_tokens, "<|im_start|>": 257, "<|im_end|>": 258}
    tokenizer = replace(TOKENIZER, special_tokens=names, chat_template=template)
    refused = pytest.raises(ParamsError, match=r"model\.document_mask.*endoftext.*tokenizer\.file\.end_of_text")
    with refused if end == END_OF_TEXT else nullcontext():
        assert components.architecture(params, tokenizer).shape.document_end == 256


def test_what_a_model_adds_is_of_the_objective_and_of_no_other_loss(tmp_path: Path) -> None:
    found = []
    for added in (0.0, 0.5):
        run, state = make_run(tmp_path / str(added)), TrainState()
        forward = run.model.forward
        run.model.forward = lambda ids, forward=forward, added=added: replace(
            forward(ids), auxiliary=torch.tensor(added, requires_grad=True)
        )
        nats, tokens = train_step(run, state)
        evaluate(run, state)
        found.append((nats / tokens, state.history[-1]))
    (plain, row), (more, other) = found
    assert more - plain == pytest.approx(0.5, abs=1e-5)
    assert other["train.objective"] - row["train.objective"] == pytest.approx(0.5, abs=1e-5)
    assert {name: other[name] for name in row if name != "train.objective"} == {
        name: value for name, value in row.items() if name != "train.objective"
    }


@pytest.mark.parametrize("auxiliary", [torch.zeros(3), torch.tensor(1)])
def test_what_is_no_scalar_cannot_be_added(auxiliary: torch.Tensor, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    forward = run.model.forward
    run.model.forward = lambda ids: replace(forward(ids), auxiliary=auxiliary)
    with pytest.raises(PluginError, match=r"'gpt2'.*auxiliary must be a scalar"):
        train_step(run, TrainState())
