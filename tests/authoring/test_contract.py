"""The contract suite accepts every shipped component and refuses each kind of broken one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import REPOSITORY
from made_library import make_library
from torch import nn

from pipeline.authoring.testing import (
    Refused,
    check_batch_sampler,
    check_corpus,
    check_eval_callback,
    check_exporter,
    check_loss,
    check_metric,
    check_model,
    check_optimizer,
    check_sampler,
    check_schedule,
    event,
)
from pipeline.commands.check_plugin import tiny_source
from pipeline.core.errors import PluginError
from pipeline.export.stage import export_source
from pipeline.model import load
from pipeline.plugin import (
    BatchSampler,
    EvalCallback,
    Loss,
    Model,
    ModelOutput,
    ModelShape,
    Optimizer,
    Sampler,
    Schedule,
    StopTraining,
)
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry

CHECKS: dict[str, Callable[[Any], None]] = {
    "models": check_model,
    "losses": check_loss,
    "optimizers": check_optimizer,
    "schedules": check_schedule,
    "batch_samplers": check_batch_sampler,
    "eval_callbacks": check_eval_callback,
    "samplers": check_sampler,
    "metrics": check_metric,
}
SHIPPED = [
    pytest.param(kind, entry.component, id=f"{kind}-{entry.component.name}")
    for kind in CHECKS
    for entry in Registry.load(REPOSITORY / "plugins", [kind]).entries(kind)
]


def test_every_hook_has_a_check_that_is_called_here_and_a_shipped_component() -> None:
    source = Path(__file__).read_text()
    registry = Registry.load(REPOSITORY / "plugins")
    for kind in KINDS.values():
        check = f"check_{kind.singular.replace(' ', '_')}"
        assert f'"{kind.plural}": {check}' in source or f"{check}(entry.component" in source, (
            f"{kind.hook} has no test"
        )
        assert registry.names(kind.plural)


@pytest.mark.parametrize(("kind", "component"), SHIPPED)
def test_shipped_components_keep_the_contract(
    kind: str, component: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # trackers write where they are run
    shutil.copytree(trained / "data" / "tasks", tmp_path / "data" / "tasks")
    CHECKS[kind](component)


def test_options_other_than_the_defaults_keep_it_too() -> None:
    registry = Registry.load(REPOSITORY / "plugins")
    smoothed = {"cross_entropy": {"label_smoothing": 0.1}}
    check_loss(registry.build("losses", "cross_entropy", smoothed, ""))
    check_optimizer(registry.build("optimizers", "adamw", {"adamw": {"plain": True}}, ""))
    shares = {"weighted": {"shares": {"a": 0.2, "b/5.txt": 1, "b": 3}}}
    check_batch_sampler(registry.build("batch_samplers", "weighted", shares, ""))
    check_sampler(registry.build("samplers", "temperature", {"temperature": {"value": 0.0}}, ""))
    check_sampler(registry.build("samplers", "top_k", {"top_k": {"k": 1}}, ""))
    check_sampler(registry.build("samplers", "top_p", {"top_p": {"p": 0.01}}, ""))


def test_shipped_corpora_keep_the_contract(
    trained: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library(tmp_path_factory.mktemp("library"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    shutil.copytree(trained / "data" / "raw", tmp_path, dirs_exist_ok=True)
    shutil.copy(trained / "artifacts" / "splits" / "train.bin", tmp_path)
    (tmp_path / "talk.json").write_text('[{"prompt": "Hi", "completion": "Hello."}]')
    registry = Registry.load(REPOSITORY / "plugins", ["corpora"])
    for entry in registry.entries("corpora"):
        check_corpus(entry.component, tmp_path)


def test_shipped_exporters_keep_the_contract(few_texts: None, trained: Path, tmp_path: Path) -> None:
    checkpoint = load(trained / "artifacts" / "checkpoint", plugins=REPOSITORY / "plugins")
    source = export_source(checkpoint, (trained / "data" / "raw" / "text-00.txt").read_text())
    registry = Registry.load(REPOSITORY / "plugins", ["exporters", "models"])
    modern = registry.build("models", "modern", {}, "")
    for entry in registry.entries("exporters"):
        folder = tmp_path / entry.component.name
        folder.mkdir()
        check_exporter(entry.component, source, folder)
        shutil.rmtree(folder)
        folder.mkdir()
        if entry.component.name == "gguf":
            with pytest.raises(Refused, match="model 'modern'"):
                check_exporter(entry.component, tiny_source(modern), folder)
        elif entry.component.name != "onnx":  # slow: tests/plugins/test_exports.py has it
            check_exporter(entry.component, tiny_source(modern), folder)


class MeanLoss(Loss):
    """Returns one number for the batch instead of one per target."""

    name: ClassVar[str] = "mean"

    def __call__(self, output: Any, targets: Any) -> Any:
        return output.logits.logsumexp(-1).mean()


class UnmaskedLoss(Loss):
    """Learns from ignored targets."""

    name: ClassVar[str] = "unmasked"

    def __call__(self, output: Any, targets: Any) -> Any:
        return output.logits.logsumexp(-1)


class PaddedLoss(Loss):
    """Counts the head's padding rows as tokens."""

    name: ClassVar[str] = "padded"

    def __call__(self, output: Any, targets: Any) -> Any:
        logits = output.hidden @ output.head_weight.T
        return torch.where(targets == -100, 0.0, logits.logsumexp(-1))


class ForgetfulOptimizer(Optimizer):
    """Leaves the norms out."""

    name: ClassVar[str] = "forgetful"

    def build(self, named_parameters: Any) -> Any:
        return torch.optim.SGD([p for n, p in named_parameters if "norm" not in n], lr=0.1)


class Straying(BatchSampler):
    """Reads past the end of the text."""

    name: ClassVar[str] = "straying"

    def offset(self, sample: Any, seed: Any, index: Any) -> Any:
        return sample


class Remembering(BatchSampler):
    """Uses a random generator with state."""

    name: ClassVar[str] = "remembering"
    generator: ClassVar[random.Random] = random.Random(0)

    def offset(self, sample: Any, seed: Any, index: Any) -> Any:
        return index.text.in_order(self.generator.randrange(300), seed)


class Repeating(BatchSampler):
    """Claims to read each window once, but always reads the first one."""

    name: ClassVar[str] = "repeating"
    once_an_epoch: ClassVar[bool] = True

    def offset(self, sample: Any, seed: Any, index: Any) -> Any:
        return 0


class Listing(BatchSampler):
    """Stores the order of an epoch in memory."""

    name: ClassVar[str] = "listing"

    def offset(self, sample: Any, seed: Any, index: Any) -> Any:
        order = list(reversed(range(index.text.windows)))
        return index.text.in_order(order[sample % len(order)], seed)


class WanderingSampler(Sampler):
    """Adds random noise, which a sampler must not do."""

    name: ClassVar[str] = "wandering"

    def __call__(self, logits: Any, tokens: Any) -> Any:
        return logits + torch.rand_like(logits)


class EmptySampler(Sampler):
    """Excludes every token."""

    name: ClassVar[str] = "empty"

    def __call__(self, logits: Any, tokens: Any) -> Any:
        return torch.full_like(logits, -torch.inf)


class RevivingSampler(Sampler):
    """Restores tokens that another sampler excluded."""

    name: ClassVar[str] = "reviving"

    def __call__(self, logits: Any, tokens: Any) -> Any:
        return logits.clamp(min=-10)


class MeddlingCallback(EvalCallback):
    """Changes the model."""

    name: ClassVar[str] = "meddling"

    def on_evaluation(self, event: Any) -> Any:
        with torch.no_grad():
            next(event.model.parameters()).zero_()
        return {}


class ShadowingCallback(EvalCallback):
    """Returns a number with a name that is in use."""

    name: ClassVar[str] = "shadowing"

    def on_evaluation(self, event: Any) -> Any:
        return {"val.loss": 0.0}


class NormingCallback(EvalCallback):
    """Returns a number with a name that a later part of the step uses."""

    name: ClassVar[str] = "norming"
    number: str = "grad_norm"

    def before_update(self, event: Any) -> Any:
        return {self.number: 1.0}


class LayerCallback(EvalCallback):
    """Reads the weights of one layer."""

    name: ClassVar[str] = "layer"

    def after_step(self, event: Any) -> Any:
        return {"layer": float(event.model.blocks[-1].attention.out.weight.norm())}

    def on_evaluation(self, event: Any) -> Any:
        return {"embedding": float(event.model.token_embedding.weight.detach().norm())}


class Recorder(EvalCallback):
    """Has records_only."""

    name: ClassVar[str] = "recorder"
    records_only: ClassVar[bool] = True

    def on_evaluation(self, event: Any) -> Any:
        return {}


class NumberingRecorder(Recorder):
    """Has records_only, but returns a number."""

    def on_evaluation(self, event: Any) -> Any:
        return {"mine": 1.0}


class ShowingRecorder(Recorder):
    """Has records_only, but shows a text."""

    def on_evaluation(self, event: Any) -> Any:
        event.show("a text")
        return {}


class StoppingRecorder(Recorder):
    """Has records_only, but stops the run."""

    def on_evaluation(self, event: Any) -> Any:
        raise StopTraining("enough")


def test_the_trackers_only_record() -> None:
    entries = Registry.load(REPOSITORY / "plugins", ["eval_callbacks"]).entries("eval_callbacks")
    recorders = {entry.component.name for entry in entries if entry.component.records_only}  # type: ignore[attr-defined]
    assert recorders == {"dvclive", "mlflow", "tensorboard", "wandb"}
    check_eval_callback(Recorder)


class Untaught(Loss):
    """A loss that takes a teacher and has no option that names it."""

    name: ClassVar[str] = "untaught"

    def __call__(self, output: ModelOutput, targets: torch.Tensor, teacher: Any) -> torch.Tensor:
        return output.cross_entropy(targets)


class Counting(Loss):
    """A loss that counts its calls on its class."""

    name: ClassVar[str] = "counting"
    calls: ClassVar[list[int]] = []

    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        return output.cross_entropy(targets)


class Climbing(Schedule):
    """A schedule that does not begin at the peak, and ends above it where `peak` is more than 1."""

    name: ClassVar[str] = "climbing"
    peak: float = 2.0

    def __call__(self, step: int, steps: int, warmup: int) -> float:
        return self.peak * step / steps


def test_a_schedule_may_give_any_finite_number_from_0_on_as_in_training() -> None:
    check_schedule(Climbing)


@pytest.mark.parametrize(
    ("check", "component", "rule"),
    [
        (check_loss, Untaught, "teacher: str"),
        (check_loss, Counting, "changed calls of the class"),
        (check_schedule, Climbing(peak=-1.0), r"climbing.*step 1 "),
        (check_loss, MeanLoss, "one number per target"),
        (check_loss, UnmaskedLoss, "ignored target"),
        (check_loss, PaddedLoss, "padding rows"),
        (check_optimizer, ForgetfulOptimizer, "every parameter"),
        (check_batch_sampler, Straying, "no window begins at"),
        (check_batch_sampler, Remembering, "same sample"),
        (check_batch_sampler, Repeating, "each window exactly once"),
        (check_batch_sampler, Listing, "1,000,000 windows"),
        (check_sampler, WanderingSampler, "row must not depend|must not be random"),
        (check_sampler, EmptySampler, "keep at least one token"),
        (check_sampler, RevivingSampler, "−inf"),
        (check_eval_callback, MeddlingCallback, "must not change the model"),
        (check_eval_callback, ShadowingCallback, "already recorded"),
        (check_eval_callback, NormingCallback, "grad_norm is already recorded"),
        (check_eval_callback, NormingCallback(number="a, b"), "before_update returned .*'a, b'"),
        (check_eval_callback, NumberingRecorder, "records_only.*no numbers"),
        (check_eval_callback, ShowingRecorder, "records_only.*event.show"),
        (check_eval_callback, StoppingRecorder, "records_only.*not stop"),
    ],
)
def test_broken_components_are_refused(check: Callable[[Any], None], component: Any, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check(component)


def test_a_callback_may_read_the_parts_that_all_shipped_models_have() -> None:
    check_eval_callback(LayerCallback)
    registry = Registry.load(REPOSITORY / "plugins", ["models"])
    sizes = {"vocab_size": 11, "context_length": 8, "n_layers": 2, "n_heads": 2, "emb_dim": 8}
    shape = ModelShape(**sizes, dropout=0.0, pad_vocab_to=16)
    models = [registry.build("models", name, {}, "model").build(shape) for name in registry.names("models")]
    parts = [{name for name, _ in model.named_modules()} for model in [event().model, *models]]
    assert set.intersection(*parts[1:]) <= parts[0]


class Attends(nn.Module):
    """A model that mixes positions with a learned matrix; `wrong` is the rule that it breaks."""

    def __init__(self, shape: ModelShape, wrong: str) -> None:
        super().__init__()
        self.shape, self.wrong = shape, wrong
        self.token_embedding = nn.Embedding(shape.padded_vocab_size, shape.emb_dim)
        self.mix = nn.Parameter(torch.randn(shape.context_length, shape.context_length))
        self.blocks = nn.ModuleList([nn.Linear(shape.emb_dim, shape.emb_dim)])
        self.head = nn.Linear(shape.emb_dim, shape.padded_vocab_size, bias=False)
        if wrong == "names":
            self.places = nn.Embedding(2, 2)
        if wrong == "buffer":
            self.register_buffer("ones", torch.ones(()), persistent=False)
        self.scale = torch.ones(()) if wrong == "attribute" else 1.0

    def forward(self, ids: torch.Tensor, cache: Any = None) -> Any:
        if cache is not None:  # which holds the ids
            cache.append(ids if self.wrong != "cache" else ids.flip(1))
            whole = self.forward(torch.cat(cache, dim=1))
            return ModelOutput(whole.hidden[:, -ids.shape[1] :], whole.head_weight, whole.vocab_size)
        x = self.token_embedding(ids)
        if self.wrong == "rows":
            x = x + x.mean(dim=0)
        mix = self.mix[: ids.shape[1], : ids.shape[1]]
        x = (mix if self.wrong == "future" else mix.tril()) @ x * self.scale
        if self.wrong == "documents" or self.shape.document_end is None:
            x = x if self.wrong == "blocks" else self.blocks[0](x)
        x = x.detach() if self.wrong == "gradient" else x
        x = torch.rand_like(x) if self.wrong == "random" else x
        auxiliary = torch.ones(3) if self.wrong == "auxiliary" else 0.0
        if self.wrong == "blocks":
            x = torch.nn.functional.linear(x, self.blocks[0].weight, self.blocks[0].bias)
        return ModelOutput(x, self.head.weight, self.shape.vocab_size, auxiliary)

    def make_cache(self, batch: int) -> list[torch.Tensor]:
        return []


class Mixes(Model):
    """A model that breaks one rule, or none."""

    name: ClassVar[str] = "mixes"
    wrong: str = ""

    def build(self, shape: ModelShape) -> nn.Module:
        if self.wrong != "documents" and shape.document_end is not None:
            raise ValueError("it cannot mask")
        return Attends(shape, self.wrong)


def test_a_model_without_attention_keeps_the_contract() -> None:
    check_model(Mixes)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("future", "the first 1 tokens alone"),
        ("rows", "row must not depend"),
        ("cache", "with the cache"),
        ("documents", "document_end"),
        ("random", "the same ids must give the same logits"),
        ("gradient", "mix: .*gradient"),
        ("auxiliary", "auxiliary must be a scalar"),
        ("blocks", "`blocks`"),
        ("names", "places: .*`embedding`"),
        ("buffer", "the buffer ones must be persistent"),
        ("attribute", "after loading the state dict"),
    ],
)
def test_a_model_that_breaks_a_rule_is_told_which(wrong: str, rule: str) -> None:
    with pytest.raises((AssertionError, PluginError), match=rule):
        check_model(Mixes(wrong=wrong))
