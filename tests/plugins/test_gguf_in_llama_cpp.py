"""The GGUF file in llama.cpp itself, as the package xllamacpp brings it: what it reads is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, made_up_text
from llama_cpp import served
from untrained import untrained

from pipeline.plugin import ExportSource
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import train_bpe

pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

GPT2 = {"architecture": "gpt2", "qkv_bias": True, "tied_head": True, "n_heads": 2}
LLAMA = {"architecture": "llama", "qkv_bias": False, "tied_head": False, "n_heads": 4, "n_kv_heads": 2}
CONTEXT, PROMPT, DRAWN = 64, 40, 16


def exported(architecture: dict[str, Any], folder: Path, type: str) -> ExportSource:
    shape = {
        "context_length": CONTEXT, "n_layers": 2, "emb_dim": 64, "dropout": 0.1, "pad_vocab_to": 64, "init": "gpt2",
        **architecture,
    }  # fmt: skip
    source = untrained(train_bpe([made_up_text(0, 500)], 300), shape, spread=True)
    registry = Registry.load(REPOSITORY / "plugins", ["exporters"])
    registry.build("exporters", "gguf", {"gguf": {"type": type}}, "").export(source, folder)
    return source


# llama.cpp looks gpt2's GELU up in a table of half precision; and beside weights of eight bits, it rounds what is
# multiplied with them to eight bits as well.
@pytest.mark.parametrize(
    ("architecture", "type", "tolerance"),
    [(GPT2, "f32", 0.01), (LLAMA, "f32", 1e-4), (GPT2, "q8_0", 0.5), (LLAMA, "f16", 0.02)],
)
def test_llama_cpp_reads_the_same_ids_and_predicts_the_same(
    architecture: dict[str, Any], type: str, tolerance: float, tmp_path: Path
) -> None:
    source = exported(architecture, tmp_path, type)
    with served(tmp_path / "model.gguf", CONTEXT) as llama_cpp:
        for text in [source.text, f"{source.end_of_text} as text", *awkward_texts(200)]:
            assert llama_cpp.ids(text) == source.encode(text).tolist(), repr(text)
        compared = 0
        for seed in range(8):
            prompt = source.encode(made_up_text(seed, 60)).tolist()[:PROMPT]
            drawn, likeliest = llama_cpp.continued(prompt, DRAWN)
            expected = source.logits(torch.tensor([[*prompt, *drawn]]))[0].log_softmax(-1)[PROMPT - 1 :]
            for mine, theirs in zip(expected, likeliest, strict=False):
                assert all(abs(float(mine[token]) - value) < tolerance for token, value in theirs.items())
                compared += len(theirs)
            if type == "f32":
                assert drawn == source.greedy(prompt, DRAWN)
        assert compared > 100
