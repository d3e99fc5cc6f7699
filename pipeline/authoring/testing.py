"""The contract suite: what a component must keep to work in every run.

A plugin's own test is one line, with the class or with an instance that has other options:

    from pipeline.authoring.testing import check_loss

    def test_my_loss() -> None:
        check_loss(MyLoss)

Each check raises AssertionError with the rule that was broken.
"""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline.authoring.options import check_options
from pipeline.plugin.components import (
    IGNORED,
    Component,
    Corpus,
    EvalCallback,
    EvaluationEvent,
    Exporter,
    ExportSource,
    Loss,
    Metric,
    ModelOutput,
    Optimizer,
    Sampler,
    Schedule,
    StopTraining,
    TaskMetric,
    TextModel,
    TokenScores,
)

C = TypeVar("C", bound=Component)


class Refused(AssertionError):  # noqa: N818 - an answer, not an error
    """An exporter says that it has no form for a model, as it may of a family that it does not know."""


def _instance(component: type[C] | C) -> C:
    built = component() if isinstance(component, type) else component
    assert built == type(built)(**built.model_dump()), "the options must be all that decides a component"
    check_options(built)
    return built


def check_loss(component: type[Loss] | Loss) -> None:
    """Nats [B, T], finite, 0 and without gradient at ignored targets, and scaled by what comes from above."""
    loss = _instance(component)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=generator)
    head = torch.randn(16, 8, generator=generator)  # 11 tokens and 5 rows of padding
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[0, :2] = targets[2, 4] = IGNORED

    def run(
        weights: torch.Tensor, wanted: torch.Tensor = targets
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own_hidden, own_head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        nats = loss(ModelOutput(own_hidden, own_head, 11), wanted)
        assert nats.shape == wanted.shape, f"one number a target, {tuple(wanted.shape)}, not {tuple(nats.shape)}"
        assert nats.isfinite().all(), "every number must be finite"
        (nats * weights).sum().backward()  # type: ignore[no-untyped-call]
        assert own_hidden.grad is not None, "the loss must reach the hidden states"
        assert own_head.grad is not None, "the loss must reach the head"
        return nats.detach(), own_hidden.grad, own_head.grad

    before = targets.clone()
    ones = torch.ones(3, 5)
    nats, hidden_gradient, head_gradient = run(ones)
    assert torch.equal(targets, before), "the targets must not be changed"
    ignored = targets == IGNORED
    assert (nats[ignored] == 0).all(), "an ignored target (-100) costs 0 nats"
    assert (hidden_gradient[ignored] == 0).all(), "an ignored target (-100) has no gradient"
    assert hidden_gradient[~ignored].abs().sum() > 0, "the other targets must have one"
    assert (head_gradient[11:] == 0).all(), "padding rows of the head are no tokens: use output.logits"
    assert torch.equal(run(ones)[0], nats), "the same input must give the same loss"

    halves = run(ones / 2)[1]
    assert torch.allclose(2 * halves, hidden_gradient, rtol=1e-5, atol=1e-7), "gradients must scale with the loss"
    weights = torch.rand(3, 5, generator=generator)
    parts = run(weights)[1] + run(ones - weights)[1]
    assert torch.allclose(parts, hidden_gradient, rtol=1e-4, atol=1e-6), "each target must have its own gradient"
    nothing, gradient, _ = run(ones, torch.full_like(targets, IGNORED))
    assert (nothing == 0).all(), "a batch of ignored targets costs nothing, and is not NaN"
    assert (gradient == 0).all(), "a batch of ignored targets has no gradient, and no NaN"


class _Net(nn.Module):
    """The smallest model with every kind of parameter, under the names that the GPT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(tokens)
        logits: torch.Tensor = self.head(self.norm(x + self.down(torch.relu(self.up(x)))))
        return logits


def _steps(net: _Net, optimizer: torch.optim.Optimizer, count: int) -> float:
    tokens = torch.arange(11)
    loss = torch.tensor(0.0)
    for _ in range(count):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(tokens), (tokens + 1) % 11)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()


def check_optimizer(component: type[Optimizer] | Optimizer) -> None:
    """Holds each parameter once, learns, follows the schedule, and resumes from its saved state to the bit."""
    chosen = _instance(component)

    def build(seed: int = 0) -> tuple[_Net, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = _Net()
        optimizer = chosen.build(list(net.named_parameters()))
        assert isinstance(optimizer, torch.optim.Optimizer), "build must return a torch.optim.Optimizer"
        return net, optimizer

    net, optimizer = build()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held}), "a parameter is held twice"
    own = {id(parameter) for parameter in net.parameters()}
    assert {id(parameter) for parameter in held} == own, "every parameter must be held"
    for group in optimizer.param_groups:
        assert isinstance(group.get("lr"), float), "each group needs an lr: the schedule multiplies it"

    start = _steps(net, optimizer, 1)
    assert _steps(net, optimizer, 60) < start, "sixty steps on one small batch must lower its loss"

    weights, states = _saved(net.state_dict()), _saved(optimizer.state_dict())
    _steps(net, optimizer, 3)
    again, resumed = build(seed=1)
    again.load_state_dict(weights)
    resumed.load_state_dict(states)
    _steps(again, resumed, 3)
    for (name, one), other in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), f"{name}: going on from a saved state must give the same bits"

    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    _steps(net, optimizer, 1)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name}: a learning rate of 0 must change nothing"


def check_schedule(component: type[Schedule] | Schedule) -> None:
    """Finite rates from 0 on at each step of runs of several lengths, always the same; near 1 at first."""
    chosen = _instance(component)
    for steps, warmup in ((1, 0), (2, 1), (10, 0), (10, 3), (10, 9), (1000, 100)):
        rates = [chosen(step, steps, warmup) for step in range(warmup, steps)]
        place = f"of {steps} steps, {warmup} of them warm-up"
        for step, rate in enumerate(rates, warmup):
            assert isinstance(rate, (int, float)), f"step {step} {place}: {rate!r} is no number"
            assert 0 <= rate < math.inf, f"step {step} {place}: {rate!r} is no finite number from 0 on"
        again = [chosen(step, steps, warmup) for step in range(warmup, steps)]
        assert rates == again, f"{place}: asked again, it differs"
    assert 0.5 <= chosen(0, 1000, 0) <= 1.5, "the first step without warm-up must have about the peak, 1"


def _saved(values: dict[str, Any]) -> dict[str, Any]:
    """Through a file and back, as plain tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def event(**changes: Any) -> EvaluationEvent:
    """An evaluation for tests of callbacks, at step 10 of 40; `changes` are attributes of EvaluationEvent."""
    values: dict[str, Any] = {
        "step": 10,
        "total_steps": 40,
        "metrics": {"step": 10, "epoch": 0.1, "tokens": 1000, "train.loss": 3.0, "val.loss": 3.1},
        "history": (),
        "generate": lambda prompt, max_new_tokens=50, temperature=0.0: prompt + " and on",
        "show": lambda text: None,
        "model": _Net(),
        "memory": {},
    }
    return EvaluationEvent(**(values | changes))


def check_eval_callback(component: type[EvalCallback] | EvalCallback) -> None:
    """Returns finite numbers, keeps only plain values in its memory, and leaves the model as it was.

    One that only records (`records_only`) returns no numbers, shows nothing and does not stop the run.
    """
    callback = _instance(component)
    torch.manual_seed(0)
    net, memory, shown = _Net(), {}, []  # type: ignore[var-annotated]
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    history: list[dict[str, float]] = []
    for number, loss in enumerate((3.0, 2.5, 2.4, 2.6, 2.3)):
        metrics = {
            "step": 10 * number, "tokens": 1000 * number, "epoch": 0.1 * number,
            "learning_rate": 1e-3, "grad_norm": 1.0,
            "train.loss": loss, "train.objective": loss, "val.loss": loss + 0.1,
            "val.perplexity": math.exp(loss + 0.1), "val.bits_per_byte": 0.5 * loss,
        }  # fmt: skip
        given = event(
            step=10 * number,
            metrics=dict(metrics),
            history=tuple(history),
            show=shown.append,
            model=net,
            memory=memory,
        )
        try:
            numbers = callback.on_evaluation(given)
        except StopTraining:
            assert not callback.records_only, "what only records (records_only) must not stop the run"
            break
        assert isinstance(numbers, dict), "on_evaluation must return a dict (an empty one for no numbers)"
        assert not (callback.records_only and numbers), "what only records (records_only) must return no numbers"
        for name, value in numbers.items():
            assert isinstance(name, str), f"{name!r} must be a name"
            assert isinstance(value, int | float), f"{name} must be a number"
            assert math.isfinite(value), f"{name} must be finite"
            assert name not in metrics, f"{name} is already recorded: choose another name"
        history.append({**metrics, **numbers})
        memory = json.loads(json.dumps(memory))  # it is saved and restored between two evaluations
    assert all(isinstance(text, str) for text in shown), "show takes text"
    assert not (callback.records_only and shown), "what only records (records_only) must not call event.show"
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name}: a callback must not change the model"


def check_sampler(component: type[Sampler] | Sampler) -> None:
    """Keeps shape, rows and what is ruled out, and leaves a token to draw in every row."""
    sampler = _instance(component)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 13, generator=generator)
    logits[1, 3:] = -torch.inf
    logits[2, 1:] = -torch.inf  # a single token left
    logits[3] = 0.0  # all alike
    tokens = torch.randint(13, (4, 7), generator=generator)
    given, given_tokens = logits.clone(), tokens.clone()
    result = sampler(logits, tokens)
    assert torch.equal(logits, given), "the logits that were given must not be changed"
    assert torch.equal(tokens, given_tokens), "the tokens must not be changed"
    assert result.shape == logits.shape, f"logits {tuple(logits.shape)}, not {tuple(result.shape)}"
    assert not result.isnan().any(), "no logit may be NaN"
    assert result.isfinite().any(dim=-1).all(), "each row must keep a token"
    assert (result <= torch.finfo(result.dtype).max).all(), "no logit may be infinite"
    assert not (result.isfinite() & given.isneginf()).any(), "what is ruled out (−inf) must stay so"
    for row in range(4):
        alone = sampler(logits[row : row + 1], tokens[row : row + 1])
        assert torch.allclose(alone, result[row : row + 1]), "a row must not depend on the others"
    assert torch.equal(sampler(logits, tokens), result), "the draw is the core's: a sampler is no random choice"


def token_scores(count: int = 40, seed: int = 0) -> TokenScores:
    """The scores of `count` targets of 13 ids, for tests of metrics; the first id is a special token."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 13, generator=generator)
    targets = torch.randint(13, (count,), generator=generator)
    nats = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    return TokenScores(
        targets=targets, nats=nats, correct=logits.argmax(dim=-1) == targets,
        confidence=logits.double().softmax(dim=-1).amax(dim=-1), positions=torch.arange(count) % 8,
        bytes=targets % 5, logits=logits,
    )  # fmt: skip


def check_metric(component: type[Metric] | Metric, tasks: Path | None = None) -> None:
    """Finite numbers, always the same, whose sums over two parts of a text are those over the whole.

    A task is run on a toy model, with `tasks` as the folder of its texts (data/tasks).
    """
    metric = _instance(component)
    if isinstance(metric, TaskMetric):
        numbers = metric.run(_toy_model(tasks or Path("data/tasks")))
        _check_metric_numbers(numbers)
        assert numbers, "a task must return a number"
        return
    whole, before = token_scores(), token_scores()

    def part(first: int, last: int) -> TokenScores:
        return TokenScores(**{name: value[first:last] for name, value in vars(whole).items()})

    def sums_of(*parts: TokenScores) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for each in parts:
            metric.update(sums, each)
        return sums

    sums = sums_of(whole)
    for name, value in vars(before).items():
        assert torch.equal(value, vars(whole)[name]), f"scores.{name} must not be changed"
    for name, value in sums.items():
        assert isinstance(name, str), f"{name!r} must be a name"
        assert isinstance(value, int | float), f"the sum {name!r} must be a number: call float() on it"
        assert math.isfinite(value), f"the sum {name!r} must be finite"
    numbers = metric.result(sums)
    _check_metric_numbers(numbers)
    assert numbers, "a metric must return a number"
    assert metric.result(sums_of(whole)) == numbers, "the same text must give the same numbers"
    for cut in (1, 17, 39):
        separate = [sums_of(part(0, cut)), sums_of(part(cut, 40))]
        added: dict[str, float] = defaultdict(float)
        for name, value in chain.from_iterable(each.items() for each in separate):
            added[name] += value
        for what, found in (("one after the other", sums_of(part(0, cut), part(cut, 40))), ("added up", added)):
            own = metric.result(found)
            assert own.keys() == numbers.keys(), f"the sums of two parts, {what}, give other names than the whole"
            for name, value in numbers.items():
                assert math.isclose(own[name], value, rel_tol=1e-6, abs_tol=1e-9), (
                    f"{name}: the sums of two parts, {what}, must be those of the whole"
                )
    for place in (0, 7, 39):
        _check_metric_numbers(metric.result(sums_of(part(place, place + 1))))


def _check_metric_numbers(numbers: Any) -> None:
    assert isinstance(numbers, dict), "a metric returns a dict of numbers"
    for name, value in numbers.items():
        assert isinstance(name, str), f"{name!r} must be a name"
        assert isinstance(value, int | float), f"{name} must be a number: call float() on it"
        assert math.isfinite(value), f"{name} must be finite: leave it out where it is not"


def _toy_model(folder: Path) -> TextModel:
    """A model to which each character costs a nat."""
    return TextModel(
        score=lambda text, prompt="": float(len(text)),
        choose=lambda prompt, options: min(range(len(options)), key=lambda number: len(options[number])),
        generate=lambda prompt, max_new_tokens=50, temperature=0.0: prompt + " and on",
        folder=folder,
    )


def check_corpus(component: type[Corpus] | Corpus, root: Path) -> None:
    """The same documents each time, each name once, and text in each.

    Args:
        component: The corpus.
        root: What data/raw is for it, with whatever texts it needs.
    """
    corpus = _instance(component)

    def read() -> Iterable[tuple[str, str, str | None]]:
        for document in corpus.documents(root):
            text = document.text if isinstance(document.text, str) else "".join(document.text)
            yield document.name, text, document.split

    documents = list(read())
    assert documents, "a corpus must have a document"
    names = [name for name, _, _ in documents]
    assert len(names) == len(set(names)), "two documents have the same name"
    assert all(names), "each document needs a name"
    assert any(text.strip() for _, text, _ in documents), "there must be text in them"
    for name, text, split in documents:
        text.encode("utf-8")  # raises where a text holds lone surrogates
        assert split in (None, "train", "val", "test"), f"{name}: a split is train, val or test, not {split!r}"
    assert list(read()) == documents, "reading again must give the same documents in the same order"


def check_exporter(component: type[Exporter] | Exporter, source: ExportSource, folder: Path) -> None:
    """Writes files that its own proof accepts, and refuses the same files for another model.

    Args:
        component: The exporter.
        source: A trained model; `pipeline.export.stage.export_source` makes one from a checkpoint.
        folder: An empty folder.

    Raises:
        Refused: `export` raises ValueError, which is how an exporter says what it cannot write.
    """
    from dataclasses import replace

    exporter = _instance(component)
    try:
        exporter.export(source, folder)
    except ValueError as refusal:
        if not str(refusal):
            raise AssertionError("an exporter that refuses a model must say why") from refusal
        raise Refused(f"it refuses the family {source.config['family']}: {refusal}") from refusal
    assert any(folder.iterdir()), "an export must write something"
    proof = exporter.verify(source, folder)
    assert proof.get("reader"), "the proof must name its reader"
    json.dumps(proof, allow_nan=False)
    changed = {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in source.weights.items()}
    other = replace(source, weights=changed, logits=lambda tokens: source.logits(tokens) + tokens.shape[1])
    try:
        exporter.verify(other, folder)
    except ValueError:
        return
    raise AssertionError("verify accepted an export that does not reproduce the checkpoint")
