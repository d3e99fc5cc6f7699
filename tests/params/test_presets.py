"""Presets: every value explicit, comments kept, and the way back leaves no trace."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import pytest
from conftest import REPOSITORY, STAGES, Project
from ruamel.yaml import YAML

from pipeline.core.errors import ParamsError
from pipeline.params import schema
from pipeline.params.params import Choice
from pipeline.params.presets import PRESETS, write_preset
from pipeline.params.reader import load_params
from pipeline.plugin.registry import Registry

SHIPPED = (REPOSITORY / "params.yaml").read_text()
OTHERS = [name for name in PRESETS if name != "tiny"]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED)
    return path


def comments(text: str) -> list[str]:
    return re.findall(r"#.*", text)


def test_tiny_is_the_shipped_file_else_copy_it_to_pipeline_presets() -> None:
    assert (REPOSITORY / "pipeline" / "params" / "presets" / "tiny.yaml").read_text() == SHIPPED


def test_tiny_on_the_shipped_file_changes_nothing(params: Path) -> None:
    assert write_preset("tiny", params) == []
    assert params.read_text() == SHIPPED


@pytest.mark.parametrize("name", OTHERS)
def test_a_preset_keeps_every_comment_and_the_way_back_leaves_no_trace(params: Path, name: str) -> None:
    assert write_preset(name, params)
    assert comments(params.read_text()) == comments(SHIPPED)
    write_preset("tiny", params)
    assert params.read_text() == SHIPPED


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_run_whatever_was_in_the_file(params: Path, name: str) -> None:
    write_preset(name, params)
    fresh = params.read_text()
    for other in PRESETS:
        write_preset(other, params)
    write_preset(name, params)
    assert params.read_text() == fresh


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_values_fit(params: Path, name: str) -> None:
    write_preset(name, params)
    values = load_params(params)
    registry = Registry.load(REPOSITORY / "plugins")
    for name, kind in schema.COMPONENT_SECTIONS.items():
        chosen = attrgetter(name)(values)
        if isinstance(chosen, Choice):
            registry.build(kind, chosen.name, chosen.options, kind)
        else:
            registry.build_all(kind, chosen.use, chosen.options, kind)


def test_what_is_the_persons_own_stays(params: Path) -> None:
    text = SHIPPED.replace("    focal:\n", "    mine: {share: 0.3}   # my own loss\n    focal:\n")
    params.write_text(text.replace("  threads: 0 ", "  threads: 3 ") + "# the end\n")
    write_preset("book", params)
    values = YAML(typ="safe").load(params)
    assert values["train"]["loss"]["mine"] == {"share": 0.3}
    assert values["runtime"]["threads"] == 3
    assert "# my own loss" in params.read_text()
    assert params.read_text().endswith("# the end\n")


def test_a_missing_file_is_written_whole(tmp_path: Path) -> None:
    write_preset("shakespeare-char", tmp_path / "params.yaml")
    assert load_params(tmp_path / "params.yaml").tokenize.tokenizer.name == "characters"
    assert comments((tmp_path / "params.yaml").read_text()) == comments(SHIPPED)


def test_every_change_is_reported(params: Path) -> None:
    told = {str(change) for change in write_preset("shakespeare-char", params)}
    assert "model.context_length: 256 → 64" in told
    assert "tokenize.tokenizer.name: bpe → characters" in told
    assert not any("n_layers" in line for line in told)  # it is 4 in both


def test_changes_show_values_as_yaml(params: Path) -> None:
    told = set(write_preset("book", params))
    assert "model.gpt2.qkv_bias: true → false" in told
    assert 'evaluate.samplers.use: ["temperature", "top_k"] → ["top_k", "temperature"]' in told


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "line 1: not valid YAML"), ("- a\n- b\n", "holds a list"), ("", "is empty"), ("a: !!int b", "'b'")],
)
def test_a_file_that_cannot_be_read_stays_as_it_is(params: Path, content: str, message: str) -> None:
    params.write_text(content)
    with pytest.raises(ParamsError, match=message):
        write_preset("book", params)
    assert params.read_text() == content


def test_the_command_lists_writes_and_refuses(project: Project) -> None:
    listed = project.call(["preset"])
    assert all(name in listed.out for name in PRESETS)
    assert project.call(["preset", "book"]).code == 0
    assert load_params(project.root / "params.yaml").train.seed == 123
    refused = project.call(["preset", "books"])
    assert refused.code == 1
    assert refused.err == f"error: there is no preset 'books' (there are: {', '.join(PRESETS)})\n"


def test_shakespeare_char_runs_from_text_to_export_in_small(project: Project) -> None:
    assert project.call(["preset", "shakespeare-char"]).code == 0
    (project.root / "data" / "raw" / "notes.log").write_text("the river runs to the sea\n" * 99)
    small = [
        "model.n_layers=1", "model.emb_dim=16", "train.budget.amount=4", "train.evaluation.windows=4",
        "train.eval_callbacks.sample_text.prompt=the", "evaluate.generation.prompts=[the]",
        "train.eval_callbacks.sample_text.max_new_tokens=4", "evaluate.generation.max_new_tokens=4",
    ]  # fmt: skip
    for stage in STAGES:
        result = project.call([stage, *(part for value in small for part in ("--set", value))])
        assert result.code == 0, result.err
        if stage == "tokenize":
            assert "13 documents" in result.out  # every file under data/raw


@pytest.mark.parametrize("form", ["\r\n", "no line break at the end", "\ufeff", "plain"])
def test_a_preset_keeps_the_form_of_the_file(params: Path, form: str) -> None:
    text = SHIPPED.rstrip("\n") if form.startswith("no") else SHIPPED
    data = text.replace("\n", "\r\n") if form == "\r\n" else text
    params.write_bytes((("\ufeff" if form == "\ufeff" else "") + data).encode())
    before = params.read_bytes()
    assert write_preset("book", params)
    assert params.read_bytes().count(b"\r\n") == (params.read_bytes().count(b"\n") if form == "\r\n" else 0)
    assert write_preset("tiny", params)
    assert params.read_bytes() == before
