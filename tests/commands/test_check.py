"""pipeline check: prints all problems, and writes nothing."""

from __future__ import annotations

import json
import re
import subprocess
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from conftest import Project, start_fork_server

from pipeline.core.environment import environment_yaml
from pipeline.plugin.registry import Registry


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the trial steps, which take some time."""
    monkeypatch.setattr("pipeline.commands.check._measure", lambda *arguments: None)


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial's child needs no time for its imports."""
    start_fork_server()
    monkeypatch.setattr("pipeline.commands.trial.get_context", lambda method: get_context("forkserver"))


def tree(root: Path) -> dict[str, bytes | None]:
    """The bytes of all files by path, without Python's caches."""
    paths = [path for path in root.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def test_before_the_first_run_the_corpus_is_tokenized_and_nothing_is_written(project: Project) -> None:
    (project.root / "environment.yaml").write_text(environment_yaml(Registry.load(None).packages()))
    before = tree(project.root)
    told = project.succeed("check").out
    assert tree(project.root) == before
    assert "12 documents" in told
    assert re.search(r"^held out val: \S+, .*; test: \S+, .* \(by document\)$", told, flags=re.MULTILINE)
    assert " of train, " in told
    assert "environment.yaml is up to date" in told
    assert "nothing found that would stop the run" in told
    assert "tokens/s" in told


def test_after_a_split_the_numbers_are_those_of_the_run(trained_project: Project) -> None:
    told = trained_project.succeed("check").out
    trained = json.loads((trained_project.root / "metrics" / "train.json").read_text())
    meta = json.loads((trained_project.root / "artifacts" / "splits" / "meta.json").read_text())
    assert f"model    {trained['parameters']:,} parameters" in told
    assert f"tokens: {meta['files']['train']['tokens']:,} of train, " in told
    assert f"for {trained['steps']} steps" in told


def test_memory_is_told_in_its_parts(project: Project) -> None:
    told = project.succeed("check", "--set", "model.emb_dim=256").out
    memory = re.search(
        r"^memory .* [\d.]+ [MG]B \(weights ([\d.]+) MB, gradients ([\d.]+) MB, optimizer ([\d.]+) MB, "
        r"activations [\d.]+ MB, saving ([\d.]+) MB, Python [\d.]+ MB\) with 2 windows at once, measured$",
        told,
        flags=re.MULTILINE,
    )
    assert memory, told
    parameters = re.search(r"^model    ([\d,]+) parameters", told, flags=re.MULTILINE)
    assert parameters
    count = int(parameters.group(1).replace(",", ""))
    assert [float(part) for part in memory.groups()] == [round(size * count / 1e6, 1) for size in (4, 4, 8, 16)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_compute_their_share_of_a_batch_at_once(project: Project, strategy: str) -> None:
    settings = ["train.micro_batch_size=4", "runtime.processes=4", f"runtime.strategy={strategy}"]
    told = project.succeed("check", *(part for setting in settings for part in ("--set", setting))).out
    assert re.search(r"^memory   each of 4 processes needs .* with one window at once", told, flags=re.MULTILINE)
    assert ("under fsdp each keeps 1/4 of weights, gradients and optimizer" in told) == (strategy == "fsdp")


def test_a_step_that_would_not_fit_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.check.memory_per_process", lambda device, processes: 10**8)
    assert re.search(r"note: cpu has 100\.0 MB .*train\.micro_batch_size, now 2", project.succeed("check").out)


@pytest.mark.parametrize("setting", ["model.emb_dim=2000000", "model.context_length=2000000000"])
def test_a_model_that_cannot_fit_is_told_before_any_of_it_is_made(project: Project, setting: str) -> None:
    result = project.run("check", "--set", setting)
    assert result.code == 1
    assert result.err == "error: 1 problem would stop the run: see above\n"
    assert result.out.count("PROBLEM") == 1


def test_a_model_that_cannot_fit_is_refused_by_training_too(trained_project: Project) -> None:
    result = trained_project.run("train", "--set", "model.emb_dim=2000000")
    assert result.code == 1
    assert "lower model.n_layers or model.emb_dim" in result.err


def test_all_that_would_stop_the_run_is_told_at_once(project: Project) -> None:
    for path in (project.root / "data" / "raw").iterdir():
        path.unlink()
    settings = ["--set", "runtime.device=cuda:7", "--set", "train.loss.name=focall"]
    result = project.run("check", *settings)
    assert result.code == 1
    assert result.err == "error: 3 problems would stop the run: see above\n"
    told = [line for line in result.out.splitlines() if line.startswith("PROBLEM")]
    for line, words in zip(told, ("did you mean 'focal'", "cuda:7", "holds no file"), strict=True):
        assert words in line


def test_a_prompt_that_the_tokenizer_cannot_read_is_told(project: Project) -> None:
    chosen = ["--set", "tokenize.tokenizer.name=characters"]
    project.succeed("tokenize", *chosen)
    project.succeed("split", *chosen)
    result = project.run("check", *chosen, "--set", "evaluate.generation.prompts=[Ωmega]")
    assert result.code == 1
    assert "PROBLEM  'Ωmega' cannot be tokenized" in result.out


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("x.txt", b"caf\xe9", "not UTF-8 at byte 3"), ("x.jsonl", b'{"body": 1}', "no field 'text'")],
)
def test_a_text_that_cannot_be_read_is_told_also_after_a_run(
    trained_project: Project, name: str, content: bytes, message: str
) -> None:
    (trained_project.root / "data" / "raw" / name).write_bytes(content)
    result = trained_project.run("check")
    assert result.code == 1
    assert message in result.out


@pytest.mark.usefixtures("untried")
def test_a_split_that_would_be_empty_and_another_tokenizer_are_seen_after_a_run(trained_project: Project) -> None:
    told = trained_project.run("check", "--set", "split.val=0.000001").out
    assert "PROBLEM  split: val gets 0 of 12 documents" in told
    vocabulary = ["--set", "tokenize.tokenizer.bpe.vocab_size=4096"]
    assert "note: the vocabulary has only" in trained_project.succeed("check", *vocabulary).out


@pytest.mark.usefixtures("untried")
def test_of_a_large_corpus_only_the_beginning_is_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.sample._READ_AT_MOST", 5000)
    for tokenizer in ("bpe", "characters", "bytes"):
        told = project.succeed("check", "--set", f"tokenize.tokenizer.name={tokenizer}").out
        assert "large corpus" in told
        assert " 4 documents, " in told
        assert "nothing found that would stop the run" in told


@pytest.mark.usefixtures("untried")
def test_the_beginning_of_every_file_of_a_large_corpus_is_read(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.commands.sample._READ_AT_MOST", 5000)
    assert re.search(r"its beginning was read and that of \d+ files", project.succeed("check").out)
    (project.root / "data" / "raw" / "zz.jsonl").write_text('{"body": "the river"}\n')
    told = project.run("check")
    assert told.code == 1
    assert "data/raw/zz.jsonl line 1 has no field 'text'" in told.out


@pytest.mark.usefixtures("untried")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("architecture", "tokenizer", "reason"),
    [("modern", "bpe", "the model 'modern'"), ("gpt2", "characters", "character tokenizers"), ("gpt2", "bpe", "")],
)
def test_a_format_that_has_no_form_for_the_model_or_its_tokenizer_is_told(
    architecture: str, tokenizer: str, reason: str, project: Project
) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    settings = (
        f"model.name={architecture}",
        f"tokenize.tokenizer.name={tokenizer}",
        "export.formats.use=[huggingface, gguf]",
    )
    result = project.run("check", *(part for setting in settings for part in ("--set", setting)))
    assert result.out.count("PROBLEM  ") == result.code == bool(reason)
    assert not reason or re.search(f"^PROBLEM  export gguf: .*{reason}", result.out, flags=re.MULTILINE)


def test_a_device_that_is_not_there_is_told_once(project: Project) -> None:
    result = project.run("check", "--set", "runtime.device=cuda")
    assert result.err == "error: 1 problem would stop the run: see above\n"


@pytest.mark.usefixtures("untried")
def test_texts_that_nobody_reads_are_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.sample._READ_AT_MOST", 100_000)
    settings = ("tokenize.corpus.name=python_docs", "tokenize.tokenizer.name=bytes", "split.val=0.05")
    told = project.run("check", *(part for setting in settings for part in ("--set", setting))).out
    assert "note: data/raw " in told
    assert "tokenize.corpus.name is python_docs" in told


@pytest.mark.usefixtures("untried")
def test_texts_that_are_left_out_or_lie_behind_links_are_told(project: Project, tmp_path: Path) -> None:
    raw = project.root / "data" / "raw"
    for name in ("a.pdf", "b.PDF", "c.html"):
        (raw / name).write_text("the sea")
    for command in ("check", "tokenize"):
        assert "note: files left out: 2 .pdf, 1 .html (not in include)" in project.succeed(command).out
    (tmp_path / "disk").mkdir()
    (raw / "linked").symlink_to(tmp_path / "disk")
    assert "PROBLEM  data/raw/linked is a link to a folder" in project.run("check").out
    assert "data/raw/linked is a link to a folder" in project.run("tokenize").err
    elsewhere = project.run("tokenize", "--set", "tokenize.corpus.files.url=file:///gone").err
    assert "link" not in elsewhere
    assert "data/raw/.linked.manifest.json" in project.succeed("lock").out
    for command in ("check", "tokenize"):
        assert "note: files left out: 2 .pdf, 1 .html (not in include)" in project.succeed(command).out


@pytest.mark.usefixtures("untried")
def test_what_git_and_dvc_do_not_track_is_told(project: Project) -> None:
    assert "git repository" in project.succeed("check").out
    for command in (["init", "-q"], ["add", "params.yaml", "plugins", "data/tasks"]):
        subprocess.run(["git", *command], cwd=project.root, check=True)
    (project.root / ".gitignore").write_text("/data/raw/\n__pycache__/\n")
    (project.root / "plugins" / "losses" / "_draft.py").write_text('"""A draft."""\n')
    told = project.succeed("check").out
    assert "git does not track plugins/losses/_draft.py:" in told
    assert "DVC does not track data/raw" in told
    assert "environment.yaml is not up to date (new file)" in told
    project.succeed("lock")
    path = project.root / "environment.yaml"
    path.write_text(re.sub("torch: .*", 'torch: "1.0"', path.read_text()))
    told = project.succeed("check").out
    assert 'environment.yaml is not up to date (torch "1.0" → ' in told
