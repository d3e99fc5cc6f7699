"""What is published is measured in float32; evaluations on the way compute as training does."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import CONTEXT, IDS, make_run

from pipeline.train.evaluation import summarize
from pipeline.train.loop import train
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


def trained(folder: Path, precision: str) -> tuple[TrainingRun, TrainState]:
    run, state = make_run(folder, precision=precision, every=3), TrainState()
    train(run, state)
    return run, state


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_published_is_in_float32(precision: str, tmp_path: Path) -> None:
    run, state = trained(tmp_path, precision)
    assert state.best_step == state.step
    exact = summarize(run, "val", run.data.val_windows, in_float32=True).metrics()
    assert state.final["last"] == state.final["best"] == exact
    row = state.history[-1]
    for name, published in (("train", state.final["train"]), ("val", None)):
        windows = run.data.eval_windows[name]
        assert row[f"{name}.loss"] == summarize(run, name, windows).loss
        measured = summarize(run, name, windows, in_float32=True)
        assert measured.loss != row[f"{name}.loss"]
        assert measured.loss == pytest.approx(row[f"{name}.loss"], rel=1e-2)
        assert published is None or published == {key: measured.metrics()[key] for key in published}


def test_in_float32_the_last_evaluation_is_published(tmp_path: Path) -> None:
    run, state = trained(tmp_path, "fp32")
    assert state.final["train"] == {key: state.history[-1][f"train.{key}"] for key in ("loss", "perplexity")}
    assert (
        summarize(run, "train", run.data.eval_windows["train"], in_float32=True).loss
        == state.final["train"]["loss"]
    )


def test_a_final_evaluation_may_read_a_part_of_val(tmp_path: Path) -> None:
    whole = make_run(tmp_path).data.val_windows
    assert sum(window.counted for window in whole) == len(IDS["val"]) - 1
    some = make_run(tmp_path, **{"evaluation.final_tokens": 2 * CONTEXT + 1}).data.val_windows
    assert len(some) == 3
    assert [window in whole for window in some] == [True] * 3
    assert some[0].start < len(IDS["val"]) / 3 < some[-1].start
