"""Samplers that ask for more than logits and tokens: the prompt's length, and a memory of each sequence."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from small_config import small_config
from test_docs import examples

from pipeline.model.architecture import LanguageModel
from pipeline.model.generate import SequenceState, draw, generate, generate_batch
from pipeline.plugin.components import Sampler

SEEN: list[tuple[int, int, int]] = []


class Counts(Sampler):
    """Takes turns among the ids, by how often it was asked for this sequence; notes the prompt's length."""

    name: ClassVar[str] = "counts"

    def __call__(  # type: ignore[override]
        self, logits: torch.Tensor, tokens: torch.Tensor, memory: dict[str, Any], prompt_length: int
    ) -> torch.Tensor:
        assert len(logits) == len(tokens) == 1
        memory["times"] = memory.get("times", 0) + 1
        SEEN.append((prompt_length, tokens.shape[1], memory["times"]))
        chosen = torch.full_like(logits, -torch.inf)
        chosen[0, (prompt_length + memory["times"]) % logits.shape[1]] = 0.0
        return chosen


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    SEEN.clear()
    return (
        small_config(vocab_size=20, context_length=8, n_layers=1, emb_dim=16, tied_head=False, pad_vocab_to=4)
        .make()
        .eval()
    )


def test_each_sequence_has_its_own_memory_and_prompt(model: LanguageModel) -> None:
    found = generate_batch(model, [[1, 2, 3], [4]], 4, [Counts()])
    assert found == [[4, 5, 6, 7], [2, 3, 4, 5]]
    assert sorted(SEEN) == sorted((length, length + time, time + 1) for length in (3, 1) for time in range(4))
    rows = torch.stack(list(generate(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), 4, [Counts()])), dim=1)
    assert rows.tolist() == [[4, 5, 6, 7]] * 2


def test_two_of_the_same_sampler_have_two_memories_and_no_state_is_a_first_one() -> None:
    SEEN.clear()
    draw(torch.zeros(1, 5), torch.zeros(1, 3).long(), [Counts(), Counts()], None)
    assert SEEN == [(3, 3, 1), (3, 3, 1)]


@pytest.mark.parametrize("target", [1.0, 2.0])
def test_mirostat_keeps_the_surprise_near_its_target(target: float) -> None:
    (kind,) = (each for each in examples("samplers") if each.name == "mirostat")
    generator, states = torch.Generator().manual_seed(0), [SequenceState(1)]
    tokens, surprises = torch.zeros(1, 1, dtype=torch.long), []
    for _ in range(600):
        logits = 1.5 * torch.randn(1, 200, generator=generator)
        new = draw(logits, tokens, [kind(target=target)], generator, states)
        surprises.append(-float(states[0].memories[0]["offered"][0, new]))
        tokens = torch.cat([tokens, new[:, None]], dim=1)
    assert sum(surprises[100:]) / 500 == pytest.approx(target, abs=0.05)
