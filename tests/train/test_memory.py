"""The estimate of memory against bytes that were counted: what lasts, what a micro-batch adds, what FSDP leaves."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY
from small_config import small_config
from torch.autograd.profiler_util import MEMORY_EVENT_NAME
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.core.files import readable
from pipeline.model import linear_cross_entropy
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.plugin.registry import Registry
from pipeline.train.distributed.ranks import DistributedRanks
from pipeline.train.memory import Memory, estimate
from pipeline.train.memory_check import bytes_per_parameter
from pipeline.train.parallel import parallelize
from pipeline.train.ranks import Ranks

REGISTRY = Registry.load(REPOSITORY / "plugins", ["losses", "optimizers"])
LOSS = REGISTRY.build("losses", "cross_entropy", {}, "")
CPU = torch.device("cpu")


WITHIN = {"fp32": 0.05, "bf16": 0.1}
"""A CPU multiplies bfloat16 with scratch memory of its own, which the estimate leaves out."""

# Each family, with a tied head and without; the modern one has none.
FAMILIES = [("gpt2", True), ("gpt2", False), ("modern", False), ("llama", False)]

# What most of the activations are, in turn; with the number of windows.
SHAPES = {
    "many blocks": (small_config(n_layers=8), 4),
    "one block": (small_config(n_layers=1), 4),
    "matrices": (small_config(context_length=8, emb_dim=256), 1),
    "matrices and ids": (small_config(context_length=8, emb_dim=256, n_layers=1, vocab_size=500), 1),
    "attention": (small_config(context_length=256, n_heads=16), 2),
    "one attention": (small_config(context_length=256, n_heads=16, n_layers=1), 2),
    "beyond plain attention": (small_config(context_length=576), 1),
    "logits": (small_config(vocab_size=3000, emb_dim=16, n_layers=1), 4),
    "the embedding": (small_config(vocab_size=5000, context_length=16, n_layers=1), 1),
    "a bit of all": (small_config(vocab_size=500, n_layers=4, n_heads=4, qkv_bias=False), 4),
}


def peak(work: Callable[[], None]) -> int:
    """The most bytes that torch's allocator gives out at once during `work`, beyond those before it.

    The profiler only listens. What holds on to tensors, as a TorchDispatchMode does, keeps autograd from adding
    gradients in place, and so counts what is not there otherwise.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    found = profiled.profiler.kineto_results.events()
    events = sorted(
        (event for event in found if event.name() == MEMORY_EVENT_NAME), key=lambda event: event.start_ns()
    )
    return max(accumulate(event.nbytes() for event in events))


def micro_batch(model: GPT, windows: int, precision: str) -> None:
    """Forward and backward as training does them, through the shipped loss."""
    ids = torch.randint(model.config.vocab_size, (windows, model.config.context_length + 1))
    cached = not isinstance(model, FSDPModule)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached):
        output = model(ids[:, :-1])
    loss = LOSS(output, ids[:, 1:].contiguous()).sum()
    (loss / ids.numel()).backward()
    loss.item()  # the loop still holds `output` here


def counted_activations(config: GPTConfig, windows: int, precision: str) -> int:
    """Bytes that a micro-batch adds at its worst to what there is when gradients are accumulated already."""
    torch.manual_seed(0)
    model = GPT(config).train()
    micro_batch(model, windows, precision)
    return peak(lambda: micro_batch(model, windows, precision))


def counted_saved(config: GPTConfig, windows: int, precision: str) -> int:
    """Bytes of all storages that autograd keeps for backward, the parameters' left out."""
    torch.manual_seed(0)
    model = GPT(config).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        micro_batch(model, windows, precision)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


# ── one device ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(("optimizer", "state"), [("adamw", 8), ("lion", 4)])
@pytest.mark.parametrize("shape", ["matrices", "the embedding"])
def test_what_lasts_is_what_the_model_and_its_optimizer_hold(
    shape: str, optimizer: str, state: int, tied_head: bool
) -> None:
    config = replace(SHAPES[shape][0], tied_head=tied_head)
    model = GPT(config)
    built = REGISTRY.build("optimizers", optimizer, {}, "").build(model.named_parameters())
    assert bytes_per_parameter(built) == 0
    micro_batch(model, 1, "fp32")
    built.step()
    needed = estimate(config, 1, "fp32", optimizer_bytes=state)
    assert needed.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert needed.gradients == sum(parameter.grad.nbytes for parameter in model.parameters())
    assert needed.optimizer == pytest.approx(sum(size(each) for each in built.state.values()), rel=0.01)
    assert bytes_per_parameter(built) == pytest.approx(state, rel=0.01)


def size(state: dict[str, Any]) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(("family", "tied_head"), FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_the_most_that_a_micro_batch_adds(
    shape: str, precision: str, dropout: float, family: str, tied_head: bool
) -> None:
    config, windows = SHAPES[shape]
    config = replace(config, dropout=dropout, family=family, tied_head=tied_head)
    counted = counted_activations(config, windows, precision)
    assert estimate(config, windows, precision).activations == pytest.approx(counted, rel=WITHIN[precision])


@pytest.mark.parametrize("family", ["gpt2", "modern", "llama", "llama with shared keys"])
@pytest.mark.parametrize("document_end", [None, 0])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["many blocks", "attention", "matrices"])
def test_each_further_block_adds_what_autograd_saves_of_it(
    shape: str, precision: str, dropout: float, document_end: int | None, family: str
) -> None:
    """The difference that one block makes, to the percent: no other term can hide an error in it."""
    config, windows = SHAPES[shape]
    family, *shared = family.split(maxsplit=1)
    config = replace(config, dropout=dropout, document_end=document_end, family=family, tied_head=family == "gpt2")
    config = replace(config, n_kv_heads=config.n_heads // 2 if shared else 0)
    configs = [replace(config, n_layers=layers) for layers in (2, 3)]
    two, three = (counted_saved(each, windows + 1, precision) for each in configs)
    fewer, more = (estimate(each, windows + 1, precision).activations for each in configs)
    assert more - fewer == pytest.approx(three - two, rel=0.01)


@pytest.mark.parametrize(("precision", "of_logits", "of_head"), [("fp32", 4 + 4, 0), ("bf16", 2 + 4 + 4, 2)])
def test_each_further_id_adds_its_logits_and_the_heads_copy(precision: str, of_logits: int, of_head: int) -> None:
    """Logits and their log-softmax, for which a CPU has bfloat16 ones in float32, too; and the row of the head."""
    config, windows = SHAPES["logits"]
    larger = replace(config, vocab_size=config.vocab_size + 1000)
    counted = counted_activations(larger, windows, precision) - counted_activations(config, windows, precision)
    expected = 1000 * (of_logits * windows * config.context_length + of_head * config.emb_dim)
    assert counted == pytest.approx(expected, rel=0.01)
    estimated = estimate(larger, windows, precision).activations - estimate(config, windows, precision).activations
    assert estimated == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("family", "tied_head"), FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["logits", "the embedding", "a bit of all"])
def test_of_a_large_batch_few_logits_are_there_at_once(
    shape: str, precision: str, family: str, tied_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, windows = SHAPES[shape]
    config = replace(config, family=family, tied_head=tied_head)
    whole = estimate(config, 2 * windows, precision).activations
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_AT_ONCE", 20 * config.vocab_size)
    counted = counted_activations(config, 2 * windows, precision)
    needed = estimate(config, 2 * windows, precision).activations
    assert needed == pytest.approx(counted, rel=WITHIN[precision])
    assert needed < whole or shape == "the embedding"  # where the head is larger than all logits


def test_a_gpu_keeps_no_probabilities_and_writes_states_from_the_machines_memory() -> None:
    config = replace(SHAPES["attention"][0], family="modern", tied_head=False)
    on_cpu, on_gpu = (estimate(config, 2, "bf16", device_type=device) for device in ("cpu", "cuda"))
    probabilities = 2 * 2 * config.n_layers * config.n_heads * config.context_length**2
    assert on_cpu.activations - on_gpu.activations > 0.9 * probabilities
    assert on_gpu.saving == on_cpu.saving == 16 * config.parameter_count
    assert on_gpu.total == on_gpu.lasting + on_gpu.activations
    assert on_cpu.total == on_cpu.lasting + on_cpu.activations + on_cpu.saving


def test_it_is_told_in_parts() -> None:
    needed = Memory(2 * 10**9, 10**9, 4 * 10**9, 10**8, 0, 8 * 10**9, shared=False)
    parts = "weights 2.0 GB, gradients 1.0 GB, optimizer 4.0 GB, activations 100.0 MB"
    assert str(needed) == f"7.1 GB ({parts}); and 8.0 GB of the machine's memory for saving"
    assert str(replace(needed, shared=True)) == f"15.1 GB ({parts}, saving 8.0 GB)"
    assert ", gathered 300.0 MB)" in str(replace(needed, gathered=3 * 10**8))


# ── several ───────────────────────────────────────────────────────────────────────────────────────

# What most of a micro-batch is under FSDP, in turn; with the number of windows.
SHARDED = {
    "many blocks": (small_config(context_length=8, emb_dim=128, n_layers=12), 1),
    "two blocks": (small_config(context_length=8, emb_dim=128, n_layers=2), 1),
    "one block": (small_config(context_length=8, emb_dim=128, n_layers=1), 1),
    "the root": (small_config(context_length=4, vocab_size=5000), 1),
    "the root and blocks": (small_config(context_length=4, vocab_size=1000, n_layers=4), 1),
    "inputs of blocks": (small_config(emb_dim=32, n_layers=32), 16),
    "activations of a block": (small_config(emb_dim=32, n_layers=3), 16),
    "attention": (small_config(context_length=256, n_heads=8, n_layers=3), 1),
    "logits": (small_config(emb_dim=16, vocab_size=2000), 4),
    "logits and the root": (small_config(vocab_size=5000, n_layers=1), 1),
    "blocks and activations": (small_config(n_layers=4, document_end=0), 2),
    "a bit of all": (small_config(vocab_size=500, n_layers=4), 2),
}


def test_ddp_holds_everything_on_every_rank_and_fsdp_a_share() -> None:
    config = small_config(n_layers=12, context_length=8)
    alone = estimate(config, 1, "fp32", device_type="cuda")
    assert estimate(config, 1, "fp32", device_type="cuda", processes=8) == alone
    assert estimate(config, 1, "fp32", device_type="cuda", strategy="fsdp", processes=1) == alone
    shared = estimate(config, 1, "fp32", device_type="cuda", strategy="fsdp", processes=8)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(shared, part) == pytest.approx(getattr(alone, part) / 8, abs=1)
    assert shared.saving == alone.saving


@pytest.mark.parametrize(("family", "tied_head"), FAMILIES)
@pytest.mark.parametrize(("n_layers", "blocks"), [(1, 2), (2, 3), (3, 4), (24, 4)])
def test_fsdp_gathers_the_root_and_a_few_blocks_however_many_ranks_there_are(
    n_layers: int, blocks: int, family: str, tied_head: bool
) -> None:
    config = small_config(n_layers=n_layers, context_length=8, family=family, tied_head=tied_head)
    model = GPT(config)
    block = sum(parameter.nbytes for parameter in model.blocks[0].parameters())
    root = sum(parameter.nbytes for parameter in model.parameters()) - n_layers * block
    waiting = model.head_weight.nbytes  # the head's gradient is exchanged with the root's others, at the end
    for processes in (2, 64):
        shared = estimate(config, 1, "fp32", strategy="fsdp", processes=processes)
        assert shared.gathered == blocks * block + root + waiting


@pytest.fixture
def eight_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """Eight ranks, of which this process is the first and the others are not there: exchanges do nothing, but FSDP
    takes and gives back memory as ever, with no copies of a transport's own."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    monkeypatch.setattr(DistributedRanks, "background", lambda ranks: ranks)  # a group that nothing uses here
    yield DistributedRanks(rank=0, count=8)
    dist.destroy_process_group()


def sharded(config: GPTConfig, ranks: Ranks) -> GPT:
    """The model as training shares it out."""
    return parallelize(lambda: GPT(config), CPU, ranks, "fsdp", compiled=False).model.train()


def counted_under_fsdp(config: GPTConfig, windows: int, precision: str, ranks: Ranks) -> int:
    """Bytes that a micro-batch adds at its worst to what there is when gradients are accumulated already."""
    torch.manual_seed(0)
    model = sharded(config, ranks)
    micro_batch(model, windows, precision)
    return peak(lambda: micro_batch(model, windows, precision))


HEADS_MATTER = ("the root", "the root and blocks", "logits and the root", "a bit of all")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "family", "tied_head"),
    [
        *((shape, family, False) for shape in SHARDED for family in ("gpt2", "modern")),
        *((shape, "gpt2", True) for shape in HEADS_MATTER),
        *(
            (shape, "llama", False)
            for shape in ("many blocks", "one block", "activations of a block", "a bit of all")
        ),
    ],
)
def test_under_fsdp_a_micro_batch_adds_activations_and_what_is_gathered(
    shape: str, precision: str, dropout: float, family: str, tied_head: bool, eight_ranks: Ranks
) -> None:
    config, windows = SHARDED[shape]
    config = replace(config, dropout=dropout, family=family, tied_head=tied_head)
    counted = counted_under_fsdp(config, windows, precision, eight_ranks)
    needed = estimate(config, windows, precision, strategy="fsdp", processes=8)
    assert needed.activations + needed.gathered == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("family", ["gpt2", "modern"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["many blocks", "inputs of blocks", "attention"])
def test_under_fsdp_each_further_block_adds_its_input_and_nothing_else(
    shape: str, precision: str, dropout: float, family: str, eight_ranks: Ranks
) -> None:
    """No activations, no weights and no casted copies of them: all blocks have theirs in turn."""
    config, windows = SHARDED[shape]
    config = replace(config, dropout=dropout, family=family, tied_head=family == "gpt2")
    fewer, more = (replace(config, n_layers=layers) for layers in (4, 6))
    numbers = windows * config.context_length * config.emb_dim
    pairs = windows * config.n_heads * config.context_length**2 if family == "gpt2" else 0
    hidden = (2 if precision == "bf16" else 4) * numbers + (2 * numbers + pairs if dropout else 0)
    random = torch.get_rng_state().nbytes  # which the checkpoint of a block keeps, too
    counted = [counted_under_fsdp(each, windows, precision, eight_ranks) for each in (fewer, more)]
    assert counted[1] - counted[0] == pytest.approx(2 * (hidden + random), rel=0.01)
    needed = [estimate(each, windows, precision, strategy="fsdp", processes=8) for each in (fewer, more)]
    assert needed[1].activations - needed[0].activations == 2 * hidden
    assert needed[1].gathered == needed[0].gathered


def one_of_two(rank: int, address: str, results: Any) -> None:
    """A process of two that train together, truly: tells how many bytes of each kind stay with it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = sharded(SHARDED["a bit of all"][0], DistributedRanks(rank, count=2))
    optimizer = torch.optim.AdamW(model.parameters())
    micro_batch(model, 1, "fp32")
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    weights = sum(local(parameter).nbytes for parameter in model.parameters())
    gradients = sum(local(parameter.grad).nbytes for parameter in model.parameters())
    results.put((weights, gradients, sum(local(value).nbytes for value in states)))
    dist.barrier()
    dist.destroy_process_group()


def local(tensor: Any) -> torch.Tensor:
    """This rank's share of a tensor."""
    assert isinstance(tensor, torch.Tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def test_under_fsdp_each_of_two_processes_holds_its_share(tmp_path: Path) -> None:
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(one_of_two, ((tmp_path / "address").as_uri(), results), nprocs=2)
    needed = estimate(SHARDED["a bit of all"][0], 1, "fp32", strategy="fsdp", processes=2)
    for counted in (results.get(), results.get()):
        assert (needed.weights, needed.gradients, needed.optimizer) == pytest.approx(counted, rel=0.01)


# ── the guide ─────────────────────────────────────────────────────────────────────────────────────


KNOWN = {
    "GPT-2": (12, 12, 768),
    "GPT-2 XL": (48, 25, 1600),
    "7B class": (32, 32, 4096),
    "70B class": (80, 64, 8192),
}
"""Layers, heads and width of well-known sizes."""


def table() -> str:
    """The Markdown table of docs/scaling.md: bytes on each GPU with bf16, AdamW, and one window of 1,024 tokens."""
    ways = {"ddp": ("ddp", 1)} | {f"fsdp, {count} GPUs": ("fsdp", count) for count in (8, 64, 512)}
    rows = [["", "layers × width", "parameters", *ways], ["---"] * 2 + ["---:"] * (1 + len(ways))]
    for name, (n_layers, n_heads, emb_dim) in KNOWN.items():
        config = GPTConfig(
            vocab_size=50257, context_length=1024, n_layers=n_layers, n_heads=n_heads, emb_dim=emb_dim, dropout=0.0,
            qkv_bias=True, tied_head=True, init="gpt2", pad_vocab_to=64,
        )  # fmt: skip
        totals = [estimate(config, 1, "bf16", 8.0, "cuda", *way).total for way in ways.values()]
        count = f"{config.parameter_count / 1e6:,.0f} million"
        rows.append([name, f"{n_layers} × {emb_dim:,}", count, *(readable(total) for total in totals)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def test_the_table_of_the_guide_is_what_is_estimated() -> None:
    text = Path(REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- memory table -->\n\n?(.*?)\n?<!-- end -->", text, flags=re.DOTALL)
    assert found
    assert found.group(1) == table()
