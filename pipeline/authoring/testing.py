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
import tracemalloc
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline.authoring.options import check_options
from pipeline.core.errors import ParamsError
from pipeline.data.batches import token_index
from pipeline.data.tokens import IndexEntry
from pipeline.model.architecture import Architecture, LanguageModel, run
from pipeline.plugin.calls import supported_arguments
from pipeline.plugin.components import (
    IGNORED,
    BatchSampler,
    Component,
    Corpus,
    EvalCallback,
    EvaluationEvent,
    Exporter,
    ExportSource,
    Loss,
    Metric,
    Model,
    ModelOutput,
    ModelShape,
    Optimizer,
    Sampler,
    Schedule,
    StepEvent,
    StopTraining,
    TaskMetric,
    TextModel,
    TokenScores,
)
from pipeline.plugin.order import TokenIndex
from pipeline.train.components import has_modes, set_mode

C = TypeVar("C", bound=Component)


class Refused(AssertionError):  # noqa: N818 - an answer, not an error
    """An exporter says that it has no form for a model, as it may of one that it does not know."""


def _instance(component: type[C] | C) -> C:
    built = component() if isinstance(component, type) else component
    assert built == type(built)(**built.model_dump()), "the options must be all that decides a component"
    check_options(built)
    return built


_VOCAB, _TOKENS = 11, 8


def check_model(component: type[Model] | Model) -> None:
    """No token changes what is computed before it, and no row another one; the same with the cache, if it has one,
    and after saving and loading; a gradient reaches every parameter; documents are apart where they must be."""
    model = _instance(component)
    sizes = {"vocab_size": _VOCAB, "context_length": _TOKENS, "n_layers": 2, "n_heads": 2, "emb_dim": 16}
    shape = ModelShape(**sizes, dropout=0.0, pad_vocab_to=16)
    architecture = Architecture(model, shape)
    made = _made(architecture)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_VOCAB, (8, _TOKENS), generator=generator)

    _check_names(made)
    with torch.no_grad():
        logits = run(made, ids).logits
        assert logits.isfinite().all(), "every logit must be finite"
        assert torch.equal(run(made, ids).logits, logits), "in eval mode the same ids must give the same logits"
        _check_independence(made, ids, logits)
        _check_cache(made, ids, logits)
        _check_saving(architecture, made, ids, logits)
        try:
            masked = _made(Architecture(model, replace(shape, document_end=_VOCAB - 1)))
        except ParamsError:  # it says that it cannot
            masked = None
        if masked is not None:
            _check_documents(masked, ids)
    _check_gradients(_made(Architecture(model, replace(shape, dropout=0.2))), ids)


def _made(architecture: Architecture, seed: int = 0) -> LanguageModel:
    """A model in eval mode. Its weights are moved, so that none hides another by being zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = architecture.make().eval()
        first = {name: parameter.clone() for name, parameter in made.named_parameters()}
        torch.manual_seed(seed)
        for name, parameter in architecture.make().named_parameters():
            assert torch.equal(parameter, first[name]), (
                f"{name}: first weights must be drawn from torch's generator"
            )
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def _check_names(made: LanguageModel) -> None:
    tensors = made.state_dict()
    for name, _ in made.named_buffers():
        assert name in tensors, (
            f"the buffer {name} must be persistent: what is sharded and loaded is the state dict"
        )
    for name, module in made.named_modules():
        if isinstance(module, nn.Embedding):
            assert "embedding" in name, f"{name}: optimizers know an embedding by `embedding` in its name"
    same = made.architecture.tensors.keys() == tensors.keys()
    assert same, 'under torch.device("meta") build must give the same parameters'


def _check_independence(made: LanguageModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    for place in range(_TOKENS):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % _VOCAB
        other = run(made, changed).logits
        assert _near(other[:, :place], logits[:, :place]), f"token {place} must not change what comes before it"
        assert not _near(other[:, place:], logits[:, place:]), f"token {place} must change what follows"
        assert _near(run(made, ids[:, : place + 1]).logits, logits[:, : place + 1]), (
            f"{place + 1} tokens must give what they give at the beginning of a longer text"
        )
    assert _near(run(made, ids[:1]).logits, logits[:1]), "a row must not depend on the others"


def _check_cache(made: LanguageModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    make: Any = getattr(made, "make_cache", None)
    if make is None:
        return
    for pieces in ([1] * _TOKENS, [3, 1, 4], [_TOKENS]):
        cache = make(len(ids))
        split: tuple[torch.Tensor, ...] = torch.split(ids, pieces, dim=1)
        parts = [run(made, piece, cache).logits for piece in split]
        assert _near(torch.cat(parts, dim=1), logits), f"with the cache, pieces of {pieces} must give the same"
        if hasattr(cache, "crop"):
            cache.crop(2)
            rest = run(made, ids[:, 2:], cache).logits
            assert _near(rest, logits[:, 2:]), "after crop(2) the cache must hold the first two tokens"


def _check_saving(architecture: Architecture, made: LanguageModel, ids: torch.Tensor, logits: torch.Tensor) -> None:
    with torch.device("meta"):
        empty = architecture.make()
    loaded = empty.to_empty(device="cpu").eval()
    loaded.load_state_dict(_saved(made.state_dict()))
    try:
        again = run(loaded, ids).logits
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"after loading its state dict it must compute: {error}") from error
    assert torch.equal(again, logits), "after saving and loading the state dict the logits must be the same"


def _check_documents(masked: LanguageModel, ids: torch.Tensor) -> None:
    """Where it takes a `document_end`, what comes before that must not reach what follows."""
    ids = ids % (_VOCAB - 1)
    ids[:, 3] = _VOCAB - 1
    changed = ids.clone()
    changed[:, :3] = (ids[:, :3] + 1) % (_VOCAB - 1)
    logits = run(masked, ids).logits
    assert _near(run(masked, changed).logits[:, 4:], logits[:, 4:]), (
        "with shape.document_end, a token must see its own document only: raise ValueError in build where it cannot"
    )
    _check_cache(masked, ids, logits)


def _check_gradients(made: LanguageModel, ids: torch.Tensor) -> None:
    output = run(made.train(), ids)
    auxiliary = output.auxiliary
    assert isinstance(auxiliary, float) or (not auxiliary.shape and bool(auxiliary.isfinite())), (
        "ModelOutput.auxiliary must be a finite scalar"
    )
    (output.cross_entropy(ids.roll(-1, dims=1)).mean() + auxiliary).backward()  # type: ignore[no-untyped-call]
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, f"{name}: the gradient must reach every parameter"
        assert parameter.grad.isfinite().all(), f"{name}: its gradient must be finite"
        assert parameter.grad.any(), f"{name}: its gradient is zero everywhere"
    called: set[int] = set()
    blocks = list(getattr(made, "blocks", []))
    handles = [
        block.register_forward_hook(lambda *_, number=number: called.add(number))
        for number, block in enumerate(blocks)
    ]
    with torch.no_grad():
        run(made, ids)
    for handle in handles:
        handle.remove()
    assert len(called) == len(blocks), (
        "forward must call each of `blocks`: they are compiled and sharded one by one"
    )


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def check_loss(component: type[Loss] | Loss) -> None:
    """Nats [B, T], finite, 0 and without gradient at ignored targets, and scaled by what comes from above."""
    loss = _instance(component)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=generator)
    head = torch.randn(16, 8, generator=generator)  # 11 tokens and 5 rows of padding
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[0, :2] = targets[2, 4] = IGNORED
    inputs, taught = torch.randint(11, (3, 5), generator=generator), torch.randn(3, 5, 8, generator=generator)

    def teacher(ids: torch.Tensor) -> ModelOutput:
        return ModelOutput(taught, head, 11)

    def run(
        weights: torch.Tensor, wanted: torch.Tensor = targets
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own_hidden, own_head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        offered = {"inputs": inputs.clone(), "step": 3, "total_steps": 10, "teacher": teacher}
        nats = loss(
            ModelOutput(own_hidden, own_head, 11), wanted, **supported_arguments(loss, "__call__", **offered)
        )
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


_EVENT_CONTEXT = 5


class _Net(nn.Module):
    """The smallest model with every kind of parameter, under the names that the GPT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> ModelOutput:
        assert tokens.ndim == 1 or tokens.shape[1] <= _EVENT_CONTEXT, (
            "a batch's last id is a target only: model(ids[:, :-1])"
        )
        x = self.token_embedding(tokens)
        hidden = self.norm(x + self.down(torch.relu(self.up(x))))
        return ModelOutput(hidden, self.head.weight, self.head.out_features)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """The plain loss of each id [B, T + 1] after the first."""
        with torch.no_grad():
            output: ModelOutput = self(ids[:, :-1])
        return output.cross_entropy(ids[:, 1:]).double()

    def differentiate(self) -> float:
        """Leaves the gradients of a small batch's loss, and returns it."""
        tokens = torch.arange(11)
        loss = nn.functional.cross_entropy(self(tokens).logits, (tokens + 1) % 11)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


def _steps(net: _Net, optimizer: torch.optim.Optimizer, count: int) -> float:
    loss = 0.0
    for _ in range(count):
        optimizer.zero_grad()
        loss = net.differentiate()
        optimizer.step()
    return loss


def check_optimizer(component: type[Optimizer] | Optimizer) -> None:
    """Holds each parameter once, learns, follows the schedule, and resumes from its saved state to the bit."""
    chosen = _instance(component)

    def build(seed: int = 0) -> tuple[_Net, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        net = _Net()
        optimizer = chosen.build(
            list(net.named_parameters()), **supported_arguments(chosen, "build", total_steps=64)
        )
        assert isinstance(optimizer, torch.optim.Optimizer), "build must return a torch.optim.Optimizer"
        set_mode(optimizer, "train")
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

    if has_modes(optimizer):
        _check_modes(net, optimizer)
        return  # it moves weights towards their average, whatever the rate
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    _steps(net, optimizer, 1)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name}: a learning rate of 0 must change nothing"


def _check_modes(net: _Net, optimizer: torch.optim.Optimizer) -> None:
    trained, state = _weights(net), _saved(optimizer.state_dict())
    set_mode(optimizer, "eval")
    assert net.differentiate() < math.log(11), "eval() must leave weights that have learnt"
    set_mode(optimizer, "train")
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter, trained[name], rtol=1e-4, atol=1e-5), f"{name}: train() must undo eval()"
    assert str(_saved(optimizer.state_dict())) == str(state), "train() must leave the state that eval() found"


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


_SIZES = (40, 100, 700, 60, 900, 30, 400, 50, 80, 600)
_BYTES_AT_MOST = 1 << 20


def text_index(component: BatchSampler, windows: int, shift: bool = True) -> TokenIndex:
    """A text of `windows` windows of 16 tokens (300 or more) for tests of batch samplers.

    It has 11 documents, `a/0.txt` to `a/4.txt` and `b/5.txt` to `b/10.txt`: ten of 30 to 900 tokens, and the rest.
    """
    context_length = 16
    tokens = windows * context_length + 1
    starts = [0, *accumulate(_SIZES)]
    documents = [
        IndexEntry(f"{'ab'[number >= 5]}/{number}.txt", start, end - start, end - start)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], tokens], strict=True))
    ]
    return token_index(tokens, context_length, shift, component, documents)


def check_batch_sampler(component: type[BatchSampler] | BatchSampler) -> None:
    """Offsets of windows, the same for the same sample however often and in whatever order they are asked for, in
    little memory however long the text is; with `once_an_epoch` each window of an epoch exactly once.

    The text is that of `text_index`.
    """
    chosen = _instance(component)
    far = [10**6, 10**9, 10**12]
    for shift in (False, True):
        index = text_index(chosen, 300, shift)
        samples = [*range(3 * index.text.windows), *far]
        offsets = [chosen.offset(sample, 1, index) for sample in samples]
        for sample, offset in zip(samples, offsets, strict=True):
            assert isinstance(offset, int), f"sample {sample}: {offset!r} is no whole number"
            last = index.tokens - index.context_length - 1
            assert 0 <= offset <= last, f"sample {sample}: no window begins at {offset}, only at 0 to {last}"
        again = type(chosen)(**chosen.model_dump())
        for sample, offset in reversed(list(zip(samples, offsets, strict=True))):
            assert again.offset(sample, 1, index) == offset, f"sample {sample}: asked again, its offset differs"
        if chosen.once_an_epoch:
            for epoch in range(3):
                read = sorted(offsets[epoch * index.text.windows : (epoch + 1) * index.text.windows])
                steps = {after - before for before, after in pairwise(read)}
                assert steps == {index.context_length}, f"epoch {epoch} must read each of its windows once"
    index = text_index(chosen, 1_000_000)
    tracemalloc.start()
    for sample in (0, *far):
        chosen.offset(sample, 1, index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < _BYTES_AT_MOST, f"for a text of 1,000,000 windows it needs {peak:,} bytes: it must not list them"


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
        "metrics": {"step": 10, "epoch": 0.1, "tokens": 1000, "train.loss": 3.0, "val.loss": 3.1},
        "history": (),
        "generate": lambda prompt, max_new_tokens=50, temperature=0.0: prompt + " and on",
        "show": lambda text: None,
    }
    return EvaluationEvent(**_offered(values | changes))


def step_event(**changes: Any) -> StepEvent:
    """A step for tests of callbacks, number 10 of 40; `changes` are attributes of StepEvent. Its small model has
    gradients."""
    values: dict[str, Any] = {
        "metrics": {"step": 10, "train.objective": 3.0, "learning_rate": 1e-3, "grad_norm": 1.0},
        "full": lambda tensor: tensor,
    }
    given = _offered(values | changes)
    if "model" not in changes:
        given["model"].differentiate()
    return StepEvent(**given)


def _offered(values: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an event with those that every event has."""
    model = values.get("model", _Net())

    def batches(side: str) -> Iterator[torch.Tensor]:
        if side not in ("train", "val"):
            raise ValueError(f"there is no side {side!r}")
        generator = torch.Generator().manual_seed(len(side))
        return (torch.randint(11, (rows, _EVENT_CONTEXT + 1), generator=generator) for rows in (4, 4, 1))

    loss = getattr(model, "loss", lambda ids: torch.full((len(ids), ids.shape[1] - 1), 3.0, dtype=torch.float64))
    shared = {"step": 10, "total_steps": 40, "model": model, "batches": batches, "loss": loss, "memory": {}}
    return shared | values


def check_eval_callback(component: type[EvalCallback] | EvalCallback) -> None:
    """Returns finite numbers, keeps only plain values and tensors in its memory, from which alone its work follows,
    and leaves the model as it was, but for weights and gradients at a step.

    One that only records (`records_only`) returns no numbers, shows nothing, does not stop the run, and changes
    nothing at a step.
    """
    callback = _instance(component)
    if callback.has("on_evaluation"):
        _check_on_evaluation(callback)
    if any(map(callback.has, ("before_update", "after_step", "eval_weights"))):
        trained, memory = _train_with(callback, resumes=False)
        again, restored = _train_with(callback, resumes=True)
        for (name, one), other in zip(trained.items(), again.values(), strict=True):
            assert torch.equal(one, other), f"{name}: going on from its saved memory must give the same bits"
        assert str(memory) == str(restored), "its memory must be the same after going on"


def _check_on_evaluation(callback: EvalCallback) -> None:
    torch.manual_seed(0)
    net, memory, shown = _Net(), {}, []  # type: ignore[var-annotated]
    before = _weights(net)
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
        _check_numbers(numbers, metrics, callback)
        history.append({**metrics, **numbers})
        memory = _saved(memory)  # it is saved and restored between two evaluations
    assert all(isinstance(text, str) for text in shown), "show takes text"
    assert not (callback.records_only and shown), "what only records (records_only) must not call event.show"
    _assert_unchanged(net, before, "a callback must not change the model")


def _check_numbers(numbers: dict[str, float], known: dict[str, float], callback: EvalCallback) -> None:
    assert not (callback.records_only and numbers), "what only records (records_only) must return no numbers"
    for name, value in numbers.items():
        assert isinstance(name, str), f"{name!r} must be a name"
        assert isinstance(value, int | float), f"{name} must be a number"
        assert math.isfinite(value), f"{name} must be finite"
        assert name not in known, f"{name} is already recorded: choose another name"


def _train_with(callback: EvalCallback, resumes: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Six steps of SGD with a callback's step methods: the weights that are evaluated then, and its memory, which
    is saved and restored after each step if it `resumes`."""
    torch.manual_seed(0)
    net, memory = _Net(), {}  # type: ignore[var-annotated]
    known: dict[str, float] = {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def call(method: str) -> Any:
        if not callback.has(method):
            return None
        weights, gradients = (
            _weights(net),
            [each.grad.clone() for each in net.parameters() if each.grad is not None],
        )
        with torch.no_grad():
            given = step_event(step=step, total_steps=6, metrics=dict(known), model=net, memory=memory)
            result = getattr(callback, method)(given)
        if callback.records_only or method == "eval_weights":
            _assert_unchanged(net, weights, f"{method} must not change the model here")
        if callback.records_only:
            kept = [each.grad for each in net.parameters() if each.grad is not None]
            assert all(map(torch.equal, kept, gradients)), "what only records (records_only) changes no gradient"
        if method != "eval_weights":
            assert result is None or isinstance(result, dict), f"{method} must return a dict of numbers, or None"
            _check_numbers(result or {}, known, callback)
            known.update(result or {})
        return result

    for step in range(1, 7):
        optimizer.zero_grad()
        loss = net.differentiate()
        known = {"step": step}
        torch.manual_seed(step)
        call("before_update")
        for name, parameter in net.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{name}: its gradient must be finite"
        optimizer.step()
        known |= {"train.objective": loss, "learning_rate": 0.1, "grad_norm": 1.0}
        torch.manual_seed(step)
        call("after_step")
        if resumes:
            memory = _saved(memory)
    weights = _weights(net)
    for name, tensor in (call("eval_weights") or {}).items():
        assert name in weights, f"eval_weights returned {name!r}, which is no parameter of the model"
        assert tensor.shape == weights[name].shape, f"eval_weights: {name} must be {tuple(weights[name].shape)}"
        weights[name] = tensor.clone()
    return weights, _saved(memory)


def _weights(net: _Net) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def _assert_unchanged(net: _Net, before: dict[str, torch.Tensor], rule: str) -> None:
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name}: {rule}"


def check_sampler(component: type[Sampler] | Sampler) -> None:
    """Keeps shape, rows and what is ruled out, and leaves a token to draw in every row, draw after draw."""
    sampler = _instance(component)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 13, generator=generator)
    logits[1, 3:] = -torch.inf
    logits[2, 1:] = -torch.inf  # a single token left
    logits[3] = 0.0  # all alike
    tokens = torch.randint(13, (4, 7), generator=generator)
    first = [_row(sampler, logits, tokens, row, {}) for row in range(4)]
    if not supported_arguments(sampler, "__call__", prompt_length=0, memory={}):
        given, given_tokens = logits.clone(), tokens.clone()
        result = sampler(logits, tokens)
        assert torch.equal(logits, given), "the logits that were given must not be changed"
        assert torch.equal(tokens, given_tokens), "the tokens must not be changed"
        assert result.shape == logits.shape, f"logits {tuple(logits.shape)}, not {tuple(result.shape)}"
        assert torch.allclose(torch.cat(first), result), "a row must not depend on the others"
    again = [_row(sampler, logits, tokens, row, {}) for row in range(4)]
    assert all(map(torch.equal, first, again)), "the draw is the core's: a sampler is no random choice"
    for row in range(4):
        own, memory = tokens[[row]], dict[str, Any]()
        for _ in range(5):
            drawn = _row(sampler, logits[[row]], own, 0, memory).argmax(dim=-1, keepdim=True)
            own = torch.cat([own, drawn], dim=1)


def _row(
    sampler: Sampler, logits: torch.Tensor, tokens: torch.Tensor, row: int, memory: dict[str, Any]
) -> torch.Tensor:
    """What a sampler makes of one row alone, checked by the contract's rules."""
    given, own = logits[[row]], tokens[[row]]
    before, before_tokens = given.clone(), own.clone()
    result = sampler(given, own, **supported_arguments(sampler, "__call__", prompt_length=7, memory=memory))
    assert torch.equal(given, before), "the logits that were given must not be changed"
    assert torch.equal(own, before_tokens), "the tokens must not be changed"
    assert result.shape == given.shape, f"logits {tuple(given.shape)}, not {tuple(result.shape)}"
    assert not result.isnan().any(), "no logit may be NaN"
    assert result.isfinite().any(dim=-1).all(), "each row must keep a token"
    assert (result <= torch.finfo(result.dtype).max).all(), "no logit may be infinite"
    assert not (result.isfinite() & given.isneginf()).any(), "what is ruled out (−inf) must stay so"
    return result


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
    exporter = _instance(component)
    try:
        exporter.export(source, folder)
    except ValueError as refusal:
        if not str(refusal):
            raise AssertionError("an exporter that refuses a model must say why") from refusal
        raise Refused(f"it refuses the model {source.config['name']}: {refusal}") from refusal
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
