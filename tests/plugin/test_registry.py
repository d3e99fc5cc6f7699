"""The registry: files in plugins/ and installed packages are loaded; messages for broken ones name the file."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Project, make_project
from ruamel.yaml import YAML

from pipeline.core.errors import ParamsError, PluginError
from pipeline.core.fingerprint import code_identity, fingerprint
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

BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "import error": ("import nonsense_module\n", ["line 1", "nonsense_module"]),
    "syntax error": ("def broken(:\n", ["line 1", "SyntaxError"]),
    "no UTF-8": (b'x = "caf\xe9"\n', ["SyntaxError"]),
    "leaves on import": ("import sys\n\nsys.exit(3)\n", ["line 3", "SystemExit: 3"]),
    "raises no Exception": ("raise BaseException('so there')\n", ["line 1", "so there"]),
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
    "no subclass": (DOUBLE + HOOK.replace("[Double]", "[dict]"), ["dict", "subclass of Loss"]),
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
    "unknown argument": (
        DOUBLE.replace("targets):", "targets, step, weights):") + HOOK,
        ["__call__", "may take inputs, step, total_steps, teacher"],
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


CALLBACKS = {
    "no method": ("    def after_steps(self, event): pass", "after_step, eval_weights"),
    "wrong signature": ("    def after_step(self): pass", "after_step must take (self, event)"),
    "only records": (
        "    records_only: ClassVar[bool] = True\n    def eval_weights(self, event): pass",
        "remove records_only",
    ),
}


@pytest.mark.parametrize("case", CALLBACKS)
def test_a_callback_that_can_do_nothing_is_one_line(tmp_path: Path, case: str) -> None:
    body, says = CALLBACKS[case]
    path = tmp_path / "mine.py"
    path.write_text(
        f"from typing import ClassVar\nfrom pipeline.plugin import EvalCallback, hookimpl\n\n"
        f'class Mine(EvalCallback):\n    """Mine."""\n    name: ClassVar[str] = "mine"\n{body}\n\n'
        "@hookimpl\ndef register_eval_callbacks():\n    return [Mine]\n"
    )
    (broken,) = Registry.of_file(path, str(path)).broken
    for part in ("Mine", says):
        assert part in broken.message


def write_loss(project: Project, source: str | bytes) -> None:
    """Writes plugins/losses/mine.py with this source."""
    content = source if isinstance(source, bytes) else source.encode()
    (project.root / "plugins" / "losses" / "mine.py").write_bytes(content)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_one_line_that_names_its_file(project: Project, case: str) -> None:
    source, parts = BROKEN[case]
    write_loss(project, source)
    result = project.run("plugins", "check", "plugins/losses/mine.py")
    assert result.code == 1
    assert result.err.count("\n") == 1
    for part in ["plugins/losses/mine.py", *parts]:
        assert part in result.err


@pytest.mark.parametrize("case", [case for case in BROKEN if case != "name taken"])
def test_a_broken_plugin_that_nothing_chooses_is_one_note(project: Project, case: str) -> None:
    source, parts = BROKEN[case]
    write_loss(project, source)
    notes: list[str] = []
    registry = Registry.load(project.root / "plugins", ["losses"], notes.append)
    for _ in range(2):
        registry.build("losses", "cross_entropy", {}, "train.loss")
    (note,) = notes
    for part in ["note: plugins/losses/mine.py", *parts, "not loaded"]:
        assert part in note
    with pytest.raises(ParamsError, match=r"train\.loss: there is no loss named 'absent'") as error:
        registry.build("losses", "absent", {}, "train.loss")
    for part in ["plugins/losses/mine.py", *parts]:
        assert part in str(error.value)


def test_a_name_that_two_plugins_claim_is_an_error_only_where_it_is_chosen(project: Project) -> None:
    write_loss(project, BROKEN["name taken"][0])
    notes: list[str] = []
    registry = Registry.load(project.root / "plugins", ["losses"], notes.append)
    registry.build("losses", "focal", {}, "train.loss")
    assert len(notes) == 1
    with pytest.raises(PluginError, match=r"train\.loss: .*/mine\.py.*plugins/losses/cross_entropy\.py"):
        registry.build("losses", "cross_entropy", {}, "train.loss")
    (project.root / "plugins" / "losses" / "mine.py").rename(project.root / "plugins" / "losses" / "a.py")
    for name in ("a", "cross_entropy"):  # which of the two was read first makes no difference
        result = project.run("plugins", "check", f"plugins/losses/{name}.py")
        assert result.code == 1
        assert "plugins/losses/a.py" in result.err
        assert "plugins/losses/cross_entropy.py" in result.err


def test_a_stage_runs_beside_broken_plugins_and_says_so_once(trained_project: Project) -> None:
    write_loss(trained_project, BROKEN["syntax error"][0])
    (trained_project.root / "plugins" / "eval_callbacks" / "other.py").write_text("raise SystemExit\n")
    result = trained_project.succeed("train", "--set", "train.eval_callbacks.use=[]")
    for path in ("plugins/losses/mine.py", "plugins/eval_callbacks/other.py"):
        assert result.out.count(f"note: {path}: line 1: ") == 1
    result = trained_project.run("train", "--set", "train.eval_callbacks.use=[other]")
    assert result.code == 1
    assert result.err.count("\n") == 1
    for part in ("train.eval_callbacks", "'other'", "plugins/eval_callbacks/other.py: line 1: SystemExit"):
        assert part in result.err


def test_a_person_who_interrupts_an_import_is_obeyed(project: Project) -> None:
    write_loss(project, "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Registry.load(project.root / "plugins", ["losses"])


def test_the_other_components_are_listed_and_described_beside_a_broken_one(project: Project) -> None:
    write_loss(project, BROKEN["syntax error"][0])
    for command in (["plugins"], ["plugins", "losses"], ["schema"]):
        out = project.succeed(*command).out
        assert "plugins/losses/mine.py: line 1: SyntaxError" in out
    assert "focal  ·  plugins/losses/focal.py" in project.succeed("plugins", "losses").out
    assert '"focal"' in (project.root / "params.schema.json").read_text()
    assert "mine.py" not in project.succeed("plugins", "samplers").out
    result = project.run("plugins", "show", "mine")
    assert result.code == 1
    assert "plugins/losses/mine.py: line 1: SyntaxError" in result.err


def test_text_that_is_generated_is_alone_on_the_standard_output(trained_project: Project) -> None:
    (trained_project.root / "plugins" / "samplers" / "mine.py").write_text("raise RuntimeError\n")
    result = trained_project.succeed("generate", "the")
    assert result.out.startswith("the")
    assert "note" not in result.out
    assert "note: plugins/samplers/mine.py: line 1: RuntimeError" in result.err


def test_the_shipped_plugins_are_whole() -> None:
    assert Registry.load(REPOSITORY / "plugins").broken == []


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
        (".mean()", "returned [], not one number per target, [B, T] = [2, 16]"),
        (".flatten()", "returned [32]"),
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
        assert "(plugins/losses/double.py line " in result.err


def test_a_broken_plugin_of_another_kind_is_no_business_of_a_stage(trained_project: Project) -> None:
    (trained_project.root / "plugins" / "samplers" / "mine.py").write_text("raise RuntimeError\n")
    assert "mine.py" not in trained_project.succeed("train").out


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
    with pytest.raises(ParamsError, match=r"train\.optimizer\.muon\.lr: input should be greater than 0"):
        registry.build("optimizers", "adamw", {"muon": {"lr": -1.0}}, "train.optimizer")


def test_options_under_a_name_that_nothing_has_or_chooses_are_a_note() -> None:
    notes: list[str] = []
    registry = Registry.load(REPOSITORY / "plugins", ["optimizers", "samplers"], notes.append)
    for _ in range(2):
        registry.build("optimizers", "adamw", {"adamv": {"lr": 1.0}}, "train.optimizer")
        assert registry.build_all("samplers", [], {"topk": {"k": 3}}, "evaluate.samplers") == []
    assert [note.split(": ")[:2] for note in notes] == [
        ["note", "train.optimizer.adamv"],
        ["note", "evaluate.samplers.topk"],
    ]
    assert "did you mean 'adamw'" in notes[0]
    assert "did you mean 'top_k'" in notes[1]


def test_what_a_component_raises_when_it_is_built_is_one_line(project: Project) -> None:
    source = DOUBLE.replace("    def", "    def model_post_init(self, context):\n        1 / 0\n    def", 1)
    write_loss(project, source + HOOK)
    registry = Registry.load(project.root / "plugins", ["losses"])
    with pytest.raises(PluginError, match=r"train\.loss\.double.*ZeroDivisionError.*mine\.py line"):
        registry.build("losses", "double", {}, "train.loss")


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
    monkeypatch.delitem(sys.modules, "foreign_losses", raising=False)
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
    trained_project.succeed("lock")
    environment = YAML(typ="safe").load(trained_project.root / "environment.yaml")
    assert environment["plugins"]["losses"]["foreign-losses"].startswith("1.2 code ")
    assert not any(environment["plugins"][kind] for kind in KINDS if kind != "losses")


def test_a_package_that_is_reinstalled_with_other_code_under_its_version_is_noticed(
    installed: Path, project: Project
) -> None:
    module = installed / "foreign_losses"
    module.mkdir()
    (installed / "foreign_losses.py").rename(module / "__init__.py")
    helper = module / "helper.py"

    def write(text: str) -> dict[str, str]:
        helper.write_text(text)
        project.succeed("lock")
        losses = YAML(typ="safe").load(project.root / "environment.yaml")["plugins"]["losses"]
        source = Registry.load(None, ["losses"]).source_file("losses", "foreign")
        identity = code_identity("pipeline.train.stage", [source], project.root / "plugins", {})
        return {"dvc": losses["foreign-losses"], "fingerprint": fingerprint(identity)}

    for line in ("from foreign_losses.helper import SCALE", "from .helper import SCALE"):
        (module / "__init__.py").write_text(f"{line}\n{FOREIGN}")
        first = write("SCALE = 1.0\n")
        assert "up to date" in project.succeed("lock").out
        assert write("SCALE = 1.0  # as it was\n") == first
        other = write("SCALE = 2.0\n")
        assert other["dvc"] != first["dvc"]
        assert other["fingerprint"] != first["fingerprint"]


def test_an_installed_package_that_takes_a_name_is_an_error_naming_both(installed: Path, project: Project) -> None:
    (project.root / "plugins" / "losses" / "foreign.py").write_text(FOREIGN)
    registry = Registry.load(project.root / "plugins", ["losses"], lambda note: None)
    with pytest.raises(PluginError, match=r"foreign-losses 1\.2.*plugins/losses/foreign\.py"):
        registry.build("losses", "foreign", {}, "train.loss")


def test_a_broken_installed_package_stops_nobody_else(installed: Path, project: Project) -> None:
    (installed / "foreign_losses.py").write_text("import nonsense_module\n")
    notes: list[str] = []
    registry = Registry.load(project.root / "plugins", ["losses", "optimizers"], notes.append)
    registry.build("losses", "focal", {}, "train.loss")
    assert notes == []  # the optimizer may still come from it
    with pytest.raises(
        ParamsError, match=r"'foreign'.*foreign-losses 1\.2: .*ModuleNotFoundError.*nonsense_module"
    ):
        registry.build("optimizers", "foreign", {}, "train.optimizer")
    registry.build("optimizers", "adamw", {}, "train.optimizer")
    (note,) = notes
    for part in ("foreign-losses 1.2", "foreign_losses.py line 1: ModuleNotFoundError", "install the package"):
        assert part in note
    assert registry.packages() == {"losses": {"foreign-losses": "1.2"}, "optimizers": {"foreign-losses": "1.2"}}


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


def test_the_installed_command_loads_packages_of_modules(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "pipeline"
    if not script.exists():
        pytest.skip("the package is not installed")
    make_project(tmp_path / "project")
    package = tmp_path / "project/plugins/losses/double"
    package.mkdir()
    (package / "__init__.py").write_text("from . import helper\nregister_losses = helper.register_losses\n")
    (package / "helper.py").write_text(DOUBLE + HOOK)
    # Unlike `python -m`, it has neither the project's folder nor PYTHONPATH's in sys.path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listed = subprocess.run(
        [script, "plugins"], cwd=tmp_path / "project", env=environment, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert "not loaded" not in listed.stdout
    assert "plugins/losses/double/__init__.py" in listed.stdout
    assert "plugins/corpora/files/__init__.py" in listed.stdout


def test_a_folder_without_plugins_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=rf"train.loss: .*{tmp_path}/plugins is missing: run this in the project"):
        Registry.load(tmp_path / "plugins").check_there("losses", "focal", "train.loss")
