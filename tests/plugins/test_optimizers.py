"""The shipped optimizers: what decays, that each parameter is held once, and that their state survives."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from small_config import head_weight, small_config

from pipeline.core.errors import ParamsError
from pipeline.model.architecture import LanguageModel
from pipeline.plugin.components import Optimizer
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["optimizers"])
NAMES = REGISTRY.names("optimizers")
LR, WEIGHT_DECAY = 0.125, 0.5
OPTIONS: dict[str, dict[str, float]] = {
    "adamw": {"lr": LR, "weight_decay": WEIGHT_DECAY},
    "muon": {"lr": LR, "adamw_lr": LR, "weight_decay": WEIGHT_DECAY},
    "lion": {"lr": LR, "weight_decay": WEIGHT_DECAY},
    "adafactor": {"lr": LR, "weight_decay": WEIGHT_DECAY},
    "sgd": {"lr": LR, "weight_decay": WEIGHT_DECAY, "momentum": 0.0},
}


def component(name: str) -> Optimizer:
    optimizer: Optimizer = REGISTRY.build("optimizers", name, {name: OPTIONS.get(name, {})}, "train.optimizer")
    return optimizer


def make(tied_head: bool = True, seed: int = 0, architecture: str = "gpt2") -> LanguageModel:
    torch.manual_seed(seed)
    model = small_config(
        architecture, vocab_size=20, context_length=8, emb_dim=16, tied_head=tied_head, n_kv_heads=1
    ).make()
    for parameter in model.parameters():  # norms and biases away from 1 and 0, where decay would not show
        torch.nn.init.normal_(parameter)
    return model


def train(model: LanguageModel, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(20, (4, 8), generator=generator)
        optimizer.zero_grad()
        model(ids).logits.square().mean().backward()
        optimizer.step()


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "embedding" not in name


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_zero_gradients_decay_the_matrices_and_leave_norms_biases_and_embeddings(
    name: str, tied_head: bool
) -> None:
    model = make(tied_head)
    before = copy.deepcopy(model.state_dict())
    optimizer = component(name).build(model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    matrices = [each for each, parameter in model.named_parameters() if is_matrix(each, parameter)]
    assert len(matrices) == 2 * 4 + (not tied_head)
    for each, parameter in model.named_parameters():
        expected = before[each] * (1 - LR * WEIGHT_DECAY) if each in matrices else before[each]
        assert torch.equal(parameter, expected), each


def test_the_chapters_form_of_adamw_decays_everything() -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    options = {"adamw": {"lr": LR, "weight_decay": WEIGHT_DECAY, "plain": True}}
    optimizer = REGISTRY.build("optimizers", "adamw", options, "").build(model.named_parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(
        torch.equal(value, before[name] * (1 - LR * WEIGHT_DECAY)) for name, value in model.named_parameters()
    )


@pytest.mark.parametrize(
    ("architecture", "tied_head"), [("gpt2", True), ("gpt2", False), ("modern", False), ("llama", True)]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_held_exactly_once(name: str, architecture: str, tied_head: bool) -> None:
    model = make(tied_head, architecture=architecture)
    optimizer = component(name).build(iter(model.named_parameters()))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("architecture", ["gpt2", "modern", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_and_loaded_optimizer_goes_on_to_the_bit(name: str, architecture: str) -> None:
    model, other = make(architecture=architecture), make(seed=1, architecture=architecture)
    optimizer = component(name).build(model.named_parameters())
    train(model, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.01
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    loaded = component(name).build(other.named_parameters())
    other.load_state_dict(saved[0])
    loaded.load_state_dict(saved[1])
    assert (head_weight(other) is other.token_embedding.weight) == (architecture != "modern")
    for each, part_optimizer in ((model, optimizer), (other, loaded)):
        train(each, part_optimizer, 3)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_set_on_a_group_is_the_rate_used(name: str) -> None:
    model = make(tied_head=False)
    before = copy.deepcopy(model.state_dict())
    optimizer = component(name).build(model.named_parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert all(torch.equal(value, before[each]) for each, value in model.named_parameters())


def test_adamw_without_decay_is_adam_by_the_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    options = {"adamw": {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.3}}
    optimizer = REGISTRY.build("optimizers", "adamw", options, "").build([("norm.weight", parameter)])
    value, m, v = parameter.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for step in range(1, 5):
        gradient = torch.tensor([0.5, -0.25], dtype=torch.float64) * step
        parameter.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient.square()
        value = value - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-6, atol=1e-12)


def test_muon_moves_a_hidden_matrix_by_a_nearly_orthogonal_update() -> None:
    model = make()
    optimizer = component("muon").build(model.named_parameters())
    matrix = model.blocks[0].attention.out.weight
    before = matrix.detach().clone() * (1 - LR * WEIGHT_DECAY)
    train(model, optimizer, 1)
    singular = torch.linalg.svdvals((matrix.detach() - before) / LR)
    assert singular.max() < 1.5
    assert singular.median() > 0.5


U = torch.finfo(torch.bfloat16).eps / 2
HIDDEN = {"attention.out.weight": (16, 16), "mlp.up.weight": (64, 16), "mlp.down.weight": (16, 64)}


def with_muon(shapes: dict[str, tuple[int, int]]) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """Random matrices of these names, and muon over them (and an embedding, which is always there)."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes.values()]
    embedding = torch.nn.Parameter(torch.ones(2, 2))
    named = [("token_embedding.weight", embedding), *zip(shapes, matrices, strict=True)]
    return matrices, component("muon").build(named)


def step(matrices: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A step on random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=generator)
    optimizer.step()


MODULE: dict[str, Any] = component("muon").build.__globals__  # type: ignore[attr-defined]


def newton_schulz(matrices: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = MODULE["newton_schulz"](matrices, 5)
    return found


def test_muon_is_torchs_up_to_bfloat16s_roundings() -> None:
    ours, optimizer = with_muon(HIDDEN)
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    torchs = torch.optim.Muon(theirs, lr=LR, weight_decay=WEIGHT_DECAY, momentum=0.95)
    for number in range(4):
        before = [matrix.detach().clone() for matrix in theirs]
        step(ours, optimizer, number)
        step(theirs, torchs, number)
        for one, other, start in zip(ours, theirs, before, strict=True):
            assert (one - other).norm() < 8 * U * (other - start).norm()
            one.data.copy_(other)  # so that each step is compared alone; the momenta are each one's own


def test_muon_is_its_formula() -> None:
    ours, optimizer = with_muon(HIDDEN)
    values = [matrix.detach().clone() for matrix in ours]
    momenta = [torch.zeros_like(value) for value in values]
    for number in range(4):
        step(ours, optimizer, number)
        for value, momentum, matrix in zip(values, momenta, ours, strict=True):
            momentum.mul_(0.95).add_(matrix.grad, alpha=0.05)
            ahead = 0.05 * matrix.grad + 0.95 * momentum
            tall = ahead.shape[0] > ahead.shape[1]
            direction = newton_schulz((ahead.T if tall else ahead)[None])[0].float()
            direction = 2 * direction.T if tall else direction  # √(64 / 16)
            value.mul_(1 - LR * WEIGHT_DECAY).sub_(LR * direction)
            assert (matrix - value).norm() < 2 * U * LR * direction.norm()
            value.copy_(matrix.detach())


@pytest.mark.parametrize("native", [True, False])
def test_newton_schulz_follows_its_polynomial_in_bfloat16_or_float32(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODULE, "_cpu_multiplies_bf16", lambda: native)
    for shape in ((3, 16, 16), (3, 16, 64)):
        given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        x = given.double() / given.double().norm(dim=(1, 2), keepdim=True)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        found = newton_schulz(given)
        assert found.dtype == (torch.bfloat16 if native else torch.float32)
        assert (found - x).norm() < (8 * U if native else 1e-5) * x.norm()


def test_muon_treats_queries_keys_and_values_as_three_matrices() -> None:
    (fused,), optimizer = with_muon({"blocks.0.attention.qkv.weight": (48, 16)})
    apart, other = with_muon({f"blocks.0.attention.{part}.weight": (16, 16) for part in "qkv"})
    (whole,), one = with_muon({"blocks.0.attention.out.weight": (48, 16)})
    decayed = fused.detach() * (1 - LR * WEIGHT_DECAY) ** 3
    for number in range(3):
        gradient = torch.randn(48, 16, generator=torch.Generator().manual_seed(number))
        gradient[32:] *= 1000  # values' gradients are of another size than queries' and keys'
        fused.grad, whole.grad = gradient.clone(), gradient.clone()
        for part, source in zip(apart, gradient.chunk(3), strict=True):
            part.grad = source.clone()
        for each in (optimizer, other, one):
            each.step()
        assert torch.equal(fused, torch.cat(list(apart)))
    moved, moved_whole = ((each.detach() - decayed)[:32].norm() for each in (fused, whole))
    assert moved > 10 * moved_whole


def test_muon_knows_where_keys_begin_though_queries_are_more() -> None:
    (fused,), optimizer = with_muon({"blocks.0.attention.qkv.weight": (24, 16)})
    shapes = {"q": (16, 16), "k": (4, 16), "v": (4, 16)}
    apart, other = with_muon({f"blocks.0.attention.{part}.weight": shape for part, shape in shapes.items()})
    with torch.no_grad():
        for part, source in zip(apart, fused.split([16, 4, 4]), strict=True):
            part.copy_(source)
    for number in range(3):
        gradient = torch.randn(24, 16, generator=torch.Generator().manual_seed(number))
        fused.grad = gradient.clone()
        for part, source in zip(apart, gradient.split([16, 4, 4]), strict=True):
            part.grad = source.clone()
        for each in (optimizer, other):
            each.step()
        torch.testing.assert_close(fused, torch.cat(list(apart)), rtol=0, atol=8 * U * LR)


def test_muon_orthogonalises_matrices_of_one_shape_together_and_each_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = {f"blocks.{layer}.{name}": shape for layer in range(3) for name, shape in HIDDEN.items()}
    shapes["blocks.0.attention.qkv.weight"] = (48, 16)
    together, optimizer = with_muon(shapes)
    alone = [torch.nn.Parameter(matrix.detach().clone()) for matrix in together]
    embedding = ("token_embedding.weight", torch.nn.Parameter(torch.ones(2, 2)))
    optimizers = [
        component("muon").build([embedding, (name, matrix)]) for name, matrix in zip(shapes, alone, strict=True)
    ]
    batches: list[tuple[int, ...]] = []

    def noted(matrices: torch.Tensor, steps: int) -> torch.Tensor:
        batches.append(tuple(matrices.shape))
        return solve(matrices, steps)

    solve = MODULE["newton_schulz"]
    monkeypatch.setitem(MODULE, "newton_schulz", noted)
    step(together, optimizer, 0)
    assert sorted(batches) == [(6, 16, 16), (6, 16, 64)]  # up and down; out, and the three of qkv
    for one, other, part_optimizer in zip(alone, together, optimizers, strict=True):
        one.grad = other.grad
        part_optimizer.step()
        torch.testing.assert_close(one, other, rtol=0, atol=8 * U * LR)


def test_muon_leaves_a_matrix_without_a_gradient_as_it_is() -> None:
    (frozen, learnt, _), optimizer = with_muon(HIDDEN)
    before = [matrix.detach().clone() for matrix in (frozen, learnt)]
    learnt.grad = torch.ones_like(learnt)
    optimizer.step()
    assert torch.equal(frozen, before[0])
    assert not torch.equal(learnt, before[1])
    assert frozen not in optimizer.state


def test_lion_steps_by_the_sign_of_its_interpolated_momentum() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, 1.0]]))
    options = {"lion": {"lr": 0.5, "beta1": 0.5, "beta2": 0.75, "weight_decay": 0.0}}
    optimizer = REGISTRY.build("optimizers", "lion", options, "").build([("up.weight", weight)])
    weight.grad = torch.tensor([[8.0, -8.0]])
    optimizer.step()
    assert weight.tolist() == [[0.5, 1.5]]
    assert optimizer.state[weight]["momentum"].tolist() == [[2.0, -2.0]]
    weight.grad = torch.tensor([[-1.0, -1.0]])  # ½ · 2 − ½ · 1 > 0: the momentum still decides the first
    optimizer.step()
    assert weight.tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_a_closure_is_refused_and_not_left_uncalled(name: str) -> None:
    optimizer = component(name).build(list(make().named_parameters()))
    with pytest.raises(TypeError):
        optimizer.step(lambda: 1.0)


def test_any_torch_optimizer_takes_its_own_options() -> None:
    options = {"torch": {"class_name": "RAdam", "lr": 0.01, "options": {"betas": [0.8, 0.9], "weight_decay": 0.1}}}
    optimizer = REGISTRY.build("optimizers", "torch", options, "").build(make().named_parameters())
    assert isinstance(optimizer, torch.optim.RAdam)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_name": "Adamm"}, "torch.optim .* 'Adamm'"),
        ({"class_name": "LBFGS"}, "torch.optim .* 'LBFGS'"),
        ({"options": {"momentum": 0.9}}, "NAdam has no option 'momentum'"),
        ({"options": {"weight_decay": -1.0}}, "NAdam refuses these options"),
    ],
)
def test_a_torch_optimizer_with_options_it_does_not_have_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ParamsError, match=rf"train\.optimizer\.torch: {message}"):
        REGISTRY.build("optimizers", "torch", {"torch": options}, "train.optimizer")
