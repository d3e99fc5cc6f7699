"""What the documentation shows works, and what there is, it shows."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from conftest import REPOSITORY, Project
from safetensors import torch as safetensors_torch

import pipeline.plugin
from pipeline.authoring import testing
from pipeline.cli import cli
from pipeline.core.errors import CheckpointError
from pipeline.data.tokens import TokenFolder
from pipeline.export.stage import export_source
from pipeline.model import load, load_optimizer
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry

README = REPOSITORY / "README.md"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "benchmarks" / "RESULTS.md",
    *sorted((REPOSITORY / "data").rglob("README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
"""What people read."""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(code: str, names: dict[str, Any]) -> None:
    """Runs a document's code, without this module's future imports."""
    exec(compile(code, "document", "exec", dont_inherit=True), names)


def section(plural: str) -> str:
    guide = (REPOSITORY / "docs" / "plugins.md").read_text()
    found = re.search(rf"^## [^\n]*`register_{plural}`\n(.*?)(?=^## |\Z)", guide, flags=re.DOTALL | re.MULTILINE)
    assert found, f"docs/plugins.md has no section on register_{plural}"
    return found.group(1)


@pytest.mark.parametrize("plural", KINDS)
def test_every_hook_has_a_section_that_names_its_method_and_its_check(plural: str) -> None:
    text = section(plural)
    check = f"check_{KINDS[plural].singular.replace(' ', '_')}"
    assert check in text
    assert hasattr(testing, check)
    for method in KINDS[plural].base.__abstractmethods__:
        assert f"`{method}(" in text or f"{method}(" in text


def examples(plural: str) -> list[Any]:
    """The classes that a section of the guide shows, one in each block of code."""
    names: dict[str, Any] = {
        **vars(pipeline.plugin),
        **vars(typing),
        "Field": pydantic.Field,
        "torch": torch,
        "Path": Path,
    }
    names["nn"] = torch.nn
    names |= {
        "save_file": safetensors_torch.save_file,
        "load_file": safetensors_torch.load_file,
        "__name__": "guide",
    }
    codes = re.findall(r"^```python\n(.*?)^```$", section(plural), flags=re.DOTALL | re.MULTILINE)
    for code in codes:
        run(code, names)
    found = [
        value
        for value in names.values()
        if isinstance(value, type) and issubclass(value, KINDS[plural].base) and value.__module__ == "guide"
    ]
    assert len(found) == len(codes)
    return found


def test_the_guides_examples_keep_the_contract(trained: Path, tmp_path: Path) -> None:
    for plural in (
        "models",
        "losses",
        "optimizers",
        "schedules",
        "batch_samplers",
        "eval_callbacks",
        "samplers",
        "metrics",
    ):
        for component in examples(plural):
            if component.name == "schedule_free" and not find_spec("schedulefree"):
                continue
            getattr(testing, f"check_{KINDS[plural].singular.replace(' ', '_')}")(component)
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    for corpus in examples("corpora"):
        testing.check_corpus(corpus, tmp_path)
    checkpoint = load(trained / "artifacts" / "checkpoint", plugins=REPOSITORY / "plugins")
    (tmp_path / "export").mkdir()
    testing.check_exporter(*examples("exporters"), export_source(checkpoint, "the river runs"), tmp_path / "export")


def test_the_readmes_loss_trains_and_keeps_the_contract(trained_project: Project) -> None:
    (source,) = [code for code in blocks(README, "python") if "register_losses" in code]
    (trained_project.root / "plugins" / "losses" / "steep.py").write_text(source)
    settings = ["--set", "train.loss.name=steep", "--set", "train.loss.steep.power=2.0"]
    trained_project.succeed("train", *settings)
    names: dict[str, Any] = {"__name__": "readme"}
    run(source, names)
    testing.check_loss(names["Steep"])


@pytest.mark.parametrize(
    "optimizer",
    [
        "muon",
        "adamw",
        "torch",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("lion", "adafactor", "sgd")),
    ],
)
def test_the_readmes_lines_load_model_and_optimizer(trained_project: Project, optimizer: str) -> None:
    trained_project.succeed("train", "--set", f"train.optimizer.name={optimizer}")
    (code,) = [each for each in blocks(README, "python") if "optimizer_state_dict" in each]
    names: dict[str, Any] = {}
    run(code, names)
    checkpoint, model, loaded = (names[each] for each in ("checkpoint", "model", "optimizer"))
    for name, value in model.named_parameters():
        assert torch.equal(value, checkpoint["model_state_dict"][name])
    saved = checkpoint["optimizer_state_dict"]["param_groups"]
    assert [group["lr"] for group in loaded.param_groups] == [group["lr"] for group in saved]
    model(torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    loaded.step()


def test_the_optimizer_of_another_model_is_refused(trained: Path) -> None:
    with pytest.raises(CheckpointError, match="adamw"):
        load_optimizer(trained / "artifacts" / "checkpoint", torch.nn.Linear(2, 2), REPOSITORY / "plugins")


def test_the_splits_are_read_as_the_page_on_data_reads_them(trained_project: Project) -> None:
    (code,) = [each for each in blocks(REPOSITORY / "docs" / "data.md", "python") if "memmap" in each]
    names: dict[str, Any] = {}
    run(code, names)
    assert names["tokens"].tolist() == TokenFolder(Path("artifacts/splits"), "").ids("train").tolist()


def test_every_command_is_described() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        assert len(command.get_short_help_str(200)) < 60, f"{name}: the list of commands cuts it off"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_list_of_contents() -> None:
    contents = (REPOSITORY / "docs" / "README.md").read_text()
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in contents


def test_the_documents_name_commands_that_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`pipeline ([a-z]+)", page.read_text()):
            assert name in cli.commands, f"{page.name}: pipeline {name}"


def test_each_promise_of_reliability_names_a_test_that_is_there() -> None:
    text = (REPOSITORY / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    for path, name in named:
        assert f"def {name}(" in (REPOSITORY / path).read_text(), f"{path}::{name}"
    for row in re.findall(r"^\|(?! promise|---)(.*)\|$", text, flags=re.MULTILINE):
        assert "`tests/" in row, row
    # … and of the fault tests, each holds a promise.
    for path in ("tests/test_faults.py", "tests/train/test_resume.py"):
        for name in re.findall(r"^def (test_\w+)", (REPOSITORY / path).read_text(), flags=re.MULTILINE):
            assert (path, name) in named or name in UNNAMED, f"{path}::{name}"


UNNAMED = {
    "test_a_run_that_stops_again_and_again_ends_the_same",
    "test_a_checkpoint_restores_every_random_generator",
    "test_a_complete_run_is_saved_as_it_ended",
    "test_a_file_is_hashed_while_it_is_written",
    "test_weights_that_are_finite_are_kept_even_where_their_sum_is_not",
    "test_saving_a_checkpoint_keeps_torchs_choice_of_checksums",
    "test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_bits",
    "test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_error",
}
"""Tests of parts, which no promise needs by name."""


def test_the_package_of_the_guide_installs_and_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project,) = blocks(REPOSITORY / "docs" / "plugins.md", "toml")
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    (package / "pyproject.toml").write_text(project)
    greedy = (REPOSITORY / "plugins" / "samplers" / "greedy.py").read_text()
    (package / "noisy.py").write_text(greedy.replace('"greedy"', '"noisy"'))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, site, package], check=True)
    monkeypatch.syspath_prepend(str(site))
    registry = Registry.load(None)
    assert registry.names("samplers") == ["noisy"]
    assert registry.packages()["samplers"]["noisy"].startswith("1.0 code ")
