"""The model's layout in one process: compiled or not, with activations that are kept or computed again."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from small_run import CONTEXT, assert_same_bits, make_model, plugin_architecture, runtime_config

from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.train.parallel import Parallel
from pipeline.train.run import parallelize

IDS = torch.arange(4 * CONTEXT).view(4, CONTEXT)


def laid_out(compile: str, recompute: bool, architecture: Architecture | None = None) -> Parallel:
    def make() -> LanguageModel:
        return make_model(dropout=0.3, **({"architecture": architecture} if architecture else {}))

    return parallelize(make, Ranks(), runtime_config(compile=compile, recompute=recompute))


def gradients(parallel: Parallel) -> dict[str, torch.Tensor | None]:
    """Those of a batch, with the same dropout each time."""
    torch.manual_seed(7)
    output = parallel.forward(IDS)
    (output.cross_entropy(IDS.roll(-1, 1)).sum() + output.auxiliary).backward()
    return {name: parameter.grad for name, parameter in parallel.model.named_parameters()}


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles to graphs of torch's own operations, which takes no C++ compiler and little time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize(
    ("name", "compile"), [("gpt2", "no"), ("gpt2", "blocks"), ("gpt2", "model"), ("moe", "no")]
)
def test_recomputed_activations_give_the_same_bits(name: str, compile: str) -> None:
    torch._dynamo.reset()
    architecture = plugin_architecture(name) if name == "moe" else None
    kept, again = (gradients(laid_out(compile, recompute, architecture)) for recompute in (False, True))
    assert_same_bits(again, kept)
    assert all(gradient is not None and gradient.any() for gradient in kept.values())


def test_recomputing_keeps_the_input_of_each_block_only() -> None:
    def kept(recompute: bool) -> int:
        seen = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += tensor.numel()
            return tensor

        parallel = laid_out("no", recompute)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            parallel.forward(IDS)
        return seen

    assert kept(True) < kept(False) / 2


def test_a_copy_of_a_model_that_recomputes_has_its_own_weights() -> None:
    model = laid_out("no", recompute=True).model
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert copied(IDS).hidden.any()


def test_names_and_evaluation_are_those_of_the_plain_model() -> None:
    plain = make_model(dropout=0.3).eval()
    for compile in ("no", "blocks", "model"):
        parallel = laid_out(compile, recompute=True)
        assert list(parallel.model.state_dict()) == list(plain.state_dict())
        with torch.no_grad(), parallel.eager():
            assert_same_bits(parallel.model.eval()(IDS).hidden, plain(IDS).hidden)


# ── the gradients' norm ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("share", "scaled"), [(0.5, True), (2.0, False), (float("inf"), False)])
def test_a_norm_is_clipped_only_if_it_is_too_large(share: float, scaled: bool) -> None:
    parallel = laid_out("no", recompute=False)
    before = {name: each.clone() for name, each in gradients(parallel).items() if each is not None}
    norm = torch.nn.utils.get_total_norm(before.values())
    found = parallel.clip(share * float(norm))
    assert found.shape == ()
    assert_same_bits(found, norm)
    after = {name: each.grad for name, each in parallel.model.named_parameters()}
    if scaled:
        torch.testing.assert_close(after, {name: each * share for name, each in before.items()})
    else:
        assert_same_bits(after, before)
