"""The kinds of component a plugin can bring, and the frozen records that they receive.

A component is a frozen, stateless pydantic model: `name` is what params.yaml calls it, its fields are its
typed, bounded options (each with a default), its docstring is its description, and one method does the work.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from pipeline.core.values import STRICT, Layers, Size

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipeline.plugin.order import IndexedDocument, TokenIndex

IGNORED = -100
"""A target that is not to be learnt: 0 nats and no gradient there."""


class Component(BaseModel, ABC):
    """What every component is: a name, options that check themselves, and one working method."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_name=True,  # params.yaml, too, calls an option with an alias by its name
        validate_by_alias=True,
    )
    name: ClassVar[str]


# ── models ────────────────────────────────────────────────────────────────────────────────────────


@checked_dataclass(frozen=True, config=STRICT)
class ModelShape:
    """The sizes that every architecture has; most are keys of params.yaml's section `model`. They are checked.

    Attributes:
        vocab_size: V, the number of the tokenizer's ids.
        context_length: T, the most tokens seen at once.
        n_layers, n_heads, emb_dim: Blocks, heads in each, and width D, a multiple of n_heads.
        dropout: Share of activations dropped in training.
        pad_vocab_to: The rows of embedding and head are padded to a multiple of this.
        document_end: The id that ends a document, if a token is to see its own document only; else None.
    """

    vocab_size: Size
    context_length: Size
    n_layers: Layers
    n_heads: Size
    emb_dim: Size
    dropout: Annotated[float, Field(ge=0, lt=1)]
    pad_vocab_to: Size
    document_end: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ModelShape:
        if self.emb_dim % self.n_heads:
            raise ValueError(f"emb_dim {self.emb_dim} must be a multiple of n_heads {self.n_heads}")
        if self.document_end is not None and self.document_end >= self.vocab_size:
            raise ValueError(f"document_end {self.document_end} is no id of a vocabulary of {self.vocab_size}")
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the head."""
        return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.emb_dim // self.n_heads


@dataclass(frozen=True)
class ModelOutput:
    """What the model computed for a batch.

    Attributes:
        hidden: The last hidden states, after the final norm: [B, T, D].
        head_weight: The output head, padding rows included: [padded V, D].
        vocab_size: V, the real vocabulary; ids from V on are padding.
        auxiliary: A scalar in nats that training adds to the mean loss of a target, such as a mixture of experts'
            balance loss. It is part of `train.objective`, never of `train.loss` and `val.loss`.
    """

    hidden: torch.Tensor
    head_weight: torch.Tensor
    vocab_size: int
    auxiliary: torch.Tensor | float = 0.0

    @cached_property
    def logits(self) -> torch.Tensor:
        """The logits over the real vocabulary in float32 (or wider): [B, T, V]. Computed when first asked for."""
        logits = self.hidden @ self.head_weight[: self.vocab_size].to(self.hidden.dtype).T
        return logits if logits.element_size() >= 4 else logits.float()

    def cross_entropy(
        self, targets: torch.Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> torch.Tensor:
        """The negative log-likelihood of each target in nats [B, T], 0 where it is `IGNORED`.

        In training it is computed without all logits ever being held, many times cheaper than through `logits`.

        Args:
            targets: Ids [B, T].
            label_smoothing: Share of the target's probability that is spread evenly over the vocabulary.
            z_loss: Weight of the squared log-normaliser, added to each.
        """
        import torch.nn.functional as F

        flat = self.logits.flatten(0, -2)
        nats = F.cross_entropy(
            flat, targets.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
        ).view(targets.shape)
        if z_loss == 0:
            return nats
        normaliser = self.logits.logsumexp(dim=-1)
        return nats + z_loss * normaliser.square().masked_fill(targets == IGNORED, 0.0)


class Model(Component):
    """An architecture. Its fields are the options that it alone has; what every architecture has is the shape."""

    @abstractmethod
    def build(self, shape: ModelShape) -> torch.nn.Module:
        """A decoder over token ids, its weights drawn from torch's random generator.

        The module's `forward(ids, cache=None)` takes ids [B, T] and returns a `ModelOutput`; no token may change
        what is computed for those before it. All that decides the result is in its state dict: parameters and
        persistent buffers. Embeddings have "embedding" in their name, and a head of its own is "head.weight".

        A module may also have

        - `blocks`, an `nn.ModuleList` of its layers: they are compiled and sharded one by one, else the whole is;
        - `make_cache(batch)`, for generation: an object that `forward` reads and extends, so that ids continue
          those before. Its optional `crop(length)` forgets all but the first tokens. Without a cache, each new
          token computes the whole text.

        Raises:
            ValueError: there is no such model: a size does not fit, or it cannot mask at a `document_end`.
        """


# ── losses ────────────────────────────────────────────────────────────────────────────────────────


class Loss(Component):
    """What training minimises, token by token."""

    @abstractmethod
    def __call__(self, output: ModelOutput, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each target in nats.

        Args:
            output: What the model computed; use `output.logits` [B, T, V], or `hidden` and `head_weight`.
            targets: The ids to predict [B, T]; `IGNORED` (−100) means 0 nats and no gradient there.

        With a parameter of this name it is also given

        - `inputs`: the ids [B, T] that the model saw;
        - `step` and `total_steps`: the step, from 0 on, and how many the run has;
        - `teacher`: a frozen model, `teacher(inputs)` → `ModelOutput`; the option `teacher` names its folder below
          data/weights, a checkpoint with the same tokenizer.

        Returns:
            Nats [B, T]. The loop alone sums, scales, accumulates and counts tokens.
        """


# ── optimizers ────────────────────────────────────────────────────────────────────────────────────


class Optimizer(Component):
    """How the weights follow the gradients."""

    works_on_shards: ClassVar[bool] = False
    """Whether it is right, too, when each process holds a share of every parameter (`runtime.strategy: fsdp`), as
    what treats each number for itself is; else it is refused there."""

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        """A torch optimizer over every parameter, each exactly once.

        With a parameter `total_steps` it is also told how many optimizer steps the run has (one that is extended:
        before that). Where the optimizer has methods `train()` and `eval()`, they are called before and after
        training steps; the weights that `eval()` leaves are evaluated and published.

        Embeddings have "embedding" in their name, the output head is "head.weight", and everything else
        with two dimensions is a hidden matrix. The schedule multiplies each group's initial `lr`.
        """

    @staticmethod
    def decay_groups(
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float
    ) -> list[dict[str, Any]]:
        """The usual groups for `build`: matrices decay; norms, biases and embeddings do not."""
        decayed: list[torch.nn.Parameter] = []
        undecayed: list[torch.nn.Parameter] = []
        for name, parameter in named_parameters:
            (decayed if parameter.ndim >= 2 and "embedding" not in name else undecayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


# ── schedules ─────────────────────────────────────────────────────────────────────────────────────


class Schedule(Component):
    """How the learning rate moves after warm-up.

    Warm-up is the loop's: a linear climb, whose last step has the peak. A run that is extended climbs once more and
    follows its schedule again; one whose schedule is still at 1 at its end stays there.
    """

    @abstractmethod
    def __call__(self, step: int, steps: int, warmup: int) -> float:
        """What the optimizer's rates are multiplied by, 1 being the peak.

        Args:
            step: The step, from 0 on; warmup ≤ step < steps.
            steps: Optimizer steps of the run.
            warmup: Steps of warm-up.
        """

    @staticmethod
    def progress(step: int, steps: int, warmup: int, decay: float = 1.0) -> float:
        """The share of the way from the peak (the last step of warm-up) to the last step, from 0 to 1.

        Args:
            step, steps, warmup: As above.
            decay: The share of all steps that the way takes, at the end; 0 before.
        """
        peak = max(warmup - 1, 0, steps - 1 - round(decay * steps))
        return min((step - peak) / (steps - 1 - peak), 1.0) if step > peak else 0.0


# ── batch samplers ────────────────────────────────────────────────────────────────────────────────


class BatchSampler(Component):
    """The order in which the training text is read.

    The samples of a run are numbered from 0, over epochs, steps and ranks: step k of batches of B windows reads the
    samples k·B … k·B + B−1. So nothing is saved, and a resumed run reads on where it stopped.
    """

    once_an_epoch: ClassVar[bool] = False
    """Whether an epoch (`index.text.windows` samples) has each of its windows once; the contract suite checks."""

    @abstractmethod
    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        """Where in the training text the window of a sample begins: from 0 to `index.tokens` − T − 1.

        It must depend on its arguments and the options alone, and take about constant time and memory, however
        long the text is: `index.text.shuffled(sample, seed)`, say.

        Args:
            sample: The sample's number in the run.
            seed: `train.seed`.
            index: The training text.
        """

    def sources(self, documents: Iterator[IndexedDocument]) -> Iterable[str]:
        """The source that each document belongs to, in their order. It is called before training begins, and makes
        `index.sources`. Not overridden, the documents are not read, and there are none.

        Raises:
            ValueError: these documents do not suit the options; says why.
        """
        return ()


# ── eval callbacks ────────────────────────────────────────────────────────────────────────────────


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by an eval callback to end the run here; its text says why."""


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """What a callback is given, whenever it is called.

    Attributes:
        step: Optimizer steps done; in `before_update` the one at hand included.
        total_steps: Optimizer steps the whole run will do.
        metrics: The numbers that are known by now, such as "val.loss" (nats a token).
        model: The model, in eval mode: `model(ids)` takes ids [B, T] and returns a `ModelOutput`, whose `logits`
            are [B, T, V]. Only step methods may change it.
        batches: `batches("train")` or `batches("val")` yields ids [B, T + 1], on the model's device: the windows
            that evaluations during training read, the same ones each time; the last id of each is a target only.
        loss: `loss(ids)` is the plain negative log-likelihood of each id [B, T + 1] after the first, in nats
            [B, T], in float64 and without a gradient.
        memory: This callback's own dict of plain values and tensors; it is saved and restored with the run.
    """

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    model: torch.nn.Module
    batches: Callable[[str], Iterator[torch.Tensor]]
    loss: Callable[[torch.Tensor], torch.Tensor]
    memory: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(TrainingEvent):
    """One evaluation during training, as a callback sees it.

    Attributes:
        history: The numbers of the earlier evaluations, oldest first.
        generate: `generate(prompt, max_new_tokens, temperature=0.0)` continues a text.
        show: Prints a text and keeps it for the report.
    """

    history: Sequence[Mapping[str, float]]
    generate: Callable[..., str]
    show: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StepEvent(TrainingEvent):
    """One optimizer step, as a callback sees it.

    Every rank calls the step methods with the same numbers. The parameters of `model` have their gradients; with
    `runtime.strategy: fsdp` each rank holds a shard of every parameter and gradient. Random numbers are a function
    of the run's seed and the step.

    Attributes:
        full: `full(tensor)` is all of a parameter or gradient, where ranks hold shards; all ranks must call it.
    """

    full: Callable[[torch.Tensor], torch.Tensor]


class EvalCallback(Component):
    """Something to do during training: after an evaluation, or at each step. It has one of these methods, or more;
    those that it lacks cost nothing."""

    records_only: ClassVar[bool] = False
    """Whether it only writes elsewhere what it is told, as a tracker does: it returns no numbers, does not call
    `event.show`, does not raise `StopTraining`. So it cannot change a result, and adding, changing or removing it
    continues a run."""

    def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
        """Returns numbers to record beside the evaluation's (an empty dict for none). Only rank 0 calls it.

        Raises:
            StopTraining: the run should end here.
        """
        return {}

    def before_update(self, event: StepEvent) -> dict[str, float] | None:
        """Is called at each step when the gradients of all micro-batches and ranks are added up, before they are
        clipped and the optimizer steps; may change them. Returns numbers for metrics/steps.tsv."""

    def after_step(self, event: StepEvent) -> dict[str, float] | None:
        """Is called after each optimizer step; may change the weights. Returns numbers for metrics/steps.tsv."""

    def eval_weights(self, event: StepEvent) -> Mapping[str, torch.Tensor] | None:
        """Returns the weights that are evaluated and published in place of the trained ones, by the names of
        `event.model.named_parameters()` (None for the trained ones). Training goes on with its own.

        It must change nothing, and follow from `event.memory` and the model alone.
        """

    @classmethod
    def has(cls, method: str) -> bool:
        """Whether it has this method."""
        return getattr(cls, method) is not getattr(EvalCallback, method)


CALLBACK_METHODS = ("on_evaluation", "before_update", "after_step", "eval_weights")
"""What a callback can do."""


# ── samplers ──────────────────────────────────────────────────────────────────────────────────────


class Sampler(Component):
    """A change to the next token's distribution; samplers compose in the order they are listed."""

    @abstractmethod
    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """New logits.

        Args:
            logits: The next token's logits [B, V]; −inf means never.
            tokens: The ids so far [B, T].

        With a parameter of this name it is also given, and is then called for each sequence by itself (B is 1),

        - `prompt_length`: how many of `tokens` are the prompt;
        - `memory`: a dict of its own, empty when the prompt ends.

        Returns:
            Logits [B, V] with at least one finite value in each row. The core draws once, at the end.
        """


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TokenScores:
    """Some of the held-out targets, N of them in the text's order, and what the model said of each.

    The tensors are on the model's device. They are to be read during the call only: their memory is used again.

    Attributes:
        targets: The true ids [N], int64.
        nats: Their negative log-likelihoods [N], float64.
        correct: Whether the likeliest token was the true one [N], bool.
        confidence: The likeliest token's probability [N], float64.
        positions: How many tokens of the context came before each, less one [N], int64: 0 … T−1.
        bytes: The bytes of text that each stands for [N], int64: 0 for special tokens.
        logits: What the model predicted in their places [N, V], in float32 (or wider).
    """

    targets: torch.Tensor
    nats: torch.Tensor
    correct: torch.Tensor
    confidence: torch.Tensor
    positions: torch.Tensor
    bytes: torch.Tensor
    logits: torch.Tensor


class Metric(Component):
    """Numbers over held-out text, from sums over its tokens."""

    @abstractmethod
    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        """Adds further targets to the sums.

        Args:
            sums: Sums by names of the metric's own; one that is not there yet is 0, so `sums["hits"] += 1` works.
                The sums of two parts of a text, added up, must be those of the whole.
            scores: The targets: any number of them, at least one.
        """

    @abstractmethod
    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The numbers, by their names in metrics/evaluate.json, from the sums of at least one target."""


@dataclass(frozen=True)
class TextModel:
    """A trained model that is asked in texts.

    Attributes:
        score: `score(text, prompt="")` is the text's negative log-likelihood after the prompt, in nats, summed over
            its tokens.
        choose: `choose(prompt, options)` is the number of the likeliest option, from 0: of the lowest such sum.
        generate: `generate(prompt, max_new_tokens=50, temperature=0.0)` is the prompt and what follows;
            temperature 0 takes the likeliest token each time.
        folder: data/tasks, where the texts of tasks lie: the evaluate stage depends on it.
    """

    score: Callable[..., float]
    choose: Callable[[str, Sequence[str]], int]
    generate: Callable[..., str]
    folder: Path


class TaskMetric(Metric):
    """Numbers from a task of its own, not from the held-out text."""

    def update(self, sums: dict[str, float], scores: TokenScores) -> None:
        """Nothing: a task is not about the held-out text."""

    def result(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Nothing."""
        return {}

    @abstractmethod
    def run(self, model: TextModel) -> dict[str, float]:
        """The numbers, by the names that metrics/evaluate.json has for them under `tasks`.

        Raises:
            ValueError: the task's texts are missing or damaged; says which file and how to fix it.
        """


# ── corpora ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: Unique in the corpus; it decides the document's side when documents are split.
        text: The text, or its consecutive blocks when it may be too large for memory.
        split: "train", "val" or "test" where the corpus itself says so.
    """

    name: str
    text: str | Iterable[str]
    split: str | None = None


class Corpus(Component):
    """Where the text comes from."""

    @abstractmethod
    def documents(self, root: Path) -> Iterator[Document]:
        """The documents, always in the same order; `root` is the folder of the person's own texts, data/raw."""

    def notes(self, root: Path) -> Iterable[str]:
        """What a person should know before the texts are read, a line each: which files are left out, say."""
        return ()

    def decoded(self, data: Iterable[bytes], name: str) -> Iterator[str]:
        """A plain text in blocks, read as the corpus reads its own: what `pipeline score` uses. Here: UTF-8.

        Raises:
            ValueError: bytes that are no text; says which, and `name`.
        """
        decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
        for block in chain(data, [b""]):
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # error.object is what the decoder held back from the last block, then this block.
                place = offset + len(block) - len(error.object) + error.start
                raise ValueError(f"{name} is not UTF-8 at byte {place:,}: convert it") from None
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(block)


# ── exporters ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ExportSource:
    """A trained model as an exporter sees it.

    Attributes:
        config: The architecture: its `name`, the shape (vocab_size, context_length, n_layers, n_heads, emb_dim, …)
            and its own options, such as qkv_bias.
        weights: The model's state dict, in float32 on the CPU; the head without its padding rows.
        model: The checkpoint as a module, ids [B, T] → logits [B, T, V] in float32: on the CPU, in eval mode, to be
            traced or compiled.
        pattern: The tokenizer's split pattern (a regular expression).
        ranks: The tokenizer's byte sequences and their ids, which are also the order of merging. They hold every
            single byte, or else are the only characters that the tokenizer knows.
        special_tokens: Special tokens and their ids.
        end_of_text: Which of the special tokens ends a document.
        encode: text → ids, special tokens' texts being ordinary text.
        decode: ids → text.
        logits: What `model` gives, without gradients: ids [B, T] → the checkpoint's logits [B, T, V] in float32.
        greedy: `greedy(ids, n)` → the n ids that the checkpoint continues with, greedily.
        text: A piece of held-out text to prove the export with.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    model: torch.nn.Module
    pattern: str
    ranks: Mapping[bytes, int]
    special_tokens: Mapping[str, int]
    end_of_text: str
    encode: Callable[[str], np.ndarray[Any, Any]]
    decode: Callable[[Sequence[int]], str]
    logits: Callable[[torch.Tensor], torch.Tensor]
    greedy: Callable[[Sequence[int], int], list[int]]
    text: str


class Exporter(Component):
    """A form in which other programs load the model."""

    @abstractmethod
    def export(self, source: ExportSource, folder: Path) -> None:
        """Writes the export into `folder`, which is empty.

        Raises:
            ValueError: this format has no form for such a model; nothing is published.
        """

    @abstractmethod
    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        """Loads what was written with the program that will read it and holds it against the checkpoint.

        Returns:
            What was compared, with which reader and how far apart: it becomes verification.json.

        Raises:
            ValueError: the export does not reproduce the checkpoint; nothing is published.
        """


# ── the table of kinds ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        singular, plural: Its names; the plural is its folder under plugins/ and the end of its hook's name.
        base: What its components are subclasses of.
        chosen_by: The key of params.yaml that chooses among them.
        offers: What its working method is given by name beside its own arguments, where it has such parameters.
    """

    singular: str
    plural: str
    base: type[Component]
    chosen_by: str
    offers: tuple[str, ...] = ()

    @property
    def hook(self) -> str:
        return f"register_{self.plural}"


KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind("corpus", "corpora", Corpus, "tokenize.corpus.name"),
        Kind("model", "models", Model, "model.name"),
        Kind("loss", "losses", Loss, "train.loss.name", ("inputs", "step", "total_steps", "teacher")),
        Kind("optimizer", "optimizers", Optimizer, "train.optimizer.name", ("total_steps",)),
        Kind("schedule", "schedules", Schedule, "train.schedule.name"),
        Kind("batch sampler", "batch_samplers", BatchSampler, "train.batch_sampler.name"),
        Kind("eval callback", "eval_callbacks", EvalCallback, "train.eval_callbacks.use"),
        Kind("sampler", "samplers", Sampler, "evaluate.samplers.use", ("prompt_length", "memory")),
        Kind("metric", "metrics", Metric, "evaluate.metrics.use"),
        Kind("exporter", "exporters", Exporter, "export.formats.use"),
    )
}
