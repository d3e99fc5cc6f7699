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
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline.authoring.options import check_options
from pipeline.core.errors import ParamsError
from pipeline.model.architecture import Architecture, LanguageModel, run
from pipeline.plugin.components import (
    IGNORED,
    Component,
    Corpus,
    EvalCallback,
    EvaluationEvent,
    Exporter,
    ExportSource,
    Loss,
    Model,
    ModelOutput,
    ModelShape,
    Optimizer,
    Sampler,
    Schedule,
    StopTraining,
)

C = TypeVar("C", bound=Component)


class Refused(AssertionError):  # noqa: N818 - an answer, not an error
    """An exporter says that it has no form for a model, as it may of one that it does not know."""


def _instance(component: type[C] | C) -> C:
    built = component() if isinstance(component, type) else component
    assert built == type(built)(**built.model_dump()), "the options must be all that decides a component"
    check_options(built)
    return built


_VOCAB, _CONTEXT = 11, 8


def check_model(component: type[Model] | Model) -> None:
    """No token changes what is computed before it, and no row another one; the same with the cache, if it has one,
    and after saving and loading; a gradient reaches every parameter; documents are apart where they must be."""
    model = _instance(component)
    sizes = {"vocab_size": _VOCAB, "context_length": _CONTEXT, "n_layers": 2, "n_heads": 2, "emb_dim": 16}
    shape = ModelShape(**sizes, dropout=0.0, pad_vocab_to=16)
    architecture = Architecture(model, shape)
    made = _made(architecture)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(_VOCAB, (8, _CONTEXT), generator=generator)

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
    for place in range(_CONTEXT):
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
    for pieces in ([1] * _CONTEXT, [3, 1, 4], [_CONTEXT]):
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
