"""The Hugging Face export: every architecture option arrives, and what does not match is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, words

from pipeline.data.tokenizer import Tokenizer
from pipeline.data.vocabulary import published, raw_bytes, train_bpe
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT
from pipeline.plugin import Exporter, ExportSource
from pipeline.plugin.registry import Registry
from pipeline.stages.export import export_source

BASE = {
    "context_length": 16, "n_layers": 2, "n_heads": 2, "emb_dim": 16, "dropout": 0.1, "qkv_bias": True,
    "tied_head": True, "init": "gpt2", "pad_vocab_to": 64,
}  # fmt: skip


def exporter() -> Exporter:
    built: Exporter = Registry.load(REPOSITORY / "plugins", ["exporters"]).build("exporters", "huggingface", {}, "")
    return built


def source(tokenizer: Tokenizer, **changes: Any) -> ExportSource:
    """An untrained model with weights large enough that its logits differ."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **(BASE | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return export_source(Checkpoint(model, tokenizer, 1, "last"), words(1, 200))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([words(0, 500)], 300)


@pytest.mark.parametrize(
    "changes", [{}, {"tied_head": False}, {"qkv_bias": False}, {"pad_vocab_to": 1}, {"n_heads": 4, "n_layers": 1}]
)
def test_transformers_reproduces_every_architecture(
    bpe: Tokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = source(bpe, **changes)
    exporter().export(given, tmp_path)
    proof = exporter().verify(given, tmp_path)
    assert proof["reader"].startswith("transformers ")
    assert proof["largest_logit_difference"] < 1e-4
    assert proof["equal_greedy_tokens"] > 0
    assert proof["texts_with_equal_ids"] > 2000


def test_transformers_reads_raw_bytes_alike(tmp_path: Path) -> None:
    given = source(raw_bytes())
    exporter().export(given, tmp_path)
    exporter().verify(given, tmp_path)


def test_transformers_reads_the_published_gpt2_encoding_alike(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken"))
    given = source(published("gpt2"))
    exporter().export(given, tmp_path)
    exporter().verify(given, tmp_path)


def damage(name: str, folder: Path) -> None:
    path = folder / name
    if name == "model.safetensors":
        content = bytearray(path.read_bytes())
        content[-3] ^= 0x40
        path.write_bytes(bytes(content))
    else:
        value = json.loads(path.read_text())
        if name == "config.json":
            value["activation_function"] = "relu"
        elif name == "tokenizer.json":
            value["model"]["merges"].pop(0)
        path.write_text(json.dumps(value))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_export_is_refused(bpe: Tokenizer, tmp_path: Path, name: str) -> None:
    given = source(bpe)
    exporter().export(given, tmp_path)
    damage(name, tmp_path)
    with pytest.raises(ValueError, match="transformers"):
        exporter().verify(given, tmp_path)


def test_without_transformers_the_files_are_read_back(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    given = source(bpe)
    exporter().export(given, tmp_path)
    assert exporter().verify(given, tmp_path)["reader"] == "none"
    damage("tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        exporter().verify(given, tmp_path)
