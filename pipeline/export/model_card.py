"""The model card: README.md in the export, what a model's page on the Hugging Face Hub shows.

Names, prompts and samples may hold anything, so nothing is pasted into Markdown or YAML as it is: YAML's strings
are JSON's, table cells and sentences are escaped, and texts stand in fences longer than any in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.console import printable

_MARKUP = re.compile(r"([\\`*_\[\]|<>&~$])")
_MEASURES = {
    "loss": "loss (nats a token)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
}


@dataclass(frozen=True)
class ModelCard:
    """What the card says.

    Attributes:
        config: The architecture, and its number of parameters.
        corpus: Where the text came from: the corpus's name.
        sides: For "train", "val" and "test": documents, bytes and tokens.
        tokenizer: The tokenizer's name.
        weights, step: "best" or "last", and of which step.
        metrics: What metrics/evaluate.json holds of these weights; None where it was not made of them.
        prompt, continuation: A sample.
        params: The params that made the model, by section.
        proofs: What verification.json holds, by the format's name; the first lies at the top.
        versions: Packages and their versions.
    """

    config: Mapping[str, Any]
    corpus: str
    sides: Mapping[str, Mapping[str, int]]
    tokenizer: str
    weights: str
    step: int
    metrics: Mapping[str, Any] | None
    prompt: str
    continuation: str
    params: Mapping[str, Any]
    proofs: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]

    def text(self) -> str:
        """README.md."""
        parts = [
            self._front_matter(),
            self._title(),
            self._loading(),
            self._data(),
            self._numbers(),
            self._sample(),
            self._training(),
            self._proof(),
        ]
        return "\n\n".join(parts) + "\n"

    def _title(self) -> str:
        config, family, tokenizer = self.config, _plain(self.config["family"]), _plain(self.tokenizer)
        return (
            f"# A GPT of {_count(config['parameters'])} parameters\n\n"
            f"A decoder-only transformer of the family {family}: {config['n_layers']} layers, {config['n_heads']} "
            f"heads, width {config['emb_dim']}, {config['context_length']:,} tokens of context, a vocabulary of "
            f"{config['vocab_size']:,} ({tokenizer}). These are the {self.weights} weights, of step {self.step:,}. "
            "It continues text like that which it was trained on; it follows no instructions and knows no facts to "
            "rely on."
        )

    def _front_matter(self) -> str:
        transformers = next(iter(self.proofs), None) == "huggingface"
        head: dict[str, Any] = {
            **({"library_name": "transformers"} if transformers else {}),
            "pipeline_tag": "text-generation",
            "tags": ["gpt", self.config["family"], *(name for name in self.proofs if name != "huggingface")],
        }
        results = [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": f"{self.corpus}, held out for {side}", "type": self.corpus, "split": side},
                "metrics": [
                    {"type": name, "name": shown, "value": self.metrics[side][name]}
                    for name, shown in _MEASURES.items()
                    if name in self.metrics[side]
                ],
            }
            for side in self._measured
            if self.metrics
        ]
        if results:
            name = f"GPT, {_count(self.config['parameters'])} parameters"
            head["model-index"] = [{"name": name, "results": results}]
        # JSON is YAML; its strings, escaped to ASCII, can end neither themselves nor the front matter.
        return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"])

    def _loading(self) -> str:
        blocks = [
            f"{'' if number == 0 else f'In `{name}/`: '}{_LOADING[name]}"
            for number, name in enumerate(self.proofs)
            if name in _LOADING
        ]
        return "\n\n".join(["## How to load it", *blocks])

    def _data(self) -> str:
        rows = [
            [side, *(f"{self.sides[side][key]:,}" for key in ("documents", "bytes", "tokens"))]
            for side in ("train", "val", "test")
            if side in self.sides
        ]
        return (
            f"## Data\n\nThe corpus {_plain(self.corpus)}, split before training; val and test were held out. The "
            f"model inherits what is in its text, its licence among it.\n\n"
            + _table(["", "documents", "bytes", "tokens"], rows)
        )

    @property
    def _measured(self) -> list[str]:
        return [side for side in ("val", "test") if self.metrics and isinstance(self.metrics.get(side), Mapping)]

    def _numbers(self) -> str:
        if not self.metrics or not self._measured:
            return "## How good it is\n\nThese weights were not evaluated before they were exported."
        rows = []
        for name, shown in _MEASURES.items():
            cells = [_with_interval(self.metrics[side], name) for side in self._measured]
            rows += [[shown, *cells]] if any(cells) else []
        for name in ("unigram", "xz"):
            cells = [_number(self.metrics[side].get("baselines", {}).get(name)) for side in self._measured]
            rows += [[f"{name} (bits per byte, for comparison)", *cells]] if any(cells) else []
        intervals = any(" to " in cell for row in rows for cell in row[1:])
        stride, length = self.metrics.get("stride"), self.config["context_length"]
        windows = "windows that do not overlap" if stride == length else f"windows that move by {stride} tokens"
        return (
            f"## How good it is\n\nThe plain negative log-likelihood of every held-out token, in {windows}"
            f"{'; in parentheses, 95% intervals' if intervals else ''}.\n\n" + _table(["", *self._measured], rows)
        )

    def _sample(self) -> str:
        return (
            "## A sample\n\nHeld-out text begins\n\n"
            + _fenced(self.prompt)
            + "\n\nand the model goes on (drawn once, at temperature 0.8, not chosen):\n\n"
            + _fenced(self.continuation)
        )

    def _training(self) -> str:
        lines = []
        for section, values in self.params.items():
            lines.append(f"{section}:")
            lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        versions = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in self.versions.items())
        return f"## How it was made\n\n{_fenced(chr(10).join(lines), 'yaml')}\n\nWith {versions}."

    def _proof(self) -> str:
        rows = []
        for name, proof in self.proofs.items():
            facts = (
                f"{key.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}"
                for key, value in proof.items()
                if key not in ("reader", "format", "weights", "step")
            )
            rows.append([name, str(proof.get("reader", "")), "; ".join(facts)])
        return (
            "## How the files were proven\n\nBefore they were published, each was loaded by its reader and held "
            "against the checkpoint; `verification.json` beside each has the numbers.\n\n"
            + _table(["format", "reader", "what was compared"], rows)
        )


_LOADING = {
    "huggingface": (
        "with transformers:\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```'
    ),
    "gguf": 'with llama.cpp: `llama-cli -m model.gguf -no-cnv -p "Once"`',
    "onnx": (
        "with onnxruntime and tokenizers:\n\n```python\nimport onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        '(logits,) = session.run(["logits"], {"input_ids": ids})  # ids: int64 [B, T]\n```'
    ),
    "torch_export": (
        'with torch:\n\n```python\nimport torch\n\nmodel = torch.export.load("model.pt2").module()\n'
        "logits = model(ids)  # ids: int64 [B, T]\n```"
    ),
}


def _with_interval(side: Mapping[str, Any], name: str) -> str:
    shown = _number(side.get(name))
    intervals = side.get("interval")
    ends = intervals.get(name) if isinstance(intervals, Mapping) else None
    if shown and isinstance(ends, Mapping) and {"low", "high"} <= ends.keys():
        shown += f" ({_number(ends['low'])} to {_number(ends['high'])})"
    return shown


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else ""


def _count(value: int) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return str(value)


def _plain(text: Any) -> str:
    """Text that stays text, on one line of Markdown."""
    return _MARKUP.sub(r"\\\1", " ".join(printable(str(text)).split()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str, language: str = "") -> str:
    """A block that nothing in it can end."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return f"{fence}{language or 'text'}\n{printable(text)}\n{fence}"
