"""An optimizer of an installed package, chosen by entry point, beside one that uses the package schedulefree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Project
from ruamel.yaml import YAML
from test_docs import blocks

from pipeline.authoring.testing import check_optimizer
from pipeline.plugin.registry import Registry
from pipeline.train import loop

LIBRARY = '''
"""AdEMAMix: AdamW with a second, slow momentum (Pagliardini et al., 2024)."""

import torch


class AdEMAMix(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999, 0.99), alpha=2.0, eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, alpha=alpha, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2, beta3 = group["betas"]
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state.update({name: torch.zeros_like(parameter) for name in ("fast", "slow", "square")})
                state["step"] += 1
                state["fast"].lerp_(gradient, 1 - beta1)
                state["slow"].lerp_(gradient, 1 - beta3)
                state["square"].lerp_(gradient.square(), 1 - beta2)
                step = state["step"].item()
                momentum = state["fast"] / (1 - beta1**step) + group["alpha"] * state["slow"]
                scale = (state["square"] / (1 - beta2**step)).sqrt() + group["eps"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(momentum, scale, value=-group["lr"])
'''
PLUGIN = '''
"""Registers AdEMAMix."""

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl

from .adamw_with_two_momenta import AdEMAMix


class AdEMAMixOptimizer(Optimizer):
    """AdamW with a second, slow momentum."""

    name: ClassVar[str] = "ademamix"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    alpha: Annotated[float, Field(ge=0)] = 2.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.1

    def build(self, named_parameters):
        return AdEMAMix(self.decay_groups(named_parameters, self.weight_decay), lr=self.lr, alpha=self.alpha)


@hookimpl
def register_optimizers():
    return [AdEMAMixOptimizer]
'''
SCHEDULE_FREE = """
from typing import Annotated, ClassVar
from pydantic import Field
from pipeline.plugin import Optimizer, hookimpl
{code}
@hookimpl
def register_optimizers():
    return [ScheduleFree]
"""


def install(version: str, folder: Path, site: Path) -> None:
    """Builds the package and installs it with pip, without any network."""
    (project,) = blocks(REPOSITORY / "docs" / "plugins.md", "toml")
    package = folder / f"ademamix-{version}"
    module = package / "ademamix"
    module.mkdir(parents=True)
    described = project.replace("noisy", "ademamix").replace("1.0", version).replace("py-modules", "packages")
    (package / "pyproject.toml").write_text(described)
    (module / "__init__.py").write_text(PLUGIN)
    (module / "adamw_with_two_momenta.py").write_text(LIBRARY)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--upgrade"]
    subprocess.run([*pip, "--target", site, package], check=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the installed package, on the path."""
    site = tmp_path / "site"
    install("1.0", tmp_path, site)
    monkeypatch.syspath_prepend(str(site))
    for name in ("ademamix", "ademamix.adamw_with_two_momenta"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return site


def chosen(name: str, *settings: str) -> list[str]:
    return [part for each in (f"train.optimizer.name={name}", *settings) for part in ("--set", each)]


def train_with_a_stop(project: Project, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Trains with a kill in step 4, then again."""
    whole = loop.take_step

    def dies(run: Any, state: Any, pending: Any) -> None:
        if state.step == 4:
            raise KeyboardInterrupt
        whole(run, state, pending)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", dies)
        assert project.run("train", *arguments, "--set", "runtime.save_seconds=0").code == 130
    assert "resuming from step 4" in project.succeed("train", *arguments).out


def checkpoint(project: Project) -> Any:
    saved = torch.load(project.root / "artifacts" / "checkpoint" / "model_and_optimizer.pth", weights_only=True)
    return saved["model_state_dict"], saved["optimizer_state_dict"]


def test_an_optimizer_of_a_package_trains_and_resumes_and_its_version_counts(
    site: Path, trained_project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = Registry.load(trained_project.root / "plugins", ["optimizers"])
    check_optimizer(registry.build("optimizers", "ademamix", {}, "train.optimizer"))
    trained_project.succeed("lock")
    environment = YAML(typ="safe").load(trained_project.root / "environment.yaml")
    assert list(environment["plugins"]["optimizers"]) == ["ademamix"]
    assert environment["plugins"]["optimizers"]["ademamix"].startswith("1.0 code ")

    option = "train.optimizer.ademamix.alpha=1.5"
    trained_project.succeed("train", *chosen("ademamix", option))
    uninterrupted = checkpoint(trained_project)
    assert {"fast", "slow", "square", "step"} == set(uninterrupted[1]["state"][0])
    trained_project.succeed("clean")
    train_with_a_stop(trained_project, monkeypatch, *chosen("ademamix", option))
    torch.testing.assert_close(checkpoint(trained_project), uninterrupted, rtol=0, atol=0)

    install("1.1", tmp_path, site)
    assert (
        "ademamix" in trained_project.succeed("train", *chosen("ademamix", option)).out.partition("starts over")[2]
    )


def test_beside_it_a_plugin_of_the_project_uses_the_package_schedulefree(
    site: Path, trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("schedulefree", reason="the package schedulefree is not installed")
    (code,) = [each for each in blocks(REPOSITORY / "docs" / "plugins.md", "python") if "schedulefree" in each]
    plugin = trained_project.root / "plugins" / "optimizers" / "schedule_free.py"
    plugin.write_text(SCHEDULE_FREE.format(code=code))
    listed = trained_project.succeed("plugins", "optimizers").out
    assert "ademamix  ·  entry point ademamix = ademamix of package ademamix 1.0" in listed
    assert "schedule_free  ·  plugins/optimizers/schedule_free.py" in listed
    settings = chosen("schedule_free", "train.schedule.name=constant")
    trained_project.succeed("train", *settings)
    uninterrupted = checkpoint(trained_project)
    trained_project.succeed("clean")
    train_with_a_stop(trained_project, monkeypatch, *settings)
    torch.testing.assert_close(checkpoint(trained_project), uninterrupted, rtol=0, atol=0)
