"""How many bytes training needs on each device; known before a model is made.

The formulas count what autograd keeps of each operation, after Korthikanti et al. (2022, "Reducing Activation
Recomputation in Large Transformer Models", section 4.1), for this model and this loss, and what FSDP gathers and
exchanges beside it; tests hold them, for every family, against what torch's allocator gives out on a CPU. What is
different on a GPU (LayerNorm and softmax in float32) is taken from torch's source and was not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.files import readable
from pipeline.model.attention import PLAIN_UP_TO
from pipeline.model.config import GPTConfig
from pipeline.model.linear_cross_entropy import chunks


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs on one device, which is one rank's.

    Attributes:
        weights: The parameters in float32.
        gradients: Of each of them in float32, as a step of several micro-batches accumulates them.
        optimizer: The optimizer's state.
        activations: The most that one micro-batch adds: what is saved for backward (under bf16 also the matrices'
            bfloat16 copies; under FSDP the input of each block, and all else of one block at a time), and what
            lives beside it at the worst moment, which with a large vocabulary is the loss: the head's gradient, and
            the logits of some rows with their log-softmax.
        gathered: Under FSDP, the parameters and unreduced gradients that are whole at that moment, with the buffers
            that they travel in.
        saving: In the machine's own memory, on the first rank only: the copy of weights, optimizer state and best
            weights that is written in the background; under FSDP that of the whole model, which is made once, to
            publish it.
        shared: Whether the device's memory is the machine's own.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    saving: int
    shared: bool

    @property
    def lasting(self) -> int:
        """Bytes that stay from step to step: weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Bytes on the device; a GPU's do not include `saving`."""
        return self.lasting + self.activations + self.gathered + (self.saving if self.shared else 0)

    def __str__(self) -> str:
        """The total and its parts, as people read them."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "gathered": self.gathered, "saving": self.saving * self.shared}
        text = ", ".join(f"{name} {readable(size)}" for name, size in parts.items() if size)
        beside = "" if self.shared else f"; and {readable(self.saving)} of the machine's memory for saving"
        return f"{readable(self.total)} ({text}){beside}"


def estimate(
    config: GPTConfig,
    micro_batch_size: int,
    precision: str,
    optimizer_bytes: float = 8.0,
    device_type: str = "cpu",
    strategy: str = "ddp",
    processes: int = 1,
) -> Memory:
    """What a training step needs on the first rank's device, with the shipped cross-entropy and without compiling.

    Not counted: Python and torch themselves, a GPU's driver, fragments, and the workspace of matrix products.

    Args:
        config: The model.
        micro_batch_size: B, windows that a rank computes at once.
        precision: "fp32", or "bf16" for autocast with float32 weights.
        optimizer_bytes: The optimizer's state, for each parameter; AdamW keeps two float32.
        device_type: "cpu", "cuda" or "mps".
        strategy: "ddp" keeps everything on every rank, the gradients in its buckets and nowhere else; "fsdp" (FSDP2
            over every block and over the rest) divides weights, gradients and optimizer state by the number of
            ranks, exchanges gradients after each micro-batch, and computes each block again in backward. A single
            process has no use for either.
        processes: Ranks that train together.
    """
    sharded = strategy == "fsdp" and processes > 1
    count = config.parameter_count
    share = count / processes if sharded else count
    sizes = _sizes(config, micro_batch_size, precision, device_type)
    peaks = _sharded_peaks(config, sizes) if sharded else _peaks(config, sizes)
    activations, gathered = max(peaks.values(), key=sum)
    return Memory(
        weights=round(4 * share),
        gradients=round(4 * share),
        optimizer=round(optimizer_bytes * share),
        activations=activations,
        gathered=gathered,
        saving=round((4 + optimizer_bytes + 4) * count),
        shared=device_type != "cuda",
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes of what a micro-batch computes with.

    Attributes:
        hidden: One tensor [B, T, D] of the residual stream, in the precision of the matrix products.
        block_input: What a block is computed again from: a hidden tensor, and what dropout leaves, a byte a number.
        attention, mlp: What a block saves for backward, by its halves.
        beside: What is saved outside of blocks: the last norm's input and output, which is the model's output and
            lives as long as the micro-batch, the ids, the embedding's dropout mask, what each token may see.
        embedding: Its weights in float32, and the head's.
        loss: What the loss takes beside, at the most: the gradients of hidden states and head, and the logits of
            some rows with their log-softmax and gradient.
        matrix, matrices: Of the MLP in float32: one matrix, and all of them.
        qkv, out: Attention's matrices in float32.
        in_attention, in_mlp: The gradients that move inside that half of a block, at the most; under dropout, which
            makes its mask from bytes, attention has its worst moment in forward.
        gate: The same of the MLP while its gate goes backward, which the gradient of no matrix waits for; less what
            the last norm and dropout have let go by then. 0 where there is no gate.
        at_end: What moves and is left of a block when its backward ends: the input of attention, the gradients of
            queries, keys and values, and under bf16 that of their matrix before it is cast.
    """

    hidden: int
    block_input: int
    attention: int
    mlp: int
    beside: int
    embedding: int
    loss: int
    matrix: int
    matrices: int
    qkv: int
    out: int
    in_attention: int
    in_mlp: int
    gate: int
    at_end: int


def _sizes(config: GPTConfig, micro_batch_size: int, precision: str, device_type: str) -> _Sizes:
    tokens = micro_batch_size * config.context_length
    numbers, matrix = tokens * config.emb_dim, 4 * config.inner_dim * config.emb_dim
    half = precision == "bf16"
    hidden = (2 if half else 4) * numbers
    width_of_norms = _width_of_norms(config, precision, device_type)
    normed = width_of_norms * numbers
    attention, mlp = _saved_by_block(config, micro_batch_size, precision, device_type)
    dropped, drawn = (hidden, 2 * numbers) if config.dropout else (0, 0)
    mask = tokens * config.context_length if config.document_end is not None else 0
    indices = 32 * tokens  # ids, targets and places; and the norm's statistics
    embedded = 4 * numbers if config.modern else 0  # the norm after the embedding saves its input
    pairs, width = _pairs(config, micro_batch_size), _width_of_probabilities(config, precision, device_type)
    drops = _drops_probabilities(config)
    qkv = 4 * config.qkv_dim * config.emb_dim
    inside = (2 if half else 4) * tokens * config.inner_dim
    return _Sizes(
        hidden=hidden,
        block_input=hidden + drawn + (pairs if drops else 0),
        attention=attention,
        mlp=mlp,
        beside=(3 if config.llama else 2) * normed + embedded + dropped + mask + indices,
        embedding=4 * config.padded_vocab_size * config.emb_dim,
        loss=normed + _loss(config, tokens, width_of_norms, device_type),
        matrix=matrix,
        matrices=(3 if config.llama else 2) * matrix,
        qkv=qkv,
        out=4 * config.emb_dim**2,
        in_attention=3 * hidden + (width + 1 if drops else 2 * width) * pairs,
        in_mlp=inside,
        gate=2 * inside - hidden - dropped if config.llama else 0,
        at_end=2 * hidden + hidden * config.qkv_dim // config.emb_dim + (qkv // 2 if half else 0),
    )


def _loss(config: GPTConfig, tokens: int, width: int, device_type: str) -> int:
    """Bytes that the cross-entropy takes for the head's gradient and the logits of some rows at a time: while there
    is their log-softmax, or while there is their gradient and what they add to the head's.

    Args:
        config: The model.
        tokens: All rows.
        width: Bytes of a hidden state's number, and of a logit; 2 in bfloat16, where the head is copied, too.
        device_type: A CPU casts bfloat16 numbers in memory, where a GPU does as it reads them.
    """
    rows: list[int] = [part.stop - part.start for part in chunks(tokens, config.padded_vocab_size)]
    logits = max(rows) * config.padded_vocab_size
    head = 4 * config.padded_vocab_size * config.emb_dim
    copied, casts = (head // 2 if width == 2 else 0), width == 2 and device_type != "cuda"
    before = head if len(rows) > 1 else 0  # what earlier rows gave; the first ones' is kept as it is, or cast
    added = copied + (before if width == 4 or casts else 0)
    return copied + max(before + (10 if casts else 8) * logits, head + added + width * logits)


def _peaks(config: GPTConfig, sizes: _Sizes) -> dict[str, tuple[int, int]]:
    """(activations, gathered) in bytes, at each moment of a micro-batch that can be the worst one."""
    saved = sizes.beside + config.n_layers * (sizes.attention + sizes.mlp)
    waiting = sizes.embedding if config.tied else 0  # the head's gradient, for the embedding's
    inside = saved + waiting  # and the largest gradient of a matrix, before it is added
    return {
        "loss": (saved + sizes.loss, 0),
        "MLP": (inside + sizes.matrix + sizes.in_mlp, 0),
        "gate": (inside + sizes.gate, 0),
        "attention": (inside + max(sizes.matrix, sizes.qkv) - sizes.mlp + sizes.in_attention, 0),
        "embedding": (sizes.beside + waiting + sizes.embedding, 0),
    }


def _sharded_peaks(config: GPTConfig, sizes: _Sizes) -> dict[str, tuple[int, int]]:
    """The same under FSDP2, where a block keeps its input only until it is computed again in backward.

    The root (embeddings, last norm, head) is gathered all along, and the gradient of its head waits to the end. A
    block that goes backward has its weights and, one by one, their gradients; and beside it there are the gradients
    of the block after it, which are being exchanged, and the weights of the block before it, which come early.
    """
    last = config.n_layers - 1
    block = 4 * config.block_parameter_count
    root = 4 * config.parameter_count - config.n_layers * block
    # Weights and the buffers that they came in, of the root and of the first block.
    peaks = {"first block": (2 * sizes.hidden, 2 * (root + block))}
    peaks["loss"] = (sizes.beside + config.n_layers * sizes.block_input + sizes.loss, root)
    # The last block has no block after it. The one before it has, and no other keeps more inputs.
    for number, neighbours in {last: min(last, 1), max(last - 1, 0): min(last, 2)}.items():
        inside = sizes.beside + number * sizes.block_input  # of the last norm's tensors, one is now the gradient
        held = root + sizes.embedding + (1 + neighbours) * block
        mlp = inside + sizes.attention + sizes.mlp + max(sizes.in_mlp, sizes.gate)
        attention = inside + sizes.attention + sizes.in_attention
        peaks[f"MLP of block {number}"] = (mlp, held + sizes.matrix)
        peaks[f"attention of block {number}"] = (attention, held + sizes.matrices + sizes.out)
        peaks[f"end of block {number}"] = (inside + sizes.at_end, held + block)
    peaks["embedding"] = (sizes.beside - sizes.hidden, root + 2 * sizes.embedding + block)
    return peaks


def _saved_by_block(config: GPTConfig, micro_batch_size: int, precision: str, device_type: str) -> tuple[int, int]:
    """Bytes that one block saves for backward: its attention's half, and its MLP's.

    Both save the norm's input with its statistics, the input of each matrix and, under bf16, the matrix itself in
    bfloat16; then attention its queries, keys and values, with its log-sums or its probabilities, and the MLP its
    GELU's input, or the positive part of it, or what its gate is made of. The modern family saves queries and keys
    before their norm, too, and Llama's what its norms' weights are multiplied with.
    """
    batch, length = micro_batch_size, config.context_length
    tokens, numbers = batch * length, batch * length * config.emb_dim
    computed = 2 if precision == "bf16" else 4  # bytes of a number that a matrix gives
    copied = 2 if precision == "bf16" else 0  # bytes of a matrix's number
    dropped = computed * numbers if config.dropout else 0
    statistics = (computed if config.rotary else 8) * tokens
    norm = (2 if config.llama else 1) * _width_of_norms(config, precision, device_type) * numbers + statistics
    width = _width_of_probabilities(config, precision, device_type)
    if width:
        seen = (1 if config.document_end is None else batch) * length**2
        kept = 3 if _drops_probabilities(config) else 1
        attended = 3 * width * numbers + kept * width * _pairs(config, batch) + seen
    else:
        mask = computed * tokens * length if config.document_end is not None else 0
        qkv = tokens * config.qkv_dim
        if config.rotary:
            # Keys and values that several queries share are repeated. Other values keep alive the queries and keys
            # that they were computed with. And what attention gives is laid out by heads, which the next matrix
            # cannot read: it has a copy.
            turned = tokens * (config.n_heads + config.kv_heads) * config.head_dim
            qkv = turned + numbers + (2 * numbers if config.kv_heads < config.n_heads else qkv)
        attended = computed * qkv + 4 * tokens * config.n_heads + mask
    if config.rotary and precision == "bf16":
        attended += computed * length * config.head_dim  # the cast cosines and sines
    if config.modern:
        attended += computed * (2 * numbers + 2 * tokens * config.n_heads)
    matrices = copied * (config.qkv_dim + config.emb_dim) * config.emb_dim
    attention = norm + 2 * computed * numbers + attended + dropped + matrices
    wide = 3 if config.llama else 2  # matrices of the MLP, and what it saves of its inner width
    inside = tokens * config.inner_dim
    matrices = copied * wide * config.inner_dim * config.emb_dim
    mlp = norm + computed * (numbers + wide * inside) + dropped + matrices
    return attention, mlp


def _width_of_norms(config: GPTConfig, precision: str, device_type: str) -> int:
    """Bytes of a number that a norm saves and gives: autocast has LayerNorm compute in float32, but on a CPU."""
    return 2 if precision == "bf16" and (config.rotary or device_type == "cpu") else 4


def _width_of_probabilities(config: GPTConfig, precision: str, device_type: str) -> int:
    """Bytes of each of attention's probabilities [B, n_heads, T, T], where it takes a way that keeps them, else 0.

    On a CPU it does under dropout and, in bf16, while they are few; MPS has no other way that knows backward, and
    there autocast has their softmax computed in float32.
    """
    if device_type == "mps":
        return 4
    half = precision == "bf16"
    few = half and config.context_length <= PLAIN_UP_TO
    plain = device_type == "cpu" and (few or _drops_probabilities(config))
    return (2 if half else 4) if plain else 0


def _drops_probabilities(config: GPTConfig) -> bool:
    """Whether attention's probabilities are dropped, too."""
    return config.dropout > 0 and not config.rotary


def _pairs(config: GPTConfig, micro_batch_size: int) -> int:
    """Numbers of one tensor [B, n_heads, T, T]."""
    return micro_batch_size * config.n_heads * config.context_length**2
