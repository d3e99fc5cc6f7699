"""What the report is made from: the losses of tokens are those of the evaluation, the weights of heads those that
attention uses, the times those that training wrote."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_config import small_config

from pipeline.data.batches import EvaluationWindow
from pipeline.data.masked import MaskedIds
from pipeline.data.token_writer import TokenWriter
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder, finish_folder
from pipeline.evaluate.breakdown import UnitScore
from pipeline.evaluate.report.attention import attention_weights, read_attention
from pipeline.evaluate.report.excerpt import read_excerpt, token_views
from pipeline.evaluate.report.training import read_training
from pipeline.evaluate.samples import draw_samples
from pipeline.model import attention
from pipeline.model.architecture import LanguageModel
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.scoring import score
from pipeline.params.params import GenerationParams
from pipeline.plugin import Sampler

TOKENIZER = Tokenizer("bytes", r"[\s\S]", {bytes([byte]): byte for byte in range(256)}, {"<|endoftext|>": 256})
SIZES = {
    "vocab_size": 257, "context_length": 32, "n_layers": 3, "n_heads": 4, "emb_dim": 32, "dropout": 0.1,
    "tied_head": False, "pad_vocab_to": 64,
}  # fmt: skip
MODELS = {
    "gpt2": small_config(**SIZES),
    "modern": small_config("modern", **SIZES),
    "llama": small_config("llama", **SIZES, n_kv_heads=2),
    "documents": small_config(**SIZES, document_end=256),
}
IDS = np.array([*"So über the sea".encode(), 256, *b"and on, on"], dtype=np.int64)


def model(name: str) -> LanguageModel:
    """A model with large weights, so that its attention is not uniform."""
    torch.manual_seed(1)
    made = MODELS[name].make()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_those_with_which_attention_takes_its_mean(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tokens = model(name), torch.from_numpy(IDS)
    seen = []

    def noting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: object) -> torch.Tensor:
        attended: torch.Tensor = original(q, k, v, *others)
        seen.append((v, attended))
        return attended

    original = attention.attend
    monkeypatch.setattr(attention, "attend", noting)
    with torch.no_grad():
        before = made(tokens[None]).logits
        weights = attention_weights(made, tokens)
    monkeypatch.undo()
    assert weights.shape == (3, 4, len(IDS), len(IDS))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, len(IDS)))
    assert (weights.triu(1) == 0).all()
    for weight, (v, attended) in zip(weights, seen[3:], strict=True):
        values = v[0].repeat_interleave(len(weight) // v.shape[1], dim=0)  # llama's heads share them
        torch.testing.assert_close(weight @ values, attended[0], rtol=1e-4, atol=1e-5)
    assert made(tokens[None]).logits.equal(before)
    assert not any(module._forward_pre_hooks for module in made.modules())
    if name == "documents":
        end = int(np.flatnonzero(IDS == 256)[0])
        assert (weights[:, :, end + 1 :, : end + 1] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_tokens_loss_is_that_of_the_evaluation(name: str) -> None:
    made = model(name)
    (scores,) = score(made, MaskedIds(IDS), [EvaluationWindow(0, len(IDS), len(IDS) - 1)], 1)
    first, *views = token_views(made, TOKENIZER, IDS)
    assert first.nats is None
    assert [view.nats for view in views] == pytest.approx(scores.nats.tolist(), rel=1e-5, abs=1e-6)
    assert [view.hit == 0 for view in views] == scores.correct.tolist()
    for view in views:
        probabilities = [probability for _, probability in view.expected]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 5
        assert (view.hit is not None) == (view.rank <= 5)
        if view.hit is not None:
            assert view.expected[view.hit][0] == view.text
    assert "".join(view.text for view in [first, *views]).startswith("So \\xc3\\xbcber the sea<|endoftext|>and")


def splits(folder: Path, *texts: str) -> TokenFolder:
    """A folder with one split, val, with these documents."""
    with TokenWriter(folder, "val", TOKENIZER) as writer:
        for number, text in enumerate(texts):
            writer.write(np.array([*text.encode(), 256]))
            writer.end_document(f"document {number}", len(text.encode()))
    finish_folder(folder, TOKENIZER, {"val": writer.summary()}, params={})
    return TokenFolder(folder, "")


def test_the_excerpt_is_the_document_of_the_middle_loss(tmp_path: Path) -> None:
    checkpoint = Checkpoint(model("gpt2"), TOKENIZER, 1, "best")
    texts = [letter * length for letter, length in zip("abcde", (40, 50, 5, 33, 60), strict=True)]
    documents = [
        UnitScore(f"document {number}", 10, 10 * loss, 9, 9 * loss, 1)
        for number, loss in enumerate((1.0, 3.0, 2.0, 9.0, 2.5))
    ]
    excerpt = read_excerpt(checkpoint, splits(tmp_path, *texts), "val", documents)
    assert excerpt.document == "document 1"  # the third is too short to be read
    assert [token.text for token in excerpt.tokens] == ["b"] * 32
    assert all(token.nats is not None for token in excerpt.tokens)


def test_of_short_documents_the_longest_is_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(model("gpt2"), TOKENIZER, 1, "best")
    excerpt = read_excerpt(checkpoint, splits(tmp_path, "ab", "c"), "val", [])
    assert excerpt.document == "document 0"
    assert [token.text for token in excerpt.tokens] == ["a", "b", "<|endoftext|>"]
    assert excerpt.tokens[0].nats is None  # nothing stands before it


class Only(Sampler):
    """Keeps a single token."""

    name: ClassVar[str] = "only"
    token: int

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([self.token]), 0.0)


@pytest.mark.parametrize(
    ("token", "written", "end"), [(TOKENIZER.end_of_text, "", "<|endoftext|>"), (ord("a"), "aaa", "")]
)
def test_a_sample_says_where_the_model_ended_it(token: int, written: str, end: str) -> None:
    checkpoint = Checkpoint(model("gpt2"), TOKENIZER, 1, "best")
    params = GenerationParams(prompts=("b",), max_new_tokens=3, seed=1)
    ((sample, *_),) = draw_samples(checkpoint, params, [Only(token=token)])
    assert (sample.continuation, sample.end) == (written, end)


def test_a_text_of_one_token_has_no_maps() -> None:
    checkpoint = Checkpoint(model("gpt2"), TOKENIZER, 1, "best")
    assert read_attention(checkpoint, IDS[:1]) is None
    maps = read_attention(checkpoint, IDS)
    assert maps is not None
    assert (maps.layers, maps.heads, maps.weights.shape) == ([1, 2, 3], [1, 2, 3, 4], (3, 4, len(IDS), len(IDS)))


def test_throughput_is_of_the_stretch_since_the_last_evaluation(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    tables = {
        "history": "step tokens val.loss\n0 0 8\n1 100 7\n2 200 6\n",
        "steps": "step train.objective mine\n1 9 \n2 8 0.5\n",
        "timing": "step seconds processor_seconds tokens_per_sec\n0 0 0 0\n1 1 2 100\n2 5 8 40\n",
    }
    for name, table in tables.items():
        (metrics / f"{name}.tsv").write_text(table.replace(" ", "\t"))
    (metrics / "performance.json").write_text('{"seconds": 9, "tokens_per_sec": 100}')
    (tmp_path / "samples.jsonl").write_text('{"step": 1, "callback": "sample_text", "text": "a\u2028b"}\n')
    training = read_training(tmp_path)
    assert [row.get("tokens_per_sec") for row in training.history] == [None, 100.0, 25.0]
    assert [row["processor_seconds"] for row in training.history] == [0.0, 2.0, 8.0]
    assert training.steps == [
        {"step": 1, "train.objective": 9},
        {"step": 2, "train.objective": 8, "mine": 0.5},
    ]
    assert training.performance == {"seconds": 9, "tokens_per_sec": 100}
    assert [sample["text"] for sample in training.samples] == ["a\u2028b"]
