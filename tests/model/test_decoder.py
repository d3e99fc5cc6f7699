"""A text that grows and is cut: logits are those of all that is seen at once, and each token is computed once."""

from __future__ import annotations

import pytest
import torch
from test_generate import CONTEXT, VOCAB, each_architecture, sharp

from pipeline.model.architecture import LanguageModel
from pipeline.model.generate import Decoder

ends = pytest.mark.parametrize("document_end", [None, 3])


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Text(Decoder):
    """One text, empty at first, as a list of ids."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model, torch.zeros(1, 0, dtype=torch.long))

    def extend(self, new: list[int]) -> None:
        self.add(torch.tensor([new], dtype=torch.long))

    @torch.inference_mode()
    def draw(self) -> int:
        """Adds the likeliest token."""
        new = self.logits().argmax(dim=-1)
        self.add(new[:, None])
        return int(new)


class Checked:
    """A text each of whose draws is compared with the likeliest token after all that the model sees."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.text, self.ids = model, Text(model), list[int]()

    def add(self, new: list[int]) -> None:
        self.text.extend(new)
        self.ids += new

    def truncate(self, length: int) -> None:
        self.text.truncate(length)
        self.ids = self.ids[:length]

    def draw(self, count: int) -> None:
        for _ in range(count):
            token = self.text.draw()
            seen = torch.tensor([self.ids[self.text.first_visible :]])
            assert token == int(self.model(seen).logits[0, -1].argmax())
            self.ids.append(token)
        assert self.text.tokens.tolist() == [self.ids]


@each_architecture
@ends
def test_each_token_follows_from_all_that_is_seen(architecture: str, document_end: int | None) -> None:
    checked = Checked(sharp(architecture, document_end=document_end))
    for turn in range(8):
        checked.add(ids(turn, turn) or [1])
        checked.draw(turn % 4)
    assert checked.text.first_visible >= len(checked.ids) - CONTEXT > 0


@each_architecture
@ends
def test_what_is_taken_back_leaves_no_trace(architecture: str, document_end: int | None) -> None:
    checked = Checked(sharp(architecture, document_end=document_end))
    checked.add([1, 2, 3])
    checked.draw(2)
    checked.add(ids(3, 0))
    checked.draw(3)
    checked.truncate(5)
    checked.add(ids(4, 1))
    checked.draw(2)
    checked.add(ids(2 * CONTEXT, 2))  # far beyond the context
    checked.draw(3)
    checked.truncate(len(checked.ids) - 2)
    checked.draw(2)
    assert checked.text.first_visible > 0
    checked.truncate(8)
    checked.draw(2)
    assert checked.text.first_visible == 0
    checked.truncate(0)
    checked.add([5])
    checked.draw(2 * CONTEXT)


@each_architecture
def test_every_token_is_read_once(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = sharp(architecture), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, cache: read.append(tokens.shape[1]) or forward(tokens, cache)
    )
    text = Text(model)
    for turn in ([1, 2, 3], [4, 5], [6]):
        text.extend(turn)
        text.draw()
    assert read == [3, 3, 2]  # from the second turn on with what was drawn last


@pytest.mark.parametrize(("typed", "kept"), [(1, CONTEXT // 2), (CONTEXT - 2, CONTEXT - 2), (3 * CONTEXT, CONTEXT)])
def test_a_full_context_keeps_its_later_half_or_all_that_is_new(typed: int, kept: int) -> None:
    text = Text(sharp("gpt2"))
    text.extend(ids(CONTEXT, 0))
    text.draw()
    text.extend(ids(typed - 1, 1))  # with what was drawn, `typed` tokens are new
    text.draw()
    assert len(text) - 1 - text.first_visible == kept


@each_architecture
def test_a_text_continues_after_any_truncation(architecture: str) -> None:
    """With nothing new: what follows its end is drawn again, within the context and far beyond it."""
    for count in (3, 3 * CONTEXT):
        checked = Checked(sharp(architecture))
        checked.add(ids(count, 0))
        checked.draw(3)
        for taken in (1, 2, 3):
            checked.truncate(len(checked.ids) - taken)
            checked.draw(taken)


@each_architecture
def test_another_text_is_computed_from_where_it_differs(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = sharp(architecture), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, cache=None: read.append(tokens.shape[1]) or forward(tokens, cache)
    )
    text, drawn = Text(model), []
    texts = ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 7], [1, 2], [8, 9, 10])
    for ids in texts:
        text.replace(ids)
        drawn.append(text.draw())
    # The last shared token is computed again where its logits were not the last ones.
    assert read == [4, 3, 2, 1, 3]
    assert drawn == [int(model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in texts]
