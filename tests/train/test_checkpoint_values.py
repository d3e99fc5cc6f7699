"""Saved states whose manifest was made again: values that are no state's are passed over with a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import REGISTRY, TOKENIZER, make_model, start_or_resume

from pipeline.core.errors import CheckpointError
from pipeline.core.files import write_json, write_manifest
from pipeline.model.checkpoint import load_checkpoint, load_tensors, save_tensors, write_checkpoint
from pipeline.train.checkpoint_store import CheckpointStore, saved_runs
from pipeline.train.state import check_training_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
    folder = tmp_path_factory.mktemp("finished")
    run, _ = start_or_resume(folder, 0, save_seconds=0.0)
    store: CheckpointStore = run.saver.store
    return store


def test_an_unchanged_checkpoint_is_used(finished: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    saved = finished.load(partial(check_training_checkpoint, architecture=make_model().architecture, total_steps=6))
    assert saved is not None
    assert saved["run"]["step"] == 6
    assert not capsys.readouterr().out


HUGE = 2**70
BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a step that is NaN": lambda s: s["run"].update(step=float("nan")),
    "a negative step": lambda s: s["run"].update(step=-1),
    "a step beyond the end": lambda s: s["run"].update(step=7),
    "a huge step": lambda s: s["run"].update(step=HUGE),
    "a step that is text": lambda s: s["run"].update(step="6"),
    "a field of the future": lambda s: s["run"].update(momentum=1),
    "a field is gone": lambda s: s.pop("run"),
    "the run is a list": lambda s: s.update(run=[1]),
    "history of text": lambda s: s["run"].update(history=[{"step": "x"}]),
    "history with NaN": lambda s: s["run"]["history"][0].update(step=float("nan")),
    "no history": lambda s: s["run"].update(history=[]),
    "other conditions": lambda s: s["run"].update(runtime_config={"threads": 10**9}),
    "no final": lambda s: s["run"].update(final={}),
    "a final record that is a list": lambda s: s["run"]["final"].update(record=[]),
    "samples that are no JSON": lambda s: s["run"].update(samples=[{"text": torch.ones(1)}]),
    "another length": lambda s: s.update(total_steps=7),
    "no weights": lambda s: s.update(model_state_dict={}),
    "weights that are a list": lambda s: s.update(model_state_dict=[torch.ones(1)]),
    "a weight of another shape": lambda s: s["model_state_dict"].update({"norm.weight": torch.ones(4, 4)}),
    "a weight of whole numbers": lambda s: s["model_state_dict"].update({"norm.weight": torch.ones(16).long()}),
    "a complex weight": lambda s: s["model_state_dict"].update({"norm.weight": torch.ones(16) + 0j}),
    "a weight that is NaN": lambda s: s["model_state_dict"]["norm.weight"].fill_(torch.nan),
    "best weights of another model": lambda s: s["run"].update(best_weights={"x": torch.ones(1)}),
    "a foreign weight": lambda s: s["model_state_dict"].update(x=torch.ones(1)),
    "a gradient scaler in fp32": lambda s: s.update(scaler={"scale": 2.0}),
    "no optimizer": lambda s: s.update(optimizer_state_dict=None),
    "groups without params": lambda s: s["optimizer_state_dict"].update(param_groups=[{}]),
    "random states of text": lambda s: s.update(random={"torch": "x"}),
    "a short random state": lambda s: s["random"].update(torch=torch.zeros(3, dtype=torch.uint8)),
    "a random state of Python's that is none": lambda s: s["random"].update(python=[3, [1], None]),
    "a random state of numpy's that is none": lambda s: s["random"].update(numpy=[torch.ones(2), HUGE, 0, 0.0]),
}


@pytest.mark.parametrize("change", BROKEN)
def test_a_checkpoint_with_invalid_values_is_skipped(
    change: str, finished: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_tensors(finished.checkpoints()[-1] / "state.pth")
    BROKEN[change](saved)
    folder = tmp_path / "run" / "000009"
    folder.mkdir(parents=True)
    save_tensors(saved, folder / "state.pth")
    write_manifest(folder)
    check = partial(check_training_checkpoint, architecture=make_model().architecture, total_steps=6)
    before = torch.get_rng_state()
    assert CheckpointStore(tmp_path, "run").load(check) is None
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert str(folder) in out
    assert "corrupt" in out
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "about",
    [
        "[]", "{}", "null", "NaN", "[" * 9999, "9" * 5000, "\xff", "",
        '{"step": null, "total_steps": 1, "complete": true}', '{"step": NaN, "total_steps": 1, "complete": true}',
        '{"step": 1e999, "total_steps": 1, "complete": true}', '{"step": 1, "total_steps": 1, "complete": "no"}',
    ],
)  # fmt: skip
def test_runs_lists_what_can_be_read(about: str, tmp_path: Path) -> None:
    for name in ("000001", "000001.bak", "0x1", "000002"):
        (tmp_path / "run" / name).mkdir(parents=True)
    write_json(tmp_path / "run" / "000001" / "about.json", {"step": 3, "total_steps": 4, "complete": False})
    (tmp_path / "run" / "000002" / "about.json").write_text(about, encoding="latin-1")
    (tmp_path / "run" / "run.json").write_text(about, encoding="latin-1")
    (run,) = saved_runs(tmp_path)
    assert (run.step, run.total_steps, run.checkpoints) == (3, 4, 2)
    found = CheckpointStore(tmp_path, "other").record_identity({})
    assert not found or about.startswith("{")


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


def checkpoint(folder: Path) -> Path:
    model = make_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    best: dict[str, Any] = {"model_state_dict": weights, "step": 1}
    folder.mkdir()
    write_checkpoint(folder, model.architecture, TOKENIZER, {}, {**best, "optimizer_state_dict": {}}, best)
    return folder


CASES = [
    (key, value)
    for key, values in {
        "n_layers": [10**12, 10**3, 0, -1, 1.5, "2", None, True, [2], 3],
        "n_heads": [0, 3, 10**12, "x"],
        "emb_dim": [0, 10**7, 17, 16.5, 2**31 - 2],
        "vocab_size": [1, 10**12, 2**31 - 1, "x"],
        "context_length": [0, 10**9, 2**63],
        "dropout": [float("nan"), 1, "x"],
        "pad_vocab_to": [0, 2**31 - 1],
        "document_end": [-1, 10**6, "x"],
        "name": ["gpt9", 3, "llama", None],
        "options": [3, {"qkv_bias": 3}, {"init": "x"}, {"future": 1}],
        "future": [1],
    }.items()
    for value in values
]


def refused(folder: Path) -> str:
    """What is said of a checkpoint whose manifest is made again."""
    write_manifest(folder)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder, "best", torch.device("cpu"), REGISTRY)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_a_config_with_other_values_is_one_line(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint")
    whole = json.loads((folder / "config.json").read_text())
    for key, value in CASES:
        shape = whole["shape"]
        changed = {"shape": {**shape, key: value}} if key in shape else {key: value}
        (folder / "config.json").write_text(json.dumps({**whole, **changed}))
        refused(folder)
    for text in ("[]", "", "null", "{}", "[" * 9999, "9" * 5000, "\x00"):
        (folder / "config.json").write_text(text)
        assert "config.json" in refused(folder)


def test_weights_with_other_values_are_one_line(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint")
    whole = load_tensors(folder / "best.pth")
    weights = whole["model_state_dict"]
    for changed in (
        {**whole, "step": float("nan")}, {**whole, "step": "x"}, {**whole, "step": -1}, {"step": 1}, {},
        {**whole, "model_state_dict": [1]}, {**whole, "model_state_dict": {}},
        {**whole, "model_state_dict": {**weights, "x": torch.ones(1)}},
        {**whole, "model_state_dict": {**weights, "norm.weight": torch.ones(1).expand(16)}},
        {**whole, "model_state_dict": {**weights, "norm.weight": torch.full((16,), torch.inf)}},
        {**whole, "model_state_dict": {**weights, "norm.weight": torch.ones(16, dtype=torch.int8)}},
    ):  # fmt: skip
        save_tensors(changed, folder / "best.pth")
        assert "best.pth" in refused(folder)
    weights["norm.weight"].fill_(torch.nan)
    save_tensors(whole, folder / "best.pth")
    assert "norm.weight is not finite" in refused(folder)
