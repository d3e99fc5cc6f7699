"""A synthetic report with the same text wherever a text of a user or a model may occur."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.evaluate.breakdown import Breakdown, FrequencyLoss, PositionLoss, UnitScore
from pipeline.evaluate.conversations import Turn
from pipeline.evaluate.report.records import AttentionMaps, Conversation, Excerpt, Report, Token, Training
from pipeline.evaluate.samples import AnsweredQuestion, Sample
from pipeline.plugin import Answer


def made_up(
    text: str = "plain", evaluations: int = 6, layers: int = 2, heads: int = 2, chat: bool = False
) -> Report:
    """A report whose samples, tokens, documents and params are `text`; with `chat`, of a model that answers."""
    history = [
        {
            "step": 100.0 * number,
            "tokens": 51_200.0 * number,
            "train.loss": 2.0 + 6.0 / (1 + number),
            "val.loss": 2.5 + 6.0 / (1 + number),
            "val.perplexity": float(np.exp(2.5 + 6.0 / (1 + number))),
            "val.bits_per_byte": 1.7 + 2.0 / (1 + number),
            **({"learning_rate": 3e-4 / number, "grad_norm": 0.7, "tokens_per_sec": 12_000.0} if number else {}),
            "processor_seconds": 30.0 * number,
            "weights.attention": 0.02 + 0.01 * number,
            "weights.mlp": 0.03 + 0.005 * number,
        }
        for number in range(evaluations)
    ]
    expected = ((text, 0.4), (text + "s", 0.2), ("a", 0.1), ("\n", 0.05), ("", 0.01))
    tokens = [Token(text)] + [Token(text, 0.4 * number, 1 + number, expected, 0) for number in range(40)]
    numbers = {
        "loss": 3.7, "perplexity": 40.4, "bits_per_byte": 1.8, "accuracy": 0.31, "tokens": 25_643,
        "baselines": {"unigram": 2.7, "xz": 1.9},
        "interval": {
            "loss": {"low": 3.6, "high": 3.8}, "perplexity": {"low": 36.6, "high": 44.7},
            "bits_per_byte": {"low": 1.7, "high": 1.9}, "accuracy": {"low": 0.30, "high": 0.32},
        },
    }  # fmt: skip
    units = [
        UnitScore(f"{text}/{number}", 300 + number, 900.0 + 20 * number, 1200, 890.0, 100) for number in range(31)
    ]
    frequencies = [(0, 3, 12.0), (1, 80, 9.5), (10, 700, 7.0), (100, 5000, 5.0), (1000, 19_860, 2.5)]
    breakdown = Breakdown(
        documents=units,
        blocks=units[:16],
        positions=[PositionLoss(position, 50, 3.0 + 4.0 / (1 + position)) for position in range(256)],
        frequencies=[FrequencyLoss(*row) for row in frequencies],
    )
    length = 12
    weights = np.tril(np.random.default_rng(1).random((layers, heads, length, length))) + 1e-9
    weights = np.tril(weights) / np.tril(weights).sum(axis=-1, keepdims=True)
    report = Report(
        step=500,
        stride=256,
        metrics={"val": numbers, "test": numbers},
        weights="best",
        model={"name": "modern", "n_layers": layers, "n_heads": heads, "parameters": 3_342_336},
        training=Training(
            history,
            {"seconds": 338.3, "processor_seconds": 509.7, "tokens_per_sec": 13_317.8, "peak_memory_bytes": 7.2e8},
            [{"step": 100 * number, "callback": "sample_text", "text": text} for number in range(evaluations)],
        ),
        samples=[[Sample(text, text, how) for how in ("temperature, top_k", "the likeliest token each time")]],
        excerpts=[Excerpt(name, text, tokens) for name in ("val", "test")],
        attention=AttentionMaps([text] * length, weights, list(range(1, layers + 1)), list(range(1, heads + 1))),
        breakdowns={"val": breakdown, "test": breakdown},
        data={name: {"documents": 30, "bytes": 100_000, "tokens": 30_000} for name in ("train", "val", "test")},
        params={"train": {"seed": 1, "prompt": text, "optimizer": {"name": text}}},
        versions={"torch": "2.13.0"},
        identity={"weights": "0123456789abcdef" * 4},
    )
    return replace(report, **conversations(text, tokens)) if chat else report


def conversations(text: str, tokens: list[Token]) -> dict[str, Any]:
    """What the report of a model that answers has in addition."""
    read = Token(text, learnt=False)
    turns = [("system", [read]), ("user", [read]), ("", [read]), ("assistant", [read, *tokens[1:9], read])]
    said = [Turn("user", text), Turn("", text)]
    return {
        "conversations": [Conversation(name, text, turns, cut=name == "val") for name in ("val", "test")],
        "answered": [
            AnsweredQuestion(text, said, text, Answer(text, ended=True)),
            AnsweredQuestion(text, said, text, Answer(text + "s", ended=False)),
        ],
        "tasks": {"questions.exact_match": 0.5, "questions.exact_match.last_word": 0.25, "questions.ended": 1.0},
        "data": {
            name: {"documents": 26_751, "bytes": 4_647_766, "tokens": 1_651_929, "learnt": 202_374}
            for name in ("train", "val", "test")
        },
    }
