"""A checkpoint of the preset `book` in a class with the book's names, as docs/exports.md loads it."""

from __future__ import annotations

from typing import Any

import torch
from conftest import REPOSITORY, Project
from ruamel.yaml import YAML
from test_docs import blocks, run
from torch import nn

from pipeline.model import load


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.scale, self.shift)


class SelfAttention(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, length, self.heads = config["emb_dim"], config["context_length"], config["n_heads"]
        self.W_query, self.W_key, self.W_value = (nn.Linear(width, width, config["qkv_bias"]) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(length, length).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.W_query, self.W_key, self.W_value)
        )
        scores = queries @ keys.mT / keys.shape[-1] ** 0.5
        hidden = self.mask.bool()[: x.shape[1], : x.shape[1]]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.out_proj((weights @ values).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))


class Block(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.att, self.ff = SelfAttention(config), FeedForward(config["emb_dim"])
        self.norm1, self.norm2 = Norm(config["emb_dim"]), Norm(config["emb_dim"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff.layers(self.norm2(x))


class GPTModel(nn.Module):
    """GPT-2 with the names of the book's class."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(config["vocab_size"], config["emb_dim"])
        self.pos_emb = nn.Embedding(config["context_length"], config["emb_dim"])
        self.trf_blocks = nn.Sequential(*(Block(config) for _ in range(config["n_layers"])))
        self.final_norm = Norm(config["emb_dim"])
        self.out_head = nn.Linear(config["emb_dim"], config["vocab_size"], bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


def test_the_books_class_computes_the_same_logits(trained_project: Project) -> None:
    preset = YAML(typ="safe").load(REPOSITORY / "pipeline" / "params" / "presets" / "book.yaml")
    options = {f"model.gpt2.{name}": value for name, value in preset["model"]["gpt2"].items()}
    options["model.pad_vocab_to"] = 128  # so that rows are cut off
    settings = [part for name, value in options.items() for part in ("--set", f"{name}={value}".lower())]
    trained_project.succeed("train", *settings)
    (code,) = [each for each in blocks(REPOSITORY / "docs" / "exports.md", "python") if "GPTModel" in each]
    names: dict[str, Any] = {"GPTModel": GPTModel}
    run(code, names)
    model = load("artifacts/checkpoint", weights="last").model
    ids = torch.randint(model.shape.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids), model(ids).logits, rtol=1e-5, atol=1e-5)
