"""The train stage resumes, starts over, or extends; and says which, and why."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from conftest import Project

import pipeline.train.loop as loop
from pipeline.train.checkpoint_store import saved_runs
from pipeline.train.pending import Pending
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState

CHECKPOINT = "artifacts/checkpoint/model_and_optimizer.pth"


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def test_an_optimizer_that_cannot_be_sharded_is_refused_before_processes_start(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("pipeline.distributed.launch.run_on_ranks", lambda stage, *_, **__: started.append(stage))
    sharded = sets("runtime.processes=2", "runtime.strategy=fsdp")
    result = project.run("train", *sharded, *sets("train.optimizer.name=adafactor"))
    assert result.code == 1
    for part in ("train.optimizer.name: adafactor", "runtime.strategy: ddp"):
        assert part in result.err
    assert not started
    project.succeed("train", *sharded)
    assert started == ["train"]


# ── what changed ──────────────────────────────────────────────────────────────────────────────────


def test_the_same_run_resumes(interrupted: Project) -> None:
    out = interrupted.succeed("train").out
    assert "resuming from step 4" in out
    assert "starts over" not in out
    assert "note" not in out


def test_splits_of_other_params_are_named(interrupted: Project) -> None:
    told = interrupted.succeed("train", *sets("split.val=0.3", "tokenize.tokenizer.name=bytes")).out
    (line,) = [each for each in told.splitlines() if "artifacts/splits was made with other params" in each]
    assert "split.val is 0.3 in params.yaml, was 0.2" in line
    assert "tokenize.tokenizer.name is bytes in params.yaml, was bpe" in line


def test_a_changed_param_is_named_and_the_run_resumes_when_it_is_reset(interrupted: Project) -> None:
    changed = interrupted.succeed("train", *sets("train.optimizer.adamw.lr=0.01", "model.dropout=0.1")).out
    (line,) = [each for each in changed.splitlines() if "starts over" in each]
    assert line.endswith(": model.dropout 0.0 → 0.1; train.optimizer.adamw.lr 0.002 → 0.01")
    assert "resuming from step 4" in interrupted.succeed("train").out


def test_a_run_is_compared_with_the_most_similar_one(interrupted: Project) -> None:
    many = sets("train.seed=3", "model.dropout=0.1", "train.optimizer.adamw.lr=0.01", "train.budget.amount=1")
    interrupted.succeed("train", *many)  # the newest run
    out = interrupted.succeed("train", *sets("train.seed=4")).out
    (line,) = [each for each in out.splitlines() if "starts over" in each]
    assert line.endswith(": train.seed 1 → 4")


def test_another_model_is_named_without_its_files(interrupted: Project) -> None:
    out = interrupted.succeed("train", *sets("model.name=llama")).out
    (line,) = [each for each in out.splitlines() if "starts over" in each]
    assert "model.name gpt2 → llama" in line
    assert ".py" not in line


def test_changed_data_is_named(interrupted: Project) -> None:
    interrupted.succeed("split", *sets("split.seed=5"))
    assert re.search("starts over.*: the data\n", interrupted.succeed("train").out)


def test_changed_code_and_versions_are_named(interrupted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.core.fingerprint as identity

    versions, digest = identity.versions, identity.code_digest
    monkeypatch.setattr(identity, "versions", lambda: versions() | {"torch": "9.9"})
    monkeypatch.setattr(identity, "code_digest", lambda path: "0" if path.name == "loop.py" else digest(path))
    out = interrupted.succeed("train").out
    assert re.search(r"starts over.*: torch \S+ → 9\.9; code pipeline/train/loop\.py\n", out), out


# ── what is no reason to start over ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("setting", ["runtime.save_seconds=5", "runtime.restarts=3", "runtime.strategy=fsdp"])
def test_runtime_that_changes_no_bit_prints_no_note(interrupted: Project, setting: str) -> None:
    out = interrupted.succeed("train", *sets(setting)).out
    assert "resuming from step 4" in out
    assert "note" not in out


def test_other_threads_resume_with_a_note_that_bits_may_differ(interrupted: Project) -> None:
    out = interrupted.succeed("train", *sets("runtime.threads=2")).out
    assert "resuming from step 4" in out
    assert re.search(r"note: .*\(threads 1 → 2\)", out)
    assert "may differ" in out


def test_threads_left_open_are_those_that_the_run_began_with(interrupted: Project) -> None:
    out = interrupted.succeed("train", *sets("runtime.threads=0")).out
    assert "note" not in out
    assert torch.get_num_threads() == 1


def test_another_processor_is_reported(interrupted: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    assert re.search(r"note: .*\(processor \S+ → ABACUS\)", interrupted.succeed("train").out)


def test_compiling_without_a_compiler_is_one_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("tokenize", "split"):
        project.succeed(stage)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = project.run("train", *sets("runtime.compile=true"))
    assert result.code == 1
    assert result.err.startswith("error: runtime.compile: true, but there is no C++ compiler")


# ── the runs there are ────────────────────────────────────────────────────────────────────────────


def test_runs_are_listed_and_deleted(interrupted: Project) -> None:
    interrupted.succeed("train", *sets("train.seed=7"))
    finished, unfinished = saved_runs(interrupted.root / ".resume")
    lines = interrupted.succeed("runs").out.splitlines()
    assert re.fullmatch(r"run +step +size +saved +status +params", lines[0])
    row = r"{} +{} of 6 +[\d.]+ kB +\d+ \w+ ago +{} +seed {}"
    assert re.fullmatch(row.format(finished.folder.name, 6, "complete", 7), lines[1])
    assert re.fullmatch(row.format(unfinished.folder.name, 4, "unfinished", 1), lines[2])

    bad = interrupted.run("clean", "nothing")
    assert bad.code == 1
    assert "'nothing'" in bad.err
    assert f"(there are: {finished.folder.name}, {unfinished.folder.name})" in bad.err

    assert re.match(r"removed the checkpoints of 1 run, [\d.]+ kB", interrupted.succeed("clean", "--keep", "1").out)
    assert [run.folder for run in saved_runs(interrupted.root / ".resume")] == [finished.folder]
    assert "removed the checkpoints of 1 run," in interrupted.succeed("clean", finished.folder.name[:6]).out
    assert interrupted.succeed("runs").out == "there are no training checkpoints\n"


def test_a_few_finished_and_a_few_unfinished_runs_are_kept(interrupted: Project) -> None:
    unfinished = saved_runs(interrupted.root / ".resume")[0].folder.name
    for seed in range(10, 15):
        interrupted.succeed("train", *sets(f"train.seed={seed}"))
    kept = {run.folder.name: run.complete for run in saved_runs(interrupted.root / ".resume")}
    assert sorted(kept.values()) == [False, True, True, True]
    assert kept[unfinished] is False


def test_a_run_that_another_process_works_on_is_never_pruned(interrupted: Project) -> None:
    import fcntl

    (unfinished,) = saved_runs(interrupted.root / ".resume")
    for number in range(4):  # newer unfinished ones, so that it would go
        copy = unfinished.folder.with_name(f"{number:016x}")
        shutil.copytree(unfinished.folder, copy)
        for state in copy.glob("[0-9]*"):
            state.touch()
    with (unfinished.folder / "lock").open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        interrupted.succeed("train", *sets("train.seed=20"))
        names = {run.folder.name for run in saved_runs(interrupted.root / ".resume")}
        assert unfinished.folder.name in names
        assert len(names) == 5
        assert "process 4711" in interrupted.succeed("runs").out


# ── extending a finished run ──────────────────────────────────────────────────────────────────────


def weights(project: Project) -> dict[str, torch.Tensor]:
    saved = torch.load(project.root / CHECKPOINT, weights_only=True)
    return saved["model_state_dict"]


def test_a_run_of_no_steps_publishes_where_training_begins(trained_project: Project) -> None:
    def rows() -> list[dict[str, str]]:
        history = (trained_project.root / "metrics" / "history.tsv").read_text().splitlines()
        return [dict(zip(history[0].split("\t"), row.split("\t"), strict=True)) for row in history[1:]]

    begin = {name: value for name, value in rows()[0].items() if value}
    trained_project.succeed("train", *sets("train.budget.amount=0"))
    assert rows() == [begin]
    assert json.loads((trained_project.root / "metrics" / "train.json").read_text())["steps"] == 0
    assert "of step 0" in trained_project.succeed("evaluate").out


CONSTANT = sets("train.schedule.name=constant", "train.shift_windows=false", "model.dropout=0.2")


@pytest.mark.parametrize("there", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_extended_run_at_a_constant_rate_is_the_longer_run(project: Project, there: bool) -> None:
    """Whether the finished run's state is there, or that run has to be trained first."""
    for stage in ("tokenize", "split"):
        project.succeed(stage)
    project.succeed("train", *CONSTANT, *sets("train.budget.amount=10"))
    longer, history = weights(project), (project.root / "metrics" / "history.tsv").read_text()
    project.succeed("clean")
    if there:
        project.succeed("train", *CONSTANT)
    out = project.succeed("train", *CONSTANT, *sets("train.extension.amount=4")).out
    assert "extending the finished run from step 6 to 10" in out
    assert ("step      3" in out) != there
    torch.testing.assert_close(weights(project), longer, rtol=0, atol=0)
    assert (project.root / "metrics" / "history.tsv").read_text() == history
    assert json.loads((project.root / "metrics" / "train.json").read_text())["steps"] == 10
    assert "already complete" in project.succeed("train", *CONSTANT, *sets("train.extension.amount=4")).out
    assert "already complete" in project.succeed("train", *CONSTANT).out


def test_an_extension_climbs_to_its_peak_and_is_interrupted_like_any_run(
    interrupted: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = sets("train.extension.amount=4", "train.evaluation.every=1", "runtime.save_seconds=0")
    whole = loop.take_step

    def dies(run: TrainingRun, state: TrainState, pending: Pending) -> None:
        if state.step == 8:
            raise KeyboardInterrupt
        whole(run, state, pending)

    monkeypatch.setattr(loop, "take_step", dies)
    assert interrupted.run("train", *more).code == 130
    monkeypatch.setattr(loop, "take_step", whole)
    out = interrupted.succeed("train", *more).out
    assert "resuming from step 8" in out
    assert "extending" not in out
    resumed = weights(interrupted)
    rows = (interrupted.root / "metrics" / "history.tsv").read_text().splitlines()
    rate = rows[0].split("\t").index("learning_rate")
    rates = [float(row.split("\t")[rate]) for row in rows[2:]]
    peak = max(rates)
    assert rates[6:] == pytest.approx(
        [peak * share for share in (0.275, 0.5, 0.275, 0.05)]
    )  # 0.05 is where it ended
    interrupted.succeed("clean")
    interrupted.succeed("train", *more)
    torch.testing.assert_close(weights(interrupted), resumed, rtol=0, atol=0)


def test_a_changed_peak_extends_the_same_finished_run_anew(interrupted: Project) -> None:
    interrupted.succeed("train", *sets("train.extension.amount=4"))
    out = interrupted.succeed("train", *sets("train.extension.amount=4", "train.extension.peak=0.9")).out
    assert "extending the finished run from step 6 to 10" in out
    assert "going on" not in out


def test_a_run_that_a_callback_ended_in_its_extension_is_published_again(interrupted: Project) -> None:
    stops = (interrupted.root / "plugins" / "eval_callbacks" / "target_loss.py").read_text()
    stops = stops.replace('"target_loss"', '"late"').replace("if loss", "if event.step > 6 and loss")
    assert "event.step > 6" in stops
    (interrupted.root / "plugins" / "eval_callbacks" / "late.py").write_text(stops)
    more = sets(
        "train.extension.amount=4",
        "train.evaluation.every=1",
        "train.eval_callbacks.use=[late]",
        "train.eval_callbacks.late={value: 100.0}",
    )
    assert "stopping at step 7" in interrupted.succeed("train", *more).out
    assert "already complete" in interrupted.succeed("train", *more).out


def test_a_run_that_a_callback_ended_is_not_extended(interrupted: Project) -> None:
    stops = sets("train.eval_callbacks.use=[target_loss]", "train.eval_callbacks.target_loss.value=100.0")
    interrupted.succeed("train", *stops)
    result = interrupted.run("train", *stops, *sets("train.extension.amount=4"))
    assert result.code == 1
    assert "train.extension: " in result.err
    assert "step 0" in result.err
    assert "train.extension.amount: 0" in result.err


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_memory_that_runs_out_names_what_to_lower(
    interrupted: Project, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(run: TrainingRun, state: TrainState, pending: Pending) -> None:
        raise error

    monkeypatch.setattr(loop, "take_step", runs_out)
    result = interrupted.run("train", *sets("model.context_length=8"))
    assert result.code == 1
    assert re.fullmatch(r"error: out of memory .* cpu has [\d.]+ GB.*train\.micro_batch_size to 1.*\n", result.err)
