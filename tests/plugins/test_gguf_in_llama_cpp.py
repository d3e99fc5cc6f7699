"""The GGUF file in llama.cpp itself, as the package xllamacpp brings it: what it reads is what was trained."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, made_up_text
from untrained import untrained

from pipeline.plugin import ExportSource
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import train_bpe

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")

GPT2 = {"architecture": "gpt2", "qkv_bias": True, "tied_head": True, "n_heads": 2}
LLAMA = {"architecture": "llama", "qkv_bias": False, "tied_head": False, "n_heads": 4, "n_kv_heads": 2}
CONTEXT, PROMPT, DRAWN = 64, 40, 16


class LlamaCpp:
    """A file in a server of llama.cpp, asked over the loopback interface."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, what: str, **values: Any) -> Any:
        body = json.dumps(values).encode()
        request = urllib.request.Request(f"{self.url}/{what}", body, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.ask("tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        return ids

    def continued(self, ids: list[int], count: int) -> tuple[list[int], list[dict[int, float]]]:
        """The ids that it continues with, greedily, and for each the log-probabilities of the ten likeliest.

        Of a part of a character, it does not tell them: an empty dict.
        """
        answer = self.ask(
            "completion", prompt=ids, n_predict=count, temperature=0, n_probs=10, return_tokens=True,
            cache_prompt=False, ignore_eos=True,
        )  # fmt: skip
        told = list(answer["completion_probabilities"])
        likeliest = []
        for token in answer["tokens"]:
            rivals = told.pop(0)["top_logprobs"] if told and told[0]["id"] == token else []
            likeliest.append({each["id"]: each["logprob"] for each in rivals})
        assert not told
        return answer["tokens"], likeliest


@contextmanager
def served(path: Path) -> Iterator[LlamaCpp]:
    """In single precision throughout: keys and values too, and without flash attention, which rounds them."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = CONTEXT, 1, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    yield LlamaCpp(server.listening_address)
    del server


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
    with served(tmp_path / "model.gguf") as llama_cpp:
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
