"""Params: params.yaml as typed, validated, frozen models, one for each stage.

Every key is required: params.yaml holds all defaults, so that DVC sees every value that decides a result. The stage
that loads the components (losses, optimizers, …) validates their options.
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
        raise ValueError("it holds a lone surrogate, which is not valid text: remove it")
    return text


def _below(folder: str, example: str, path: str) -> str:
    if PurePosixPath(folder) not in PurePosixPath(path).parents or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} must lie below {folder}/, such as {example}: DVC sees changes only there")
    return path


Text = Annotated[str, AfterValidator(_utf8)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class _Options(Section):
    """A choice of components. Every additional key is a component's name with its options."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The options by component name."""
        return self.__pydantic_extra__


class Choice(_Options):
    """A choice of one component by `name`; its options are under its name."""

    name: str


class Choices(_Options):
    """A choice of several components by `use`, in order; their options are under their names."""

    use: Annotated[tuple[str, ...], Field(strict=False)]


class BpeParams(Section):
    vocab_size: Annotated[int, Field(ge=257, le=2**20)]
    """The number of tokens, including the 256 bytes and end-of-text."""


class TiktokenParams(Section):
    encoding: str
    """A tiktoken encoding, such as gpt2, r50k_base, cl100k_base or o200k_base."""


class TokenizerFileParams(Section):
    path: Annotated[str, AfterValidator(partial(_below, "data", "data/tokenizer.json"))]
    """A byte-level BPE (a tokenizer.json or a tiktoken file) or a checkpoint's tokenizer.json, below data/, where
    DVC sees changes."""
    pattern: Text
    """The split pattern of a tiktoken file: `gpt2`, or a regular expression that cuts text into words."""
    end_of_text: Annotated[Text, Field(min_length=1)]
    """The special token that ends a document; it is added if the file lacks it."""


def _chat_template(value: str) -> str:
    return value if value in ("", "chatml") else _below("data", "data/template.jinja", value)


class TokenizerParams(Section):
    name: Literal["bpe", "characters", "bytes", "tiktoken", "file"]
    """`bpe` is trained on the corpus; `characters` has the characters of the corpus; `bytes` has the 256 bytes;
    `tiktoken` is a published encoding; `file` is a tokenizer from a file."""
    bpe: BpeParams
    tiktoken: TiktokenParams
    file: TokenizerFileParams
    special_tokens: Annotated[tuple[Annotated[Text, Field(min_length=1)], ...], Field(strict=False)]
    """Names of further special tokens, such as `<|tool|>`. Their ids follow the vocabulary."""
    chat_template: Annotated[str, AfterValidator(_chat_template)]
    """How conversations are written: `chatml`, or a template below data/: a Jinja file in the form of Hugging
    Face's chat_template, or a tokenizer_config.json. Empty: that of the tokenizer's file, else ChatML if the corpus
    has conversations."""


def _folder(path: str) -> str:
    if "://" in path:
        raise ValueError(f"{path!r} is a URL: mount it, and give the folder")
    return path


class TokenizeParams(Section):
    corpus: Choice
    """The source of the text."""
    tokenizer: TokenizerParams
    end_of_text: bool
    """Whether each document ends with an end-of-text token."""
    store: Annotated[Text, AfterValidator(_folder)]
    """A folder, such as one on a larger disk, for the token files of a large corpus. `artifacts/tokens` then has
    their index only, and DVC does not copy them. A relative path starts at the project; empty: artifacts/tokens."""


class SplitParams(Section):
    by: Literal["document", "position", "predefined"]
    """`document` assigns whole documents at random; `position` cuts the corpus: train, then val, then test;
    `predefined` uses folders or files named train, val (or valid, validation) and test."""
    unit: Literal["tokens", "characters"]
    """The unit of the cuts of `by: position`; `characters` cuts the text and tokenizes the parts again."""
    val: Fraction
    """The share of val: of the documents, or of the corpus's length. `predefined` ignores it."""
    test: Fraction
    """The share of test; 0 for no test split. `predefined` ignores it."""
    seed: Seed
    """Decides which documents are held out. A document keeps its split if others are added or removed."""
    duplicates: Literal["report", "remove"]
    """Equal texts in two splits: `report` prints them; `remove` keeps only the held-out one (in test, else in
    val)."""

    @model_validator(mode="after")
    def _leaves_enough(self) -> SplitParams:
        if self.val == 0:
            raise ValueError("val must be above 0: training is evaluated on it")
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} leave nothing for train: lower one of them")
        return self


class ModelParams(Choice):
    context_length: Dimension
    """The number of tokens that the model sees."""
    n_layers: LayerCount
    """The number of transformer blocks."""
    n_heads: Dimension
    """The number of attention heads per block."""
    emb_dim: Dimension
    """The embedding size, a multiple of n_heads."""
    dropout: Fraction
    """The dropout of embeddings and residual branches in training; in gpt2 also of attention weights."""
    pad_vocab_to: Dimension
    """Pads the vocabulary's rows to a multiple of this number. Padding is neither sampled nor in the loss."""
    document_mask: bool
    """Whether tokens see only their own document in a window of several; needs `tokenize.end_of_text`."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The keys that all architectures share."""
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
"""Old keys of the section `model`, and the new ones."""


def _number(amount: Any) -> Any:
    """A whole number as an int, so that 1e15 and 1000000000000000 are the same run."""
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not math.isfinite(amount):
        raise ValueError(f"input should be a number such as 1600 or 1e15, not {amount!r}")
    return int(amount) if amount == int(amount) else amount


BudgetAmount = Annotated[int | float, Field(lt=1e30), BeforeValidator(_number)]


class BudgetParams(Section):
    unit: Literal["steps", "epochs", "tokens", "flops"]
    """The unit of `amount`. `flops` are the floating-point operations of training (see docs/comparing.md)."""
    amount: Annotated[BudgetAmount, Field(ge=0)]
    """The length of training; with 0 the checkpoint is where training begins. For flops it may be written as
    1e15."""


class ScheduleParams(Choice):
    warmup_steps: NonNegativeInt
    """The number of steps in which the learning rate rises linearly to its peak."""


class ExtensionParams(Section):
    amount: Annotated[BudgetAmount, Field(ge=0)]
    """How much longer to train a finished run, in the budget's unit; 0 for no extension."""
    peak: Annotated[float, Field(gt=0, le=1)]
    """The second peak of the learning rate, as a share of the first one. A rate that is still at its peak stays
    there."""


class EvaluationParams(Section):
    every: PositiveInt
    """The number of steps between evaluations. Step 0 and the last step are always evaluated."""
    windows: PositiveInt
    """The number of windows of train and of val in each evaluation. It computes in the training precision; what
    metrics/train.json holds is computed at the end, in float32."""
    final_tokens: NonNegativeInt
    """The number of tokens of val that the final evaluation reads, in evenly spaced windows; 0 for all of val. The
    stage evaluate reads all of it in any case."""


class TrainParams(Section):
    seed: Seed
    """Decides the initial weights, the order of the data, and dropout."""
    init_from: Annotated[
        str, AfterValidator(lambda path: path and _below("data/weights", "data/weights/gpt2", path))
    ]
    """Pretrained weights below data/weights/, where DVC sees changes: a Hugging Face folder of a GPT-2, NanoChat or
    Llama model, a checkpoint's folder (its best weights), or one of its .pth files. Empty for random weights.
    `model` and the tokenizer must match; the context may be shorter, and the tokenizer may add special tokens."""
    budget: BudgetParams
    extension: ExtensionParams
    """Trains the run of the other params for longer, from its finished checkpoint; without one, that run is trained
    first."""
    batch_size: InMemoryCount
    """The number of context windows per optimizer step."""
    micro_batch_size: InMemoryCount
    """The number of windows per forward and backward pass. Fewer need less memory; gradients are accumulated."""
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    """`bf16` computes in bfloat16 with float32 weights. `auto` chooses it if the device has instructions for it; an
    Apple GPU must pass a test. `fp16` computes in float16 and scales the loss, so that small gradients are not
    rounded to 0; `auto` chooses it on CUDA GPUs without bfloat16."""
    shift_windows: bool
    """Whether each epoch cuts the training text at other offsets."""
    pack_documents: bool
    """Whether a window holds whole consecutive documents, such as conversations, instead of a stretch of the text:
    only a document longer than the context is cut, after a part that is learnt. Needs `model.document_mask`;
    `shift_windows` has no effect then."""
    batch_sampler: Choice
    """The order of the training windows."""
    grad_clip: Annotated[float, Field(ge=0)]
    """The maximum norm of the gradient; 0 for no clipping."""
    skip_bad_steps: NonNegativeInt
    """The maximum number of steps to skip, with a message, because their loss or gradient is not finite; one more
    stops the run."""
    schedule: ScheduleParams
    """The schedule of the learning rate."""
    loss: Choice
    """The training loss."""
    optimizer: Choice
    """The optimizer."""
    log_every: NonNegativeInt
    """The number of steps between rows of metrics/steps.tsv (loss, learning rate, gradient norm, callbacks'
    numbers); 0 for no rows. It does not change the result."""
    evaluation: EvaluationParams
    eval_callbacks: Choices
    """Actions in each step or after each evaluation."""


# ── evaluate and export ───────────────────────────────────────────────────────────────────────────

Weights = Literal["best", "last"]


class GenerationParams(Section):
    prompts: Annotated[tuple[Text, ...], Field(strict=False)]
    """The prompts of the samples."""
    max_new_tokens: InMemoryCount
    """The maximum length of a sample, in tokens."""
    seed: Seed
    """The seed of the samples."""


class EvaluateParams(Section):
    weights: Weights
    """`best` for the lowest validation loss, `last` for the last step."""
    stride: Annotated[float, Field(gt=0, le=1)]
    """The stride of the evaluation windows, as a share of the context; 1 for no overlap."""
    batch_size: InMemoryCount
    """The number of windows per forward pass. It does not change the metrics."""
    generation: GenerationParams
    samplers: Choices
    """Changes to the distribution of the next token before each draw, in order."""
    metrics: Choices
    """Metrics beside the plain loss: over the same tokens, or from tasks."""
    groups: Annotated[tuple[Text, ...], Field(strict=False)]
    """Patterns of document names, such as `wiki/*`: evaluation.json has the metrics of each group."""


class ExportParams(Section):
    weights: Weights
    """The weights to export."""
    formats: Choices
    """The export formats. The first one is written to artifacts/export itself, the others to subfolders."""


class RuntimeParams(Section):
    device: Annotated[str, Field(pattern=DEVICE)]
    """auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""
    threads: Annotated[int, Field(ge=0, le=1024)]
    """CPU threads per process; 0 shares the cores among the processes."""
    processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    """The number of processes on this machine; `auto` is one per GPU."""
    strategy: Literal["ddp", "fsdp"]
    """For several processes: `ddp` keeps the full model on each; `fsdp` shards it, for models that do not fit."""
    dask: Text
    """The address of the scheduler of a Dask cluster, such as tcp://host:8786, whose workers tokenize a large
    corpus; empty for the processors of this machine."""
    restarts: Annotated[int, Field(ge=0, le=1000)]
    """How often to restart the processes from the last checkpoint after a crash."""
    compile: bool | Literal["auto", "blocks", "model"]
    """Whether to compile the model and its loss: a slow start, then faster steps. It needs a C++ compiler. `blocks`
    compiles each block by itself, `model` the whole model at once; `true` is `model` on a CUDA GPU, else `blocks`.
    `fsdp` always compiles blocks. `auto` is `true` for long runs if there is a compiler, except on an Apple GPU."""
    recompute: bool | Literal["auto"]
    """Whether the backward pass computes the activations of each block again, instead of keeping them: about a
    third more work, for less memory. `auto` does it under `fsdp`, and on a CUDA GPU where they would not fit."""
    keep_memory: bool
    """Whether the C library keeps freed memory for the next step, which is faster (glibc only)."""
    save_seconds: Annotated[float, Field(ge=0)]
    """The minimum number of seconds between training checkpoints; more if saving would take over 3% of the time. 0
    saves after every step."""


class Params(Section):
    """All params."""

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
            raise ValueError("model.document_mask needs tokenize.end_of_text: true, to mark the ends of documents")
        if self.train.pack_documents and not self.model.document_mask:
            raise ValueError(
                "train.pack_documents needs model.document_mask: true, so that documents of one window do not see "
                "each other"
            )
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
