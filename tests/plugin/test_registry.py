"""Finding plugins: dropped files and installed packages work; every broken one is named with its file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Project

from pipeline.core.errors import ParamsError, PluginError
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry

IMPORTS = """
from typing import ClassVar
import torch
from pipeline.plugin import Loss, Sampler, hookimpl
"""

DOUBLE = (
    IMPORTS
    + '''
class Double(Loss):
    """Twice the surprise."""
    name: ClassVar[str] = "double"
    def __call__(self, output, targets):
        return 2 * torch.nn.functional.cross_entropy(
            output.logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
'''
)
HOOK = """
@hookimpl
def register_losses():
    return [Double]
"""

BROKEN = {
    "import error": ("import nonsense_module\n", ["line 1", "nonsense_module"]),
    "syntax error": ("def broken(:\n", ["line 1", "SyntaxError"]),
    "raises on import": ("x = 1\nraise RuntimeError('not today')\n", ["line 2", "not today"]),
    "misspelt hook": (
        DOUBLE + HOOK.replace("register_losses", "register_loses"),
        ["register_loses", "did you mean register_losses"],
    ),
    "unmarked function": (DOUBLE + HOOK.replace("@hookimpl", ""), ["register_losses", "@hookimpl"]),
    "no hook": (DOUBLE, ["registers nothing", "register_losses"]),
    "wrong hook argument": (DOUBLE + HOOK.replace("losses()", "losses(pipeline)"), ["register_losses"]),
    "hook raises": (DOUBLE + HOOK.replace("return [Double]", "return [Triple]"), ["NameError", "Triple"]),
    "no list": (DOUBLE + HOOK.replace("[Double]", "Double"), ["must return a list"]),
    "an instance": (DOUBLE + HOOK.replace("[Double]", "[Double()]"), ["return the class itself"]),
    "other kind": (DOUBLE + HOOK.replace("losses", "samplers"), ["registers samplers", "plugins/samplers/"]),
    "no subclass": (DOUBLE + HOOK.replace("[Double]", "[dict]"), ["dict", "no subclass of Loss"]),
    "no method": (DOUBLE.replace("__call__", "call") + HOOK, ["Double", "no method __call__"]),
    "no name": (DOUBLE.replace('name: ClassVar[str] = "double"', "pass") + HOOK, ["Double", "needs a name"]),
    "bad name": (DOUBLE.replace('"double"', '"Double Loss"') + HOOK, ["Double", "needs a name"]),
    "no docstring": (DOUBLE.replace('"""Twice the surprise."""', "") + HOOK, ["Double", "no docstring"]),
    "option without default": (DOUBLE.replace("    def", "    factor: float\n    def") + HOOK, ["Double.factor"]),
    "option without type": (DOUBLE.replace("    def", "    factor = 2.0\n    def") + HOOK, ["factor"]),
    "unknown type": (
        "from __future__ import annotations\n"
        + DOUBLE.replace("    def", "    factor: Flaot = 2.0\n    def")
        + HOOK,
        ["Double", "Flaot"],
    ),
    "wrong signature": (
        DOUBLE.replace("(self, output, targets)", "(self, output)") + HOOK,
        ["__call__", "targets"],
    ),
    "not frozen": (
        DOUBLE.replace("    def", "    model_config = {'frozen': False}\n    def") + HOOK,
        ["Double", "frozen"],
    ),
    "name taken": (
        DOUBLE.replace('"double"', '"cross_entropy"') + HOOK,
        ["cross_entropy", "plugins/losses/cross_entropy.py", "plugins/losses/mine.py"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_one_line_that_names_its_file(trained_project: Project, case: str) -> None:
    source, parts = BROKEN[case]
    (trained_project.root / "plugins" / "losses" / "mine.py").write_text(source)
    result = trained_project.run("train")
    assert result.code == 1
    assert result.err.count("\n") == 1
    for part in ["plugins/losses/mine.py", *parts]:
        assert part in result.err


def test_a_ten_line_loss_trains(trained_project: Project) -> None:
    (trained_project.root / "plugins" / "losses" / "double.py").write_text(DOUBLE + HOOK)
    result = trained_project.succeed("train", "--set", "train.loss.name=double")
    assert "double and adamw" in result.out
    train = (trained_project.root / "metrics" / "train.json").read_text()
    objective, loss = (
        float(train.split(f'"{key}": ')[1].split(",")[0].split("\n")[0]) for key in ("objective", "loss")
    )
    assert objective > 1.5 * loss  # what is optimised is reported beside the plain loss


@pytest.mark.parametrize(
    ("reduction", "says"),
    [
        (".mean()", "returned [], not one number a target, [B, T] = [2, 16]"),
        (".flatten()", "returned [32], not one number a target"),
        (".nonsense()", "raised AttributeError"),
    ],
)
def test_a_loss_that_is_no_nats_is_refused_at_the_first_step(
    trained_project: Project, reduction: str, says: str
) -> None:
    source = (DOUBLE + HOOK).replace(".view(targets.shape)", reduction)
    (trained_project.root / "plugins" / "losses" / "double.py").write_text(source)
    result = trained_project.run("train", "--set", "train.loss.name=double")
    assert result.code == 1
    assert result.err.startswith("error: the loss 'double' ")
    assert result.err.count("\n") == 1
    assert says in result.err
    if "raised" in says:
        assert "(double.py line " in result.err


def test_a_broken_plugin_of_another_kind_does_not_stop_a_stage(trained_project: Project) -> None:
    (trained_project.root / "plugins" / "samplers" / "mine.py").write_text("raise RuntimeError\n")
    trained_project.succeed("train")
    assert trained_project.run("evaluate").code == 1


def test_a_file_whose_name_starts_with_an_underscore_is_no_plugin(project: Project) -> None:
    (project.root / "plugins" / "losses" / "_shared.py").write_text("raise RuntimeError\n")
    Registry.load(project.root / "plugins", ["losses"])


def test_unknown_names_and_options_are_errors_with_a_suggestion() -> None:
    registry = Registry.load(REPOSITORY / "plugins", ["optimizers"])
    with pytest.raises(ParamsError, match=r"train\.optimizer: there is no optimizer named 'adamv'.*'adamw'"):
        registry.build("optimizers", "adamv", {}, "train.optimizer")
    with pytest.raises(ParamsError, match=r"train\.optimizer\.adamw\.lrr: there is no such key"):
        registry.build("optimizers", "muon", {"adamw": {"lrr": 1.0}}, "train.optimizer")
    with pytest.raises(ParamsError, match=r"train\.optimizer\.adamw\.lr: input should be greater than 0, not -1"):
        registry.build("optimizers", "adamw", {"adamw": {"lr": -1.0}}, "train.optimizer")


FOREIGN = DOUBLE.replace('"double"', '"foreign"') + HOOK


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second package with an entry point, installed into a folder on the path (without any network)."""
    site = tmp_path / "site"
    metadata = site / "foreign_losses-1.2.dist-info"
    metadata.mkdir(parents=True)
    (site / "foreign_losses.py").write_text(FOREIGN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-losses\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[pipeline.plugins]\nforeign = foreign_losses\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_component_of_the_project_names_its_file_and_no_package() -> None:
    registry = Registry.load(REPOSITORY / "plugins", ["losses", "eval_callbacks"])
    assert registry.source_file("losses", "focal") == REPOSITORY / "plugins" / "losses" / "focal.py"
    trackers = REPOSITORY / "plugins" / "eval_callbacks" / "trackers" / "__init__.py"
    assert registry.source_file("eval_callbacks", "wandb") == trackers
    assert registry.distribution("losses", "focal") is None


def test_an_installed_package_is_found_and_recorded(installed: Path, trained_project: Project) -> None:
    registry = Registry.load(trained_project.root / "plugins", ["losses"])
    source = next(entry.source for entry in registry.entries("losses") if entry.component.name == "foreign")
    assert source == "entry point foreign = foreign_losses of package foreign-losses 1.2"
    assert registry.source_file("losses", "foreign") == installed / "foreign_losses.py"
    assert registry.distribution("losses", "foreign") == ("foreign-losses", "1.2")
    trained_project.succeed("train", "--set", "train.loss.name=foreign")
    trained_project.run("lock")
    assert 'foreign-losses: "1.2"' in (trained_project.root / "environment.yaml").read_text()


def test_an_installed_package_that_takes_a_name_is_an_error_naming_both(installed: Path, project: Project) -> None:
    (project.root / "plugins" / "losses" / "foreign.py").write_text(FOREIGN)
    with pytest.raises(PluginError, match=r"plugins/losses/foreign\.py.*foreign-losses 1\.2"):
        Registry.load(project.root / "plugins", ["losses"])


def test_loading_plugins_changes_no_random_state() -> None:
    before = torch.get_rng_state(), random.getstate()
    Registry.load(REPOSITORY / "plugins")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("kind", KINDS)
def test_pipeline_plugins_lists_every_component(project: Project, kind: str) -> None:
    result = project.call(["plugins", kind])
    assert result.code == 0
    for entry in Registry.load(project.root / "plugins", [kind]).entries(kind):
        assert f"  {entry.component.name}  ·  {entry.source}" in result.out
        for option in entry.component.model_fields:
            assert f"{option}=" in result.out
