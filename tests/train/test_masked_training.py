"""Training on conversations: losses are sums over what is learnt, each document as if it were alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_run import (
    CONTEXT,
    REGISTRY,
    TOKENIZER,
    WITHIN_DOCUMENTS,
    conversations,
    make_model,
    make_run,
    masked_windows,
    small_params,
)

from pipeline.core.errors import DataError
from pipeline.data.masked import MaskedIds
from pipeline.model.architecture import LanguageModel
from pipeline.plugin.components import IGNORED, EvalCallback, EvaluationEvent
from pipeline.train.data import TrainingData
from pipeline.train.evaluation import evaluate
from pipeline.train.loop import train, train_step
from pipeline.train.run import TrainingRun
from pipeline.train.state import TrainState


def transcribed(model: LanguageModel, ids: MaskedIds, ranges: list[tuple[int, int]]) -> tuple[float, int]:
    """The nats of the learnt tokens of each range after the tokens before them in it, and their number."""
    nats, count = 0.0, 0
    with torch.no_grad():
        for start, end in ranges:
            tokens = torch.from_numpy(ids.ids[start:end].astype(np.int64))
            if end - start > 1:
                every = F.cross_entropy(model(tokens[None, :-1]).logits[0], tokens[1:], reduction="none")
                learnt = torch.from_numpy(ids.learn[start + 1 : end] == 1)
                nats, count = nats + float(every[learnt].sum()), count + int(learnt.sum())
    return nats, count


def parts(run: TrainingRun, ids: MaskedIds, start: int, end: int) -> list[tuple[int, int]]:
    """The documents, or their parts, of a window."""
    if not run.params.pack_documents:
        return [(start, end)]
    ends = (np.flatnonzero(ids.ids[start:end] == 256) + start + 1).tolist()
    return [(one, other) for one, other in pairwise([start, *ends, end]) if one < other]


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_losses_are_those_of_each_conversation_alone(tmp_path: Path, packed: bool, micro_batch_size: int) -> None:
    model = make_model(architecture=WITHIN_DOCUMENTS).double() if packed else make_model().double()
    alone = make_model().double().eval()
    run = make_run(
        tmp_path,
        model=model,
        micro_batch_size=micro_batch_size,
        batch_size=8,
        evaluation="{every: 2, windows: 1000, final_tokens: 0}",
        windows=None if packed else masked_windows(),
        **({"pack_documents": "true"} if packed else {}),
    )
    windows, state = run.data.windows, TrainState()
    evaluate(run, state)
    for name in ("train", "val"):
        ids = run.data.ids[name]
        if ids.learn is None:
            continue
        ranges = [part for each in run.data.eval_windows[name] for part in parts(run, ids, each.start, each.end)]
        nats, count = transcribed(alone, ids, ranges)
        assert state.history[-1][f"{name}.loss"] == pytest.approx(nats / count, rel=1e-6)
    ranges = [
        part
        for offset in run.offsets(0)
        for part in parts(run, windows.ids, offset, windows.index.window_end(offset))
    ]
    nats, count = transcribed(alone, windows.ids, ranges)
    assert 0 < count < CONTEXT * 8
    assert train_step(run, state) == (pytest.approx(nats, rel=1e-6), count)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_with_nothing_to_learn_is_an_error(name: str) -> None:
    texts = {each: conversations(100) for each in ("train", "val")}
    ids = {each: text for each, (text, _) in texts.items()}
    ids[name] = MaskedIds(ids[name].ids, np.zeros(100, np.uint8))
    sampler = REGISTRY.build("batch_samplers", "shuffled", {}, "")
    for settings in ({}, {"pack_documents": "true"}):
        with pytest.raises(DataError, match=f"{name} has nothing to learn"):
            TrainingData.build(
                small_params(**settings), TOKENIZER, ids, sampler, {each: text[1] for each, text in texts.items()}
            )


def test_the_temperature_is_that_of_what_is_learnt(tmp_path: Path) -> None:
    scaling = REGISTRY.build("eval_callbacks", "temperature_scaling", {}, "")
    losses = {}
    for callbacks in ((), (scaling,)):
        model = make_model(architecture=WITHIN_DOCUMENTS)
        run = make_run(
            tmp_path / str(len(callbacks)),
            model=model,
            callbacks=callbacks,
            pack_documents="true",
            total_windows=4 * 50,
            every=50,
            options={"lr": 0.02},
        )
        train(run, state := TrainState())
        losses[callbacks] = state.history[-1]["val.loss"]
    assert losses[scaling,] < losses[()]


def test_callbacks_get_the_targets_that_are_learnt(tmp_path: Path) -> None:
    class Counts(EvalCallback):
        name = "counts"

        def on_evaluation(self, event: EvaluationEvent) -> dict[str, float]:
            nats = count = 0.0
            for ids, targets in zip(event.batches("val"), event.targets("val"), strict=True):
                learnt = targets != IGNORED
                assert torch.equal(ids[:, 1:][learnt], targets[learnt])
                nats, count = nats + float(event.loss(ids)[learnt].sum()), count + int(learnt.sum())
            return {"counts.loss": nats / count}

    model = make_model(architecture=WITHIN_DOCUMENTS)
    run, state = make_run(tmp_path, model=model, callbacks=(Counts(),), pack_documents="true"), TrainState()
    evaluate(run, state)
    assert state.history[-1]["counts.loss"] == pytest.approx(state.history[-1]["val.loss"], rel=1e-12)
