"""Negative log-likelihood: exact over tokens, whatever the batch size, and without a trace on training."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_config import ARCHITECTURES, head_weight, small_config
from torch import nn

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow, evaluation_windows
from pipeline.data.index import IndexEntry
from pipeline.data.masked import MaskedIds
from pipeline.data.packing import packed_windows
from pipeline.model import scoring
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, Summary, evaluating, evenly_spaced, score, score_tokens
from pipeline.plugin.components import IGNORED

CONTEXT, VOCAB = 8, 50
IDS = np.random.default_rng(0).integers(VOCAB, size=101, dtype=np.uint16)
ONES = np.ones(VOCAB, dtype=np.int64)


def make(vocab_size: int = VOCAB, dropout: float = 0.0) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "context_length": CONTEXT, "emb_dim": 16, "pad_vocab_to": 64}
    model = small_config(dropout=dropout, tied_head=False, **sizes).make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.double()


def scores(nats: list[float], targets: list[int] | None = None) -> Scores:
    ids = np.array(targets or [0] * len(nats), dtype=np.int64)
    return Scores(ids, np.array(nats), np.zeros(len(nats), dtype=np.bool_), np.arange(len(nats)))


def summarize(
    model: LanguageModel,
    ids: MaskedIds,
    windows: Sequence[EvaluationWindow],
    batch_size: int,
    byte_lengths: np.ndarray,
) -> Summary:
    summary = Summary(byte_lengths)
    for each in score(model, ids, windows, batch_size):
        summary.add(each)
    return summary


def directly(model: LanguageModel, ids: np.ndarray, target: int, first: int) -> float:
    """−log p(ids[target]) after ids[first:target], the plain way."""
    seen = torch.from_numpy(ids[first:target].astype(np.int64))[None]
    with torch.no_grad():
        return float(-model(seen).logits[0, -1].log_softmax(dim=-1)[int(ids[target])])


@pytest.mark.parametrize("stride", [CONTEXT, 3, 1])
def test_the_batch_size_does_not_change_the_loss(stride: int) -> None:
    model, windows = make(), evaluation_windows(len(IDS), CONTEXT, stride)
    losses = [summarize(model, MaskedIds(IDS), windows, size, ONES).loss for size in (1, 3, 7)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-9, rel=0)


@pytest.mark.parametrize("tokens", [2, 8, 9, 10, 16, 17, 18, 101])
@pytest.mark.parametrize("stride", [CONTEXT, 3])
def test_every_token_but_the_first_is_scored_once_the_tail_included(tokens: int, stride: int) -> None:
    ids = IDS[:tokens]
    every = list(score(make(), MaskedIds(ids), evaluation_windows(tokens, CONTEXT, stride), 3))
    assert np.concatenate([each.targets for each in every]).tolist() == ids[1:].tolist()
    assert sum(len(each.nats) for each in every) == tokens - 1


@pytest.mark.parametrize("stride", [CONTEXT, 3, 1])
def test_each_target_is_scored_after_exactly_its_windows_context(stride: int) -> None:
    model, windows = make().eval(), evaluation_windows(30, CONTEXT, stride)
    found = np.concatenate([each.nats for each in score(model, MaskedIds(IDS[:30]), windows, 4)])
    expected = [
        directly(model, IDS, target, window.start)
        for window in windows
        for target in range(window.end - window.counted, window.end)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_targets_nats_are_cross_entropy_with_ignored_targets_at_0_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.from_numpy(IDS[1:33].astype(np.int64)).view(4, 8).clone()
    targets[1, 3:] = IGNORED
    targets[3] = IGNORED
    output = make().eval()(torch.from_numpy(IDS[:32].astype(np.int64)).view(4, 8))
    expected = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), reduction="none").view(4, 8)
    for at_once in (1 << 23, 1, 7 * VOCAB):
        monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", at_once)
        nats, correct = score_tokens(output, targets)
        assert nats.dtype == torch.float64
        torch.testing.assert_close(nats, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(correct, output.logits.argmax(dim=-1) == targets)


def test_dropout_is_off_in_evaluation_and_train_mode_comes_back() -> None:
    model, windows = make(dropout=0.5).train(), evaluation_windows(len(IDS), CONTEXT, CONTEXT)
    assert (
        summarize(model, MaskedIds(IDS), windows, 4, ONES).loss
        == summarize(model, MaskedIds(IDS), windows, 4, ONES).loss
    )
    assert all(module.training for module in model.modules())


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def seed_all() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_mode_and_random_state_come_back_also_after_an_exception(training: bool, fails: bool) -> None:
    model = make().train(training)
    seed_all()
    expected = draws()
    seed_all()
    try:
        with evaluating(model):
            assert not model.training
            draws()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert all(module.training == training for module in model.modules())
    assert draws() == expected


def test_an_evaluation_that_fails_midway_leaves_the_model_in_train_mode() -> None:
    model, windows = make().train(), evaluation_windows(len(IDS), CONTEXT, CONTEXT)
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        summarize(model, MaskedIds(IDS), windows, 4, ONES)
    assert all(module.training for module in model.modules())


def test_evaluation_leaves_no_gradient() -> None:
    model = make()
    summarize(model, MaskedIds(IDS), evaluation_windows(len(IDS), CONTEXT, CONTEXT), 4, ONES)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_perplexity_comes_from_sums_not_from_the_means_of_batches() -> None:
    summary = Summary(ONES).add(scores([3.0] * 1000)).add(scores([9.0] * 8))
    assert summary.tokens == 1008
    assert summary.metrics()["perplexity"] == pytest.approx(21.07, abs=0.005)


def test_a_uniform_byte_model_has_8_bits_per_byte() -> None:
    model = make(vocab_size=256)
    nn.init.zeros_(head_weight(model))
    ids = np.arange(256, dtype=np.uint16)
    windows = evaluation_windows(256, CONTEXT, CONTEXT)
    metrics = summarize(model, MaskedIds(ids), windows, 4, np.ones(256, dtype=np.int64)).metrics()
    assert metrics["bits_per_byte"] == pytest.approx(8, abs=1e-12)
    assert metrics["perplexity"] == pytest.approx(256, rel=1e-12)


def test_special_tokens_count_in_the_loss_but_not_as_bytes() -> None:
    byte_lengths = np.array([1, 3, 0])
    metrics = Summary(byte_lengths).add(scores([1.0, 7.0, 100.0], [0, 1, 2])).metrics()
    assert metrics["loss"] == pytest.approx(108 / 3)
    assert metrics["bits_per_byte"] == pytest.approx(8 / math.log(2) / 4)


def test_a_perplexity_that_overflows_is_left_out_and_the_loss_reported() -> None:
    assert "perplexity" in Summary(ONES).add(scores([709.0])).metrics()
    metrics = Summary(ONES).add(scores([709.5, 710.5])).metrics()
    assert metrics["loss"] == 710
    assert "perplexity" not in metrics


def test_accuracy_is_the_share_of_targets_that_were_likeliest() -> None:
    correct = np.array([True, False, True, True])
    summary = Summary(ONES).add(Scores(np.zeros(4, dtype=np.int64), np.ones(4), correct, np.arange(4)))
    assert summary.metrics()["accuracy"] == 0.75


def test_the_windows_of_an_evaluation_in_training_are_spread_evenly_and_always_the_same() -> None:
    windows = evaluation_windows(101 * CONTEXT, CONTEXT, CONTEXT)
    ids = MaskedIds(np.zeros(101 * CONTEXT, np.uint16))
    chosen = evenly_spaced(windows, 10, ids)
    assert [windows.index(each) for each in chosen] == [number * len(windows) // 10 for number in range(10)]
    assert chosen == evenly_spaced(windows, 10, ids)
    assert evenly_spaced(windows, 1000, ids) == list(windows)


def masked(*learnt: int) -> MaskedIds:
    """`IDS`, of which only these tokens are learnt."""
    learn = np.zeros(len(IDS), np.uint8)
    learn[list(learnt)] = 1
    return MaskedIds(IDS, learn)


def test_the_windows_of_an_evaluation_in_training_have_something_to_learn() -> None:
    windows = evaluation_windows(len(IDS), CONTEXT, CONTEXT)
    assert evenly_spaced(windows, 3, masked(0, 19, 80)) == [windows[2], windows[9]]
    assert evenly_spaced(windows, 1000, masked(24, 25)) == [windows[2], windows[3]]
    assert evenly_spaced(windows, 3, masked(0)) == []


@pytest.mark.parametrize("stride", [CONTEXT, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_only_what_is_learnt_is_scored_each_after_its_windows_context(stride: int, batch_size: int) -> None:
    places = [0, 3, 5, 6, 40, 41, 42, 77, 100]
    model, ids, windows = make().eval(), masked(*places), evaluation_windows(len(IDS), CONTEXT, stride)
    every = list(score(model, ids, windows, batch_size))
    assert len(every) == -(-len(windows) // batch_size)  # batches without a target are among them
    assert np.concatenate([each.places for each in every]).tolist() == places[1:]
    assert np.concatenate([each.targets for each in every]).tolist() == IDS[places[1:]].tolist()
    first = {target: each.start for each in windows for target in range(each.end - each.counted, each.end)}
    nats = [directly(model, IDS, place, first[place]) for place in places[1:]]
    metrics = summarize(model, ids, windows, batch_size, 2 * ONES).metrics()
    assert metrics["loss"] == pytest.approx(sum(nats) / 8, rel=1e-10)
    assert metrics["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / 16, rel=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_have_the_losses_that_each_has_alone_in_its_window(architecture: str) -> None:
    sizes, ends = {"vocab_size": VOCAB, "context_length": 24}, [0, *range(5, 100, 7), 101]
    text = np.minimum(IDS, VOCAB - 2)
    text[np.array(ends[1:]) - 1] = VOCAB - 1
    ids = replace(masked(*range(2, 101, 2)), ids=text, document_end=VOCAB - 1)
    entries = [IndexEntry("", start, end - start, 0) for start, end in pairwise(ends)]
    torch.manual_seed(0)
    model = small_config(architecture, document_end=VOCAB - 1, **sizes).make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    packs = packed_windows(ids, entries, 24)
    alone = [EvaluationWindow(each.start, each.end, each.tokens - 1) for each in entries]
    assert 2 * len(packs) < len(alone)
    together, apart = (list(score(model, ids, windows, 3)) for windows in (packs, alone))
    places, nats = (np.concatenate([vars(each)[name] for each in together]) for name in ("places", "nats"))
    assert places.tolist() == np.concatenate([each.places for each in apart]).tolist()
    np.testing.assert_allclose(nats, np.concatenate([each.nats for each in apart]), rtol=1e-5)


def test_an_evaluation_with_nothing_to_score_is_an_error() -> None:
    summary = summarize(make(), masked(), evaluation_windows(len(IDS), CONTEXT, CONTEXT), 4, ONES)
    assert math.isnan(summary.loss)
    with pytest.raises(DataError, match="nothing to score"):
        summary.metrics()
