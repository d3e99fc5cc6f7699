"""What describes a model: from params.yaml, to config.json and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_config import ARCHITECTURES, REGISTRY, small_config

from pipeline.core.errors import CheckpointError, ParamsError, PluginError
from pipeline.model.architecture import Architecture, ModelConfig, checked_forward
from pipeline.plugin import Model, ModelOutput, ModelShape


def written(values: object, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_is_read_back(name: str, tmp_path: Path) -> None:
    architecture = small_config(name, document_end=3, mlp_dim=40, init="pytorch")
    path = written(asdict(architecture.config), tmp_path)
    assert ModelConfig.from_file(path, "train").architecture(REGISTRY, path) == architecture


def test_a_checkpoint_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    old = {**asdict(small_config().shape), "family": "gpt2"}
    with pytest.raises(CheckpointError, match=r"config\.json .*earlier version .*: train again"):
        ModelConfig.from_file(written(old, tmp_path), "train again")


@pytest.mark.parametrize("values", [[], {}, {"n_embd": 3}], ids=str)
def test_what_is_no_config_is_an_error_that_names_the_file(values: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json .*: train again") as error:
        ModelConfig.from_file(written(values, tmp_path), "train again")
    assert "\n" not in str(error.value)


def test_a_model_of_no_plugin_is_named_with_those_there_are(tmp_path: Path) -> None:
    config = ModelConfig("gpt9", {}, small_config().shape)
    with pytest.raises(CheckpointError, match=r"here: .*'gpt9'.*gpt2, llama, modern"):
        config.architecture(REGISTRY, Path("here"))


def test_what_is_known_before_a_model_is_made_costs_no_draw() -> None:
    before = torch.get_rng_state()
    assert small_config().parameter_count > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_beyond_any_memory_is_one_line() -> None:
    with pytest.raises(ParamsError, match=r"lower model\.emb_dim"):
        _ = small_config(emb_dim=2**30, vocab_size=2**30).parameter_count


class Odd(Model):
    """Builds what it is told to."""

    name = "odd"
    what: str = "module"

    def build(self, shape: ModelShape) -> Any:
        if self.what == "size":
            raise ValueError("too\nodd")
        if self.what == "error":
            raise KeyError("odd")
        return torch.nn.Linear(2, 2) if self.what == "module" else self.what


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("size", ParamsError, "model: odd: too odd"),
        ("error", PluginError, "'odd' raised KeyError"),
        ("nothing", PluginError, "torch.nn.Module, not str"),
    ],
)
def test_what_cannot_be_built_is_one_line_that_names_the_model(what: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Architecture(Odd(what=what), small_config().shape).make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3), "ModelOutput, not Tensor"),
        (ModelOutput(torch.zeros(2, 4, 8), torch.zeros(10, 8), 10), r"hidden \[2, 4, 8\]"),
        (ModelOutput(torch.zeros(2, 3, 8), torch.zeros(9, 8), 10), r"head_weight \[9, 8\]"),
        (ModelOutput(torch.zeros(2, 3, 8), torch.zeros(10, 8), 9), "vocab_size 9"),
        (ModelOutput(torch.zeros(2, 3, 8), torch.zeros(10, 8), "x"), "vocab_size x"),
        (ModelOutput(None, torch.zeros(10, 8), 10), "hidden must be .* NoneType"),
        (ModelOutput(torch.zeros(2, 3, 8).long(), torch.zeros(10, 8), 10), "hidden must be .* torch.int64"),
        (ModelOutput(torch.zeros(2, 3, 8), "x", 10), "head_weight must be .* str"),
        (ModelOutput(torch.zeros(2, 3, 8), torch.zeros(10, 8), 10, "x"), "auxiliary must be a scalar"),
        (ModelOutput(torch.zeros(2, 3, 8), torch.zeros(10, 8), 10, float("nan")), "auxiliary must be a scalar"),
    ],
)
def test_what_forward_wrongly_returns_names_the_model(
    given: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_config("llama").make()
    monkeypatch.setattr(model, "forward", lambda ids: given)
    with pytest.raises(PluginError, match=f"'llama'.*{message}"):
        checked_forward(model, torch.zeros(2, 3, dtype=torch.long))


def test_what_forward_raises_names_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where none of its own lines raises."""
    model = small_config("llama").make()
    monkeypatch.setattr(model, "forward", torch.nn.Linear(2, 2).forward)
    with pytest.raises(PluginError, match="'llama' raised RuntimeError"):
        checked_forward(model, torch.zeros(2, 3, dtype=torch.long))
