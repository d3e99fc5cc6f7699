"""Whether a model fits, and the line that a person reads when a step did not."""

from __future__ import annotations

import re

import pytest
import torch
from small_config import small_config

from pipeline.core.errors import ParamsError
from pipeline.core.files import readable
from pipeline.train import memory_check
from pipeline.train.memory import estimate
from pipeline.train.memory_check import check_fits, what_to_lower

CPU = torch.device("cpu")


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory_check, "memory_of", lambda device: int(size))


def test_the_out_of_memory_line_names_the_largest_halving_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(context_length=256, emb_dim=256, vocab_size=5000)
    for share in (0.9, 0.5, 0.3, 0.15):
        there = share * estimate(config, 64, "fp32").total
        with_memory(monkeypatch, there)
        told = what_to_lower(config, 64, "fp32", CPU)
        assert "\n" not in told
        found = re.search(r"lower train.micro_batch_size from 64 \((\d+) needs about ([\d.]+ [GM]B)\)", told)
        assert found, told
        named = int(found.group(1))
        assert estimate(config, named, "fp32").total <= there
        assert named == 32 or estimate(config, 2 * named, "fp32").total > 0.9 * there
        assert found.group(2) == readable(estimate(config, named, "fp32").total)


def test_the_out_of_memory_line_says_how_much_there_is_and_what_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(context_length=256, emb_dim=256, vocab_size=5000)
    needed = estimate(config, 64, "fp32")
    with_memory(monkeypatch, needed.total / 2)
    told = what_to_lower(config, 64, "fp32", CPU)
    for size in (needed.total, needed.lasting, needed.activations, needed.saving, needed.total / 2):
        assert readable(size) in told
    assert "something else" not in told
    with_memory(monkeypatch, 2 * needed.total)
    assert "something else" in what_to_lower(config, 64, "fp32", CPU)
    assert "for each of 4 processes" in what_to_lower(config, 64, "fp32", CPU, processes=4)


def test_where_no_micro_batch_fits_the_model_is_to_be_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(context_length=1024, n_layers=1, vocab_size=5000)
    needed = estimate(config, 1, "fp32")
    with_memory(monkeypatch, needed.lasting + needed.saving + 0.5 * needed.activations)
    assert what_to_lower(config, 4, "fp32", CPU).endswith(": lower model.context_length or model.emb_dim")
    with_memory(monkeypatch, 0.9 * needed.lasting)
    assert what_to_lower(config, 4, "fp32", CPU).endswith(": lower model.n_layers or model.emb_dim")


def test_a_model_fits_as_its_share_where_the_whole_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(n_layers=12)
    with_memory(monkeypatch, 7.9 * config.parameter_count)
    with pytest.raises(ParamsError, match=r"parameters needs [\d.]+ [kM]B with its gradients, and cpu has"):
        check_fits(config, CPU)
    check_fits(config, torch.device("cuda"), strategy="fsdp", processes=2)
    with pytest.raises(ParamsError, match=r"lower model\.n_layers or model\.emb_dim"):
        check_fits(config, torch.device("cuda"), processes=8)
    with_memory(monkeypatch, 8 * config.parameter_count)
    check_fits(config, CPU)
    with pytest.raises(ParamsError, match="for each of 8 processes: lower"):  # which share the machine's memory
        check_fits(config, CPU, processes=8)
