"""Architectures that the shipped ones are not: a mixture of experts, and one without blocks and without a cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Project

from pipeline.authoring.testing import check_model
from pipeline.model import load
from pipeline.model.architecture import Architecture, units
from pipeline.model.generate import generate
from pipeline.plugin import ModelShape
from pipeline.plugin.registry import Registry

EXAMPLES = Path(__file__).with_name("models")
SHAPE = ModelShape(50, context_length=8, n_layers=2, n_heads=2, emb_dim=16, dropout=0.0, pad_vocab_to=64)
each = pytest.mark.parametrize("name", ["moe", "gla"])


def component(name: str, **options: Any) -> Any:
    registry = Registry.of_file(EXAMPLES / f"{name}.py", name)
    return registry.build("models", name, {name: options}, "model")


@each
def test_it_keeps_the_contract(name: str) -> None:
    check_model(component(name))
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 150


def test_what_has_blocks_is_compiled_and_sharded_by_them_and_else_as_a_whole() -> None:
    moe, gla = (Architecture(component(name), SHAPE).make() for name in ("moe", "gla"))
    assert units(moe) == list(moe.blocks)
    assert units(gla) == [gla]


@each
def test_generation_continues_past_the_context_as_without_a_cache(name: str) -> None:
    torch.manual_seed(0)
    model = Architecture(component(name), SHAPE).make().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.randint(50, (2, 3), generator=torch.Generator().manual_seed(1))
    drawn = torch.stack(list(generate(model, ids, 20)), dim=1)
    seen = 3
    for _ in range(20):  # a full context goes on from its later half
        seen = 4 if seen > 8 else seen
        with torch.no_grad():
            chosen = model(ids[:, -seen:]).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids, seen = torch.cat([ids, chosen], dim=1), seen + 1
    assert torch.equal(drawn, ids[:, 3:])


def test_a_balance_loss_is_one_where_all_experts_have_the_same_share() -> None:
    ids = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(0))
    model = Architecture(component("moe", balance=1.0), SHAPE).make()
    assert float(model(ids).auxiliary) == pytest.approx(1.0, abs=0.2)
    for block in model.blocks:  # every token to the same two
        torch.nn.init.zeros_(block.mlp.router.weight)
        block.mlp_norm.weight.data[:] = 0.0
    assert float(model(ids).auxiliary) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["gla", pytest.param("moe", marks=pytest.mark.long)])
def test_it_trains_evaluates_generates_and_exports_what_can_be_traced(name: str, project: Project) -> None:
    shutil.copy(EXAMPLES / f"{name}.py", project.root / "plugins" / "models" / f"{name}.py")
    chosen = ["--set", f"model.name={name}"]
    for stage in ("tokenize", "split"):
        project.succeed(stage, *chosen)
    project.succeed("train", *chosen)
    config = json.loads((project.root / "artifacts" / "checkpoint" / "config.json").read_text())
    assert (config["name"], config["shape"]["n_layers"]) == (name, 2)
    project.succeed("evaluate", *chosen)
    report = (project.root / "reports" / "report.html").read_text()
    assert ('<section id="attention">' in report) == (name == "moe")
    assert project.succeed("generate", "the", *chosen).out.startswith("the")
    loaded = load(project.root / "artifacts" / "checkpoint", plugins=project.root / "plugins")
    assert loaded.model.architecture.component.name == name
    project.succeed("export", *chosen, "--set", "export.formats.use=[torch_export]")
    for format in ("huggingface", "gguf"):
        refused = project.run("export", *chosen, "--set", f"export.formats.use=[{format}]")
        assert refused.code == 1
        assert f"model '{name}'" in refused.err
        assert refused.err.count("\n") == 1
    (project.root / "plugins" / "models" / f"{name}.py").unlink()
    missing = project.run("generate", "the", *chosen)
    assert missing.code == 1
    assert f"there is no model named '{name}'" in missing.err
