"""The shipped params.yaml: complete, and the one home of every default."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.core.errors import ParamsError
from pipeline.params import schema
from pipeline.params.params import Choice, Choices
from pipeline.params.reader import load_params
from pipeline.plugin.registry import Registry

PARAMS = load_params(REPOSITORY / "params.yaml")
SECTIONS: dict[str, Choice | Choices] = {
    kind: attrgetter(name)(PARAMS) for name, kind in schema.COMPONENT_SECTIONS.items()
}


@pytest.mark.parametrize(
    ("override", "wanted"),
    [("train.schedule.final=0.1", "linear.final"), ("train.loss.gamma=2", "cross_entropy.gamma"),
     ("train.eval_callbacks.patience=2", "NAME.patience"), ("export.formats.huggingface=true", "section of keys")],
)  # fmt: skip
def test_an_option_outside_its_components_section_is_reported_with_its_key(override: str, wanted: str) -> None:
    with pytest.raises(ParamsError, match=rf"--set: {override.partition('=')[0]}: .*{wanted}"):
        load_params(REPOSITORY / "params.yaml", [override])


@pytest.mark.parametrize("choice", ["train.loss.name=3", "train.loss.name=", "evaluate.samplers.use=3"])
def test_beside_a_choice_that_is_none_it_is_reported_too(choice: str) -> None:
    section = choice.rpartition(".")[0]
    with pytest.raises(ParamsError, match=rf"{section}\.gama: .*did you mean {section}\.NAME\.gama\?"):
        load_params(REPOSITORY / "params.yaml", [choice, f"{section}.gama=2"])


@pytest.mark.parametrize(
    ("override", "wanted"),
    [("model.family=gpt2", "model.name"), ("model.qkv_bias=true", "model.gpt2.qkv_bias"),
     ("model.rope_theta=500", "model.llama.rope_theta"), ("model.init=pytorch", "model.llama.init")],
)  # fmt: skip
def test_a_moved_key_is_reported_with_its_new_name(override: str, wanted: str) -> None:
    with pytest.raises(
        ParamsError, match=rf"{override.partition('=')[0].rpartition('.')[2]} is now .*{wanted}"
    ) as told:
        load_params(REPOSITORY / "params.yaml", [override])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_option_of_every_shipped_component_is_there_so_that_dvc_finds_it(kind: str) -> None:
    shipped: dict[str, Any] = {
        entry.component.name: set(entry.component.model_fields)
        for entry in Registry.load(REPOSITORY / "plugins", [kind]).entries(kind)
    }
    assert {name: set(options) for name, options in SECTIONS[kind].options.items()} == shipped


def test_every_line_of_a_choice_says_what_there_is() -> None:
    text = (REPOSITORY / "params.yaml").read_text()
    for line in text.splitlines():
        if line.strip().startswith("name:"):
            assert "#" in line or "cross_entropy" in line, line


def test_only_flops_may_be_written_as_a_float() -> None:
    def amount(*overrides: str) -> float:
        return load_params(REPOSITORY / "params.yaml", overrides).train.budget.amount

    assert isinstance(amount(), int)
    flops = amount("train.budget.unit=flops", "train.budget.amount=1e15")
    assert flops == amount("train.budget.unit=flops", "train.budget.amount=1000000000000000")
    for key in ("budget", "extension"):
        with pytest.raises(ParamsError, match=rf"train\.{key}\.amount: 1\.5 .*steps"):
            load_params(REPOSITORY / "params.yaml", [f"train.{key}.amount=1.5"])
