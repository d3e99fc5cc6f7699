"""The model card: README.md of the export, which the Hugging Face Hub shows as the page of a model.

Names, prompts and samples may contain anything, so the template escapes everything for one line of Markdown, unless
a filter has made it safe: strings in YAML are JSON, and texts are in fences longer than any fence in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import printable

_MARKUP = re.compile(r"([\\`*_\[\]|<>&~$])")
_MEASURES = {
    "loss": "loss (nats per token)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
}


class _Markdown(str):
    """Text that is valid Markdown and needs no escaping."""

    __slots__ = ()


@dataclass(frozen=True)
class ModelCard:
    """The content of the card.

    Attributes:
        config: The architecture, and its number of parameters.
        corpus: Where the text came from: the corpus's name.
        sides: For "train", "val" and "test": documents, bytes and tokens.
        tokenizer: The tokenizer's name.
        weights, step: "best" or "last", and of which step.
        metrics: Of these weights `stride`, and of each side what metrics/evaluate.json and reports/evaluation.json
            hold: its numbers, `interval` and `baselines`; None where those were not made of them.
        prompt, continuation: A sample.
        chat: Whether the model answers in turns.
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
    chat: bool = False

    def text(self) -> str:
        """README.md."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            finalize=_escaped,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            undefined=StrictUndefined,
        )
        environment.filters.update(count=_count, yaml=_yaml, fenced=_fenced, facts=_facts)
        numbers = self._numbers()
        return environment.get_template("model_card.md.j2").render(
            card=self,
            head=self._front_matter(),
            measured=self._measured,
            numbers=numbers,
            scored=self._scored,
            intervals=any(" to " in cell for cells in numbers.values() for cell in cells),
            params="\n".join(
                line
                for section, values in self.params.items()
                for line in (f"{section}:", *(f"  {key}: {_compact(value)}" for key, value in values.items()))
            ),
        )

    def _front_matter(self) -> dict[str, Any]:
        head: dict[str, Any] = {
            "pipeline_tag": "text-generation",
            "tags": ["gpt", self.config["name"], *(name for name in self.proofs if name != "huggingface")],
        }
        if next(iter(self.proofs), None) == "huggingface":
            head = {"library_name": "transformers", **head}
        results = [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": f"{self.corpus}, held out for {side}", "type": self.corpus, "split": side},
                "metrics": [
                    {"type": name, "name": shown, "value": numbers[name]}
                    for name, shown in _MEASURES.items()
                    if name in numbers
                ],
            }
            for side, numbers in self._measured.items()
        ]
        if results:
            name = f"GPT, {_count(self.config['parameters'])} parameters"
            head["model-index"] = [{"name": name, "results": results}]
        return head

    @property
    def _measured(self) -> dict[str, Mapping[str, Any]]:
        """The numbers of val and test that were measured."""
        sides = {side: (self.metrics or {}).get(side) for side in ("val", "test")}
        return {side: numbers for side, numbers in sides.items() if isinstance(numbers, Mapping)}

    @property
    def _scored(self) -> dict[str, Mapping[str, Any]]:
        """Which part of val and test was scored, where it was not all."""
        parts = {side: numbers.get("scored") for side, numbers in self._measured.items()}
        return {
            side: part
            for side, part in parts.items()
            if isinstance(part, Mapping)
            and isinstance(part.get("tokens"), int)
            and isinstance(part.get("of"), int)
            and "what" in part
        }

    @property
    def tasks(self) -> dict[str, float]:
        """The numbers of tasks."""
        found = (self.metrics or {}).get("tasks")
        numbers = found.items() if isinstance(found, Mapping) else ()
        return {name: value for name, value in numbers if isinstance(value, int | float)}

    def _numbers(self) -> dict[str, list[str]]:
        """The rows of the table of numbers, with a cell for each measured text."""
        sides = self._measured.values()
        rows = {shown: [_with_interval(side, name) for side in sides] for name, shown in _MEASURES.items()}
        for name in ("unigram", "xz"):
            cells = [_number(side.get("baselines", {}).get(name)) for side in sides]
            rows[f"{name} (bits per byte, for comparison)"] = cells
        return {name: cells for name, cells in rows.items() if any(cells)}


def _escaped(value: Any) -> str:
    """Escapes text for one line of Markdown."""
    if isinstance(value, _Markdown):
        return value
    return _MARKUP.sub(r"\\\1", " ".join(printable(str(value)).split()))


def _yaml(values: Mapping[str, Any]) -> _Markdown:
    """Front matter with one line per key. Values are JSON, which is valid YAML; ASCII escapes keep strings from
    ending themselves or the front matter."""
    return _Markdown("\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items()))


def _fenced(text: str, language: str = "text") -> _Markdown:
    """A fenced block with a fence longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return _Markdown(f"{fence}{language}\n{printable(text)}\n{fence}")


def _facts(proof: Mapping[str, Any]) -> str:
    """The entries of a verification.json that are not elsewhere on the page."""
    return "; ".join(
        f"{key.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}"
        for key, value in proof.items()
        if key not in ("reader", "format", "weights", "step")
    )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_interval(side: Mapping[str, Any], name: str) -> str:
    shown = _number(side.get(name))
    intervals = side.get("interval")
    ends = intervals.get(name) if isinstance(intervals, Mapping) else None
    if shown and isinstance(ends, Mapping) and {"low", "high"} <= ends.keys():
        shown += f" ({_number(ends['low'])} to {_number(ends['high'])})"
    return shown


def _number(value: Any) -> str:
    return f"{value:#,.4g}".rstrip(".") if isinstance(value, int | float) else ""


def _count(value: int) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return str(value)
