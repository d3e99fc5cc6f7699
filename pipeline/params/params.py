"""Params: params.yaml as typed, checked, frozen values, one model for each stage.

Every key is required: params.yaml is the one home of every default, so DVC sees every value that decides a
result. Sections of components (losses, optimizers, …) are checked by the stage that loads those components.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.core.values import DEVICE, Dimension, InMemoryCount, LayerCount, NonNegativeInt, PositiveInt


def _utf8(text: str) -> str:
    if text != text.encode(errors="ignore").decode():
        raise ValueError("it holds half a surrogate pair, which is no text: remove it")
    return text


def _below(folder: str, example: str, path: str) -> str:
    if PurePosixPath(folder) not in PurePosixPath(path).parents or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} must lie below {folder}/, such as {example}: DVC sees changes only there")
    return path


Text = Annotated[str, AfterValidator(_utf8)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class _Options(Section):
    """A choice among components; every further key is a component's name with its options."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _options_stand_under_a_name(cls, values: Any) -> Any:
        keys = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        for key in keys:
            if not isinstance(values[key], dict):
                name = values.get("name", "NAME")
                raise ValueError(f"{key} is not a component with its options: is {name}.{key} meant?")
        return values

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The options by component name."""
        return self.__pydantic_extra__


class Choice(_Options):
    """One component: `name` chooses it, and its options stand under its name."""

    name: str


class Choices(_Options):
    """Several components: `use` lists them in order, and their options stand under their names."""

    use: Annotated[tuple[str, ...], Field(strict=False)]


class BpeParams(Section):
    vocab_size: Annotated[int, Field(ge=257, le=2**20)]
    """Tokens in all, the 256 bytes and end-of-text included."""


class TiktokenParams(Section):
    encoding: str
    """A tiktoken encoding, such as gpt2, r50k_base, cl100k_base or o200k_base."""


class TokenizerFileParams(Section):
    path: Annotated[str, AfterValidator(partial(_below, "data", "data/tokenizer.json"))]
    """A byte-level BPE as tokenizer.json or in tiktoken's form, or the tokenizer.json of a checkpoint, below data/
    (DVC sees changes only there)."""
    pattern: Text
    """How the tokenizer of a tiktoken file cuts text into words: `gpt2` or a regular expression."""
    end_of_text: Annotated[Text, Field(min_length=1)]
    """The special token that ends a document; it is added where the file has none of this name."""


class TokenizerParams(Section):
    name: Literal["bpe", "characters", "bytes", "tiktoken", "file"]
    """`bpe` is trained on the corpus, `characters` are those of the corpus, `bytes` need no training, `tiktoken`
    takes a published encoding, `file` a byte-level BPE made elsewhere."""
    bpe: BpeParams
    tiktoken: TiktokenParams
    file: TokenizerFileParams


class TokenizeParams(Section):
    corpus: Choice
    """Where the text comes from."""
    tokenizer: TokenizerParams
    end_of_text: bool
    """Whether each document ends with one end-of-text token."""


class SplitParams(Section):
    by: Literal["document", "position", "predefined"]
    """`document` puts whole documents on a side; `position` cuts the corpus: train first, then val, then test;
    `predefined` goes by folders or files named train, val (valid, validation) and test."""
    unit: Literal["tokens", "characters"]
    """What `by: position` counts; `characters` cuts the text and tokenizes both sides anew."""
    val: Fraction
    """The share of validation, of documents or of the corpus's length (`predefined` takes what there is)."""
    test: Fraction
    """The share of the test split; 0 means none."""
    seed: Seed
    """Which documents are held out; a document keeps its side when others come or go."""
    duplicates: Literal["report", "remove"]
    """Texts on two sides: `report` names them, `remove` keeps the held-out one (test's, then val's) only."""

    @model_validator(mode="after")
    def _leaves_enough(self) -> SplitParams:
        if self.val == 0:
            raise ValueError("val must be above 0: training is judged on it")
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} leave nothing to train on: lower one of them")
        return self


class ModelParams(Choice):
    context_length: Dimension
    """Tokens that the model sees at once."""
    n_layers: LayerCount
    """Transformer blocks."""
    n_heads: Dimension
    """Attention heads in each block."""
    emb_dim: Dimension
    """Width: numbers that describe a token; a multiple of n_heads."""
    dropout: Fraction
    """Share of activations dropped in training (embeddings and residual branches; in gpt2 attention, too)."""
    pad_vocab_to: Dimension
    """The head's rows are padded to a multiple of this; padding is never sampled and never in the loss."""
    document_mask: bool
    """Whether a token sees only its own document where a window holds several (needs `tokenize.end_of_text`)."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The keys that every architecture has."""
        return {key: getattr(self, key) for key in type(self).model_fields if key != "name"}

    @model_validator(mode="before")
    @classmethod
    def _keys_stand_where_they_are(cls, values: Any) -> Any:
        for old, new in _MOVED.items():
            if isinstance(values, dict) and old in values and not isinstance(values[old], dict):
                raise ValueError(f"{old} is now model.{new}")
        return values

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelParams:
        if self.emb_dim % self.n_heads:
            raise ValueError(f"emb_dim {self.emb_dim} must be a multiple of n_heads {self.n_heads}")
        return self


_MOVED = (
    {"family": "name", "qkv_bias": "gpt2.qkv_bias"}
    | {key: f"llama.{key}" for key in ("n_kv_heads", "mlp_dim", "rope_theta", "norm_eps")}
    | {key: f"gpt2.{key}, or model.llama.{key}" for key in ("tied_head", "init")}
)
"""Keys that the section `model` once had, and where they are now."""


def _number(amount: Any) -> Any:
    """A whole number as an int, so that 1e15 and 1000000000000000 are the same run."""
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
        raise ValueError(f"input should be a number such as 1600 or 1e15, not {amount!r}")
    return int(amount) if amount == int(amount) else amount


BudgetAmount = Annotated[int | float, Field(lt=1e30), BeforeValidator(_number)]


class BudgetParams(Section):
    unit: Literal["steps", "epochs", "tokens", "flops"]
    """What `amount` counts; `flops`: floating-point operations of training, as docs/comparing.md counts them."""
    amount: Annotated[BudgetAmount, Field(gt=0)]
    """How long to train; above 0; for flops it may be written as 1e15."""


class ScheduleParams(Choice):
    warmup_steps: NonNegativeInt
    """Steps in which the rate climbs, linearly, to its peak."""


class ExtensionParams(Section):
    amount: Annotated[BudgetAmount, Field(ge=0)]
    """How much longer a finished run is trained, in the budget's unit; 0 for not at all."""
    peak: Annotated[float, Field(gt=0, le=1)]
    """What the learning rate climbs to once more, as a share of its first peak (one that is still there stays)."""


class EvaluationParams(Section):
    every: PositiveInt
    """Steps between evaluations; step 0 and the last step are always evaluated."""
    windows: PositiveInt
    """Context windows of train and of val that each evaluation reads (the final one reads all of val)."""


class TrainParams(Section):
    seed: Seed
    """Decides the initial weights, the data's order and dropout."""
    init_from: Annotated[
        str, AfterValidator(lambda path: path and _below("data/weights", "data/weights/gpt2", path))
    ]
    """Weights to start from, below data/weights/ (DVC sees changes only there): a Hugging Face folder of a GPT-2,
    NanoChat or Llama model, or a checkpoint (its best weights, or one of its .pth files); empty for random ones.
    `model` and the tokenizer must be theirs, but for a shorter context."""
    budget: BudgetParams
    extension: ExtensionParams
    """Goes on with the run that the other params describe, from its finished state; that run is trained first where
    its state is not there."""
    batch_size: InMemoryCount
    """Context windows in an optimizer step."""
    micro_batch_size: InMemoryCount
    """Windows computed at once; smaller ones accumulate gradients and need less memory."""
    precision: Literal["auto", "fp32", "bf16"]
    """`bf16` computes in bfloat16 with float32 weights; `auto` does where the processor has instructions for
    it, and on an Apple GPU that passes a test."""
    shift_windows: bool
    """Whether each epoch cuts the training text at other places."""
    batch_sampler: Choice
    """The order in which the windows of the training text are read."""
    grad_clip: Annotated[float, Field(ge=0)]
    """Largest norm of the gradient; 0 leaves it as it is."""
    skip_bad_steps: NonNegativeInt
    """Steps whose loss or gradient is not finite that are skipped, each with a message; one more stops the run."""
    schedule: ScheduleParams
    """How the learning rate moves."""
    loss: Choice
    """What training minimises."""
    optimizer: Choice
    """How the weights follow the gradients."""
    log_every: NonNegativeInt
    """Steps between rows of metrics/steps.tsv (loss, rate, gradient norm, callbacks' numbers); 0 for none. It
    changes nothing else."""
    evaluation: EvaluationParams
    eval_callbacks: Choices
    """What is done after each evaluation, or at each step, of training."""


# ── evaluate and export ───────────────────────────────────────────────────────────────────────────

Weights = Literal["best", "last"]


class GenerationParams(Section):
    prompts: Annotated[tuple[Text, ...], Field(strict=False)]
    """Texts that the samples continue."""
    max_new_tokens: InMemoryCount
    """Length of a sample, in tokens."""
    seed: Seed
    """Decides the samples' draws."""


class EvaluateParams(Section):
    weights: Weights
    """`best` are those with the lowest validation loss, `last` those of the last step."""
    stride: Annotated[float, Field(gt=0, le=1)]
    """How far evaluation's windows move, as a share of the context; 1 means they do not overlap."""
    batch_size: InMemoryCount
    """Windows computed at once; it does not change the numbers."""
    generation: GenerationParams
    samplers: Choices
    """How the next token's distribution is changed before the draw."""
    metrics: Choices
    """What is measured beside the plain loss, over the same tokens or by tasks of its own."""
    groups: Annotated[tuple[Text, ...], Field(strict=False)]
    """Patterns of documents' names, such as `wiki/*`: the numbers of those documents apart, in evaluation.json."""


class ExportParams(Section):
    weights: Weights
    """Which weights are exported."""
    formats: Choices
    """The forms that the model is exported in; the first lies at the top of artifacts/export."""


class RuntimeParams(Section):
    device: Annotated[str, Field(pattern=DEVICE)]
    """auto, cpu, cuda, cuda:1 or mps; auto takes a GPU where there is one."""
    threads: Annotated[int, Field(ge=0, le=1024)]
    """Processor threads of each process; 0 means that the processes share the cores."""
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    """Processes that train together on this machine; `auto` is one for each GPU."""
    strategy: Literal["ddp", "fsdp"]
    """With several processes: `ddp` keeps the whole model on each, `fsdp` a share of it (for what does not fit)."""
    restarts: Annotated[int, Field(ge=0, le=1000)]
    """How often the processes are started again, from the last state, when one of them was killed or crashed."""
    compile: bool | Literal["auto"]
    """Whether blocks and loss are compiled: slow to begin, then faster; needs a C++ compiler. `auto` does for long
    runs, where there is one, but not on an Apple GPU."""
    keep_memory: bool
    """Whether the C library keeps freed memory for the next step instead of giving it back (glibc only): faster."""
    save_seconds: Annotated[float, Field(ge=0)]
    """Seconds between the states that an interrupted run resumes from, or longer where saving would cost over 3% of
    the time; 0 saves after every step, whatever it costs."""


class Params(Section):
    """All of params.yaml."""

    tokenize: TokenizeParams
    split: SplitParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    export: ExportParams
    runtime: RuntimeParams

    @model_validator(mode="after")
    def _documents_have_ends(self) -> Params:
        if self.model.document_mask and not self.tokenize.end_of_text:
            raise ValueError("model.document_mask needs tokenize.end_of_text: true: it is what ends a document")
        return self

    @model_validator(mode="after")
    def _amounts_are_whole(self) -> Params:
        train = self.train
        for key, amount in (("budget", train.budget.amount), ("extension", train.extension.amount)):
            if train.budget.unit != "flops" and not (isinstance(amount, int) and amount < 2**63):
                what = f"no whole number of {train.budget.unit} below 2^63"
                raise ValueError(
                    f"train.{key}.amount: {amount} is {what}: change it, or set train.budget.unit: flops"
                )
        return self
