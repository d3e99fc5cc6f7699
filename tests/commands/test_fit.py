"""pipeline fit: its rules, what it writes, and what it keeps."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, made_up_text

from pipeline.commands import fit_rules
from pipeline.commands.timing import Speed
from pipeline.params.reader import load_params
from pipeline.plugin.splits import split_of

FLOPS = [1e11, 1e12, 1e13, 1e14, 1e16, 1e18]


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tokens", [8e3, 3e5, 1e7, 1e10])
@pytest.mark.parametrize("flops", FLOPS)
def test_a_setting_uses_the_computation_or_reads_the_text_as_often_as_is_useful(
    tokens: float, flops: float
) -> None:
    chosen = fit_rules.setting(tokens, 1024, flops)
    blocks = 12 * chosen.n_layers * chosen.emb_dim**2
    per_token = 6 * (blocks + 1024 * chosen.emb_dim) + 12 * chosen.n_layers * chosen.context_length * chosen.emb_dim
    used = chosen.steps * chosen.batch_size * chosen.context_length * per_token
    assert chosen.steps == 20 or chosen.limited or used == pytest.approx(flops, rel=0.06)
    assert chosen.epochs < 15.1
    assert chosen.emb_dim % (2 * chosen.n_heads) == 0
    assert chosen.context_length < tokens / 20
    assert 0.0 < chosen.adamw_lr < chosen.lr <= 0.08


def test_more_time_gives_larger_models_and_lower_rates() -> None:
    chosen = [fit_rules.setting(1e10, 4096, flops) for flops in FLOPS]
    assert all(one.n_layers * one.emb_dim < other.n_layers * other.emb_dim for one, other in pairwise(chosen))
    assert all(one.steps < other.steps and one.lr >= other.lr for one, other in pairwise(chosen))


def test_a_small_text_gets_a_small_model_and_more_dropout() -> None:
    small, large = (fit_rules.setting(tokens, 1024, 1e13) for tokens in (2e4, 1e8))
    assert small.n_layers * small.emb_dim < large.n_layers * large.emb_dim
    assert (large.dropout, small.limited, large.limited) == (0.0, True, False)
    assert small.dropout > fit_rules.setting(3e5, 1024, 1e13).dropout > 0


def test_the_vocabulary_grows_with_the_text_and_is_no_larger_than_the_model_can_afford() -> None:
    sizes = [fit_rules.vocabulary(size, 1e15) for size in (2e4, 1e5, 1e6, 2e7, 2e9)]
    assert sizes[0] == 0
    assert sizes == sorted(set(sizes))
    assert fit_rules.vocabulary(2e9, 1e12) < sizes[-1]


def test_other_steps_change_rates_and_dropout_but_no_more_than_the_text_is_worth() -> None:
    chosen = fit_rules.setting(1e5, 512, 1e12)
    longer = fit_rules.with_steps(chosen, 10**6, 1e5)
    assert (longer.limited, longer.n_layers, longer.batch_size) == (True, chosen.n_layers, chosen.batch_size)
    assert longer.epochs < 15.1
    shorter = fit_rules.with_steps(chosen, 30, 1e5)
    assert (shorter.steps, shorter.lr) == (30, 0.08)
    assert shorter.dropout < longer.dropout


# ── the command ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Trial steps that take no time; the params of each."""
    tried: list[Any] = []

    class Trial:
        speed = Speed(start=2.0, compile=0.0, window=2e-3, update=1e-3, evaluation=1e-4)

    def try_steps(params: Any, paths: Any, splits: Path) -> Trial:
        tried.append(params)
        return Trial()

    monkeypatch.setattr("pipeline.commands.fit.try_steps", try_steps)
    return tried


def fit(project: Project, *arguments: str) -> Any:
    return project.run("fit", *arguments, tiny=False)


def test_the_settings_are_written_with_their_reasons_and_train(project: Project, measured: list[Any]) -> None:
    before = load_params(project.root / "params.yaml")
    result = fit(project, "--minutes", "0.5")
    assert result.code == 0, result.err
    told = dict(line.split(None, 1) for line in result.out.splitlines() if line[0].isalpha())
    assert {"text", "machine", "tokens", "split", "model", "batch", "length", "dropout", "rates", "time"} <= set(
        told
    )
    reasons = result.out.partition("tokenize.corpus.name:")[0]
    assert max(map(len, reasons.splitlines())) <= 80
    after = load_params(project.root / "params.yaml")
    assert after.tokenize.corpus.name == "files"
    assert after.split.by == "position"  # 12 documents are few
    names = sorted(path.name for path in (project.root / "data" / "raw").iterdir())
    assert names[-1] in told["split"] + result.out.partition("split ")[2].partition("model ")[0]
    assert after.model == measured[-1].model
    assert f"{after.train.budget.amount:,} steps" in told["length"]
    assert after.runtime == before.runtime
    assert after.evaluate.generation.prompts[0] in made_up_text(0, 300)[:200].replace("\n", " ")
    assert "already" in fit(project, "--minutes", "0.5").out


def test_val_and_test_get_documents_whatever_the_seed_in_the_params_would_give(
    project: Project, measured: list[Any]
) -> None:
    names = [f"n{number}.txt" for number in range(400)]
    unlucky = [name for name in names if split_of(name, 2, 0.1, 0.1) != "test"][:60]
    for name in unlucky:
        (project.root / "data" / "raw" / name).write_text(made_up_text(unlucky.index(name), 900))
    result = fit(project, "--minutes", "0.5")
    assert result.code == 0, result.err
    split = load_params(project.root / "params.yaml").split
    documents = [path.name for path in (project.root / "data" / "raw").iterdir()]
    found = Counter(split_of(name, split.seed, split.val, split.test) for name in documents)
    assert split.by == "document"
    assert min(found["val"], found["test"]) >= 3


def test_documents_are_counted_as_tokenize_does_and_told_where_they_are_held_out(
    project: Project, measured: list[Any]
) -> None:
    raw = project.root / "data" / "raw"
    for number in range(12):
        (raw / f"more{number}.txt").write_text(made_up_text(number, 900))
    (raw / "empty.txt").write_text("")
    (raw / "old.txt").write_bytes(("La rivière court à la mer ; été, où êtes-vous ? " * 99).encode("cp1252"))
    sets = ("tokenize.corpus.name=files", "tokenize.corpus.files.encoding=auto")
    result = fit(project, "--minutes", "0.5", *(part for each in sets for part in ("--set", each)))
    assert result.code == 0, result.err
    assert "in 25 documents" in result.out
    assert "25 documents" in project.run("tokenize", tiny=False).out
    assert load_params(project.root / "params.yaml").split.by == "document"
    assert re.search(r"\(val:\s+\S+\.txt,\s+\S+\.txt", result.out)
    assert result.out.count("encodings that were detected") == 1
    (raw / "book.txt").write_text(made_up_text(0, 20_000))  # a large part of the text
    again = fit(project, "--minutes", "0.5")
    assert "split.by: document → position" in again.out
    assert re.search(r"test:\s+a\s+part\s+of\s", again.out)
    project.run("tokenize", tiny=False)
    assert "documents that are cut count in each of their splits: 2 more" in project.run("split", tiny=False).out


def test_in_a_dvc_project_what_dvc_compares_is_recorded(project: Project, measured: list[Any]) -> None:
    assert not (project.root / "environment.yaml").exists()
    fit(project, "--minutes", "0.5")
    assert not (project.root / "environment.yaml").exists()
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    fit(project, "--minutes", "0.5", "--dry-run")
    assert not (project.root / "environment.yaml").exists()
    told = fit(project, "--minutes", "0.5", "--set", "tokenize.corpus.files.encoding=auto").out
    assert "environment.yaml written (new file)" in told
    assert "charset-normalizer" in (project.root / "environment.yaml").read_text()
    assert "dvc add data/raw" in told
    assert "charset-normalizer" in project.run("preset", "tiny", tiny=False).out
    assert "charset-normalizer" not in (project.root / "environment.yaml").read_text()
    assert "environment.yaml is up to date" in project.succeed("lock").out


def test_a_dry_run_writes_nothing(project: Project, measured: list[Any]) -> None:
    before = (project.root / "params.yaml").read_bytes()
    for option in ("--dry-run", "--show"):
        assert "train.budget.amount: 1600 → " in fit(project, option).out
    assert (project.root / "params.yaml").read_bytes() == before


def test_what_is_set_is_kept_and_written(project: Project, measured: list[Any]) -> None:
    sets = ("model.n_layers=5", "split.val=0.3", "tokenize.tokenizer.name=bytes", "runtime.threads=1")
    result = fit(project, "--minutes", "0.5", *(part for each in sets for part in ("--set", each)))
    assert result.code == 0, result.err
    assert {each.model.n_layers for each in measured} == {5}
    after = load_params(project.root / "params.yaml")
    assert (after.model.n_layers, after.split.val, after.tokenize.tokenizer.name) == (5, 0.3, "bytes")
    assert after.runtime.threads == 0


def test_the_tokenizer_of_token_ids_is_kept(project: Project, measured: list[Any]) -> None:
    raw = project.root / "data" / "raw"
    ids = [each for path in sorted(raw.iterdir()) for each in [*path.read_bytes(), 256]]
    np.array(ids, dtype="<u2").tofile(raw / "all.bin")
    sets = (
        "tokenize.corpus.name=token_files", "tokenize.corpus.token_files.end_of_text=256",
        "tokenize.tokenizer.name=bytes",
    )  # fmt: skip
    result = fit(project, "--minutes", "0.5", *(part for each in sets for part in ("--set", each)))
    assert result.code == 0, result.err
    after = load_params(project.root / "params.yaml")
    assert (after.tokenize.corpus.name, after.tokenize.tokenizer.name) == ("token_files", "bytes")
    assert after.evaluate.generation.prompts[0] in made_up_text(0, 300)[:200].replace("\n", " ")
    assert "in 12 documents" in result.out
    assert "a vocabulary of 257" in result.out


def test_too_little_text_is_one_line(project: Project, measured: list[Any]) -> None:
    for path in (project.root / "data" / "raw").iterdir():
        path.unlink()
    (project.root / "data" / "raw" / "a.txt").write_text("too short")
    result = fit(project)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "9 bytes" in result.err
    assert fit(project, "--minutes", "0").code == 2


def test_minutes_that_the_start_alone_takes_are_told(
    project: Project, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        speed = Speed(start=50.0, compile=0.0, window=2e-3, update=1e-3, evaluation=1e-4)

    monkeypatch.setattr("pipeline.commands.fit.try_steps", lambda *arguments: Slow)
    result = fit(project, "--minutes", "1")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "--minutes 1" in result.err
    assert "give at least 3" in result.err
