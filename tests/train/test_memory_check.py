"""Whether a model fits, and the line that a person reads when a step ran out of memory."""

from __future__ import annotations

import pytest
import torch
from conftest import REPOSITORY
from small_config import ARCHITECTURES, small_config

from pipeline.core.errors import ParamsError
from pipeline.core.files import format_bytes
from pipeline.model.architecture import LanguageModel
from pipeline.plugin.registry import Registry
from pipeline.train import memory_check
from pipeline.train.memory_check import activation_bytes, check_fits, optimizer_state_bytes, out_of_memory_advice

PRECISIONS = ("fp32", "bf16")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory_check, "memory_of", lambda device: int(size))


def stepped(model: LanguageModel, name: str = "adamw") -> torch.optim.Optimizer:
    """The shipped optimizer after a step."""
    optimizer = Registry.load(REPOSITORY / "plugins", ["optimizers"]).build("optimizers", name, {}, "")
    built: torch.optim.Optimizer = optimizer.build(list(model.named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    return built


@pytest.mark.parametrize(("name", "size"), [("adamw", 8), ("lion", 4)])
def test_an_optimizers_state_is_counted_in_bytes(name: str, size: int) -> None:
    model = small_config().make()
    assert optimizer_state_bytes(torch.optim.AdamW(model.parameters())) == 0
    assert optimizer_state_bytes(stepped(model, name)) == pytest.approx(
        size * model.architecture.parameter_count, rel=0.01
    )


def test_what_is_refused_is_weights_and_gradients_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_config().make()
    size = 2 * sum(parameter.nbytes for parameter in model.parameters())
    with_memory(monkeypatch, size)
    check_fits(model.architecture, CPU)
    with_memory(monkeypatch, size - 1)
    with pytest.raises(ParamsError, match=rf"{format_bytes(size)} .*lower model\.n_layers or model\.emb_dim"):
        check_fits(model.architecture, CPU)


def test_a_model_fits_as_its_shard_where_the_whole_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(n_layers=12)
    with_memory(monkeypatch, 7.9 * config.parameter_count)
    check_fits(config, GPU, strategy="fsdp", processes=2)
    with pytest.raises(ParamsError, match=r"lower model\.n_layers or model\.emb_dim"):
        check_fits(config, GPU, processes=8)
    with_memory(monkeypatch, 8 * config.parameter_count)
    check_fits(config, CPU)
    with pytest.raises(ParamsError, match="for each of 8 processes"):  # which share the machine's memory
        check_fits(config, CPU, processes=8)


def test_the_out_of_memory_line_names_half_of_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    with_memory(monkeypatch, 1e9)
    told = out_of_memory_advice(config, 24, stepped(config.make()), CPU, processes=4)
    lasting = format_bytes(16 * config.parameter_count)
    for token in ("out of memory", "24", "cpu", "250.0 MB for each of 4 processes", lasting):
        assert token in told
    assert "lower train.micro_batch_size to 12" in told
    assert "\n" not in told


def test_where_one_window_does_not_fit_the_model_is_to_be_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    optimizer = stepped(config.make())
    with_memory(monkeypatch, 17 * config.parameter_count)
    assert out_of_memory_advice(config, 1, optimizer, CPU).endswith(": lower model.context_length or model.emb_dim")
    with_memory(monkeypatch, 15 * config.parameter_count)
    assert out_of_memory_advice(config, 4, optimizer, CPU).endswith(": lower model.n_layers or model.emb_dim")
    assert "runtime.strategy: fsdp" in out_of_memory_advice(config, 4, optimizer, GPU)
    assert "runtime.strategy: fsdp" not in out_of_memory_advice(
        config, 1, optimizer, GPU, strategy="fsdp", processes=2
    )


def test_the_out_of_memory_line_names_recomputing_where_it_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    optimizer = stepped(config.make())
    for memory, recompute, named in ((1e9, False, True), (1e9, True, False), (1e3, False, False)):
        with_memory(monkeypatch, memory)
        told = out_of_memory_advice(config, 4, optimizer, GPU, recompute=recompute)
        assert ("runtime.recompute: true" in told) == named


@pytest.mark.parametrize(
    ("architecture", "precision"), [(name, each) for name in ARCHITECTURES for each in PRECISIONS]
)
def test_the_estimate_of_activations_is_near_what_the_backward_pass_needs(
    architecture: str, precision: str
) -> None:
    config = small_config(architecture, n_layers=3, emb_dim=128, context_length=128)
    model, kept = config.make(), dict[int, torch.Tensor]()
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model(torch.zeros(4, 128, dtype=torch.long))
    measured = sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in weights)
    assert 0.6 * activation_bytes(config, 4, precision) < measured < 1.1 * activation_bytes(config, 4, precision)
