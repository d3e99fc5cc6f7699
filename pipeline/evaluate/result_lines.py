"""The last lines of evaluate: a table of numbers, and the result with its baselines and the previous run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.core.console import aligned
from pipeline.core.dvc_cache import cached_folder, recorded_digest
from pipeline.core.errors import PipelineError
from pipeline.core.paths import EVALUATION, METRICS
from pipeline.evaluate.conversations import ASSISTANT, Turn
from pipeline.evaluate.tables import task_table

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.evaluate.evaluation import Evaluation

Numbers = Mapping[str, Any]
_BITS = "bits_per_byte"


def read_before(paths: Paths, now: Numbers) -> dict[str, tuple[str, float]]:
    """The evaluation that is replaced: the digest and the bits per byte of each text; empty if there is none, or if
    its windows (`evaluate.stride`, `train.pack_documents`) are not those of `now`, the new evaluation.json.

    It is read from reports/, or, because DVC deletes outputs before it runs a stage, from DVC's cache.
    """
    names = (EVALUATION, f"{METRICS}/evaluate.json")
    files = {name: paths.reports / name for name in names}
    found: dict[str, tuple[str, float]] = {}
    with suppress(
        PipelineError, OSError, ValueError, TypeError, KeyError, AttributeError
    ):  # files of another version
        if "DVC_STAGE" in os.environ and not paths.reports.exists():
            files = cached_folder(paths.root, _digest(paths))
        about, numbers = (json.loads(files[name].read_bytes()) for name in names)
        same_windows = all(about.get(key) == now.get(key) for key in ("stride_share", "packed"))
        for side, each in about["sides"].items() if same_windows else ():
            if _BITS in numbers[side]:
                found[side] = (str(each["text"]), float(numbers[side][_BITS]))
    return found


def _digest(paths: Paths) -> str:
    lock = (paths.root / "dvc.lock").read_text(encoding="utf-8")
    return recorded_digest(lock, "evaluate", "outs", paths.shown(paths.reports)) or ""


def table(numbers: Numbers, about: Numbers, units: Mapping[str, str]) -> Iterator[str]:
    """Yields a table with a column of numbers and one of intervals for each text, and the baselines.

    Args:
        numbers: The numbers of each text by name.
        about: The accuracy, intervals and baselines of each text.
        units: The resampled units of each text's intervals, such as "31 documents".
    """
    shown = {side: {**numbers[side], "accuracy": about[side]["accuracy"]} for side in about}
    found = (name for values in shown.values() for name in values if name != "tokens")
    names = dict.fromkeys(["loss", "perplexity", _BITS, "accuracy", *found])
    rows = [["", *(text for side in shown for text in (side, ""))]]
    for name in names:
        if not any(name in values for values in shown.values()):
            continue  # such as a perplexity that overflows
        cells = [name.replace("_", " ")]
        for side, values in shown.items():
            ends = about[side]["interval"].get(name)
            cells += [
                _number(values[name]) if name in values else "",
                f"{_number(ends['low'])} to {_number(ends['high'])}" if ends else "",
            ]
        rows.append(cells)
        if name == _BITS:
            for baseline in dict.fromkeys(each for side in about for each in about[side]["baselines"]):
                beside = [_number(about[side]["baselines"].get(baseline)) for side in about]
                rows.append([f"  of {baseline}", *(text for each in beside for text in (each, ""))])
    right = range(1, len(rows[0]), 2)
    yield from aligned([[f" {cell}" if n in right else cell for n, cell in enumerate(row)] for row in rows], right)
    over = ", ".join(f"{units[side]} of {side}" for side in about if about[side]["interval"])
    if over:
        yield f"ranges: 95% over {over}"


def scored(about: Numbers) -> Iterator[str]:
    """A line for each text of which only a part is scored, and one that says why there is no xz."""
    parts = {side: each["scored"] for side, each in about.items() if "scored" in each}
    for side, part in parts.items():
        yield f"{part['tokens']:,} of {part['of']:,} tokens of {side}: {part['what']}"
    if parts:
        yield "without xz, which would compress all of the text"


def tasks(numbers: Mapping[str, float]) -> Iterator[str]:
    """The numbers of tasks: a line, or a table if there are kinds of items."""
    names, rows = task_table(numbers)
    if len(rows) == 1:
        yield "  ".join(f"{name.replace('_', ' ')} {value:,.4f}" for name, value in numbers.items())
        return
    starts = {name.partition(".")[0] for name in names}
    task = starts.pop() if len(starts) == 1 else ""
    cells = [[task, *(name.removeprefix(f"{task}.").replace("_", " ") for name in names)]]
    cells += [[kind, *("" if value is None else f"{value:.4f}" for value in values)] for kind, values in rows]
    yield from aligned(cells)


def result(numbers: Numbers, about: Numbers, before: Mapping[str, tuple[str, float]]) -> tuple[str, str]:
    """The name of the main text (test, if there is one), and its result with its baselines and the previous run."""
    side = "test" if "test" in numbers else next(iter(numbers))
    if _BITS not in numbers[side]:
        return side, f"loss {_number(numbers[side]['loss'])} nats per token"
    bits = numbers[side][_BITS]
    beside = [f"{name} {about[side]['baselines'][name]:.2f}" for name in reversed(about[side]["baselines"])]
    text = f"{bits:.3f} bits per byte ({', '.join(beside)})"
    if side in before:
        digest, earlier = before[side]
        text += f", {_change(bits, earlier)}" if digest == about[side]["text"] else ", on other text than before"
        digest, earlier = before.get("val", ("", 0.0))
        if side == "test" and digest and digest == about.get("val", {}).get("text"):
            text += f"; val {_change(numbers['val'][_BITS], earlier).removesuffix(' than before')}"
    return side, text


def worse_than_unigram(numbers: Numbers, about: Numbers) -> Iterator[str]:
    """A sentence for each split that the model predicts worse than the training text's token frequencies do."""
    for side, each in about.items():
        bits, unigram = numbers[side].get(_BITS), each["baselines"].get("unigram")
        if bits is not None and unigram is not None and bits > unigram:
            yield (
                f"{side} is predicted worse than by the unigram model ({bits:.3f} against {unigram:.3f} bits per "
                f"byte): training was too short, or the texts in {side} are unlike those in train (see split.by)"
            )


def sample(evaluation: Evaluation) -> Iterator[str]:
    """An answered question, or the first sample, to print."""
    for each in evaluation.answered[:1]:
        said = [*each.turns, Turn(ASSISTANT, each.answer.text.strip())]
        yield "\n" + "\n".join(f"{turn.role}: {turn.text}".removeprefix(": ") for turn in said)
        yield f"(the right answer: {each.right})\n"
    for first, *_ in evaluation.samples[:1] if not evaluation.answered else ():
        yield f"\n{first.prompt}{first.continuation}\n"


def comparable(about: Numbers, before: Mapping[str, tuple[str, float]]) -> bool:
    """Whether `pipeline compare` takes the previous run: all texts that both have are the same, and one is."""
    same = [before[side][0] == each["text"] for side, each in about.items() if side in before]
    return bool(same) and all(same)


def _change(now: float, before: float) -> str:
    difference = round(before, 3) - round(now, 3)
    if abs(difference) < 0.0005:
        return "as before"
    return f"{abs(difference):.3f} {'better' if difference > 0 else 'worse'} than before"


def next_commands(prompts: Sequence[str], comparable: bool, chat: bool = False) -> str:
    """Commands to run next: chat, or generate with the first prompt; and compare, if there is a comparable previous
    run."""
    prompt = prompts[0] if prompts and len(prompts[0]) < 24 else "The"
    quoted = f'"{prompt}"' if prompt.replace(" ", "").isalnum() else shlex.quote(prompt)
    return ("pipeline chat" if chat else f"pipeline generate {quoted}") + (
        " · pipeline compare" if comparable else ""
    )


def _number(value: float | None) -> str:
    """The number with about five significant digits."""
    if value is None:
        return ""
    if abs(value) < 10:
        return f"{value:.4f}"
    if abs(value) < 1000:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.4g}"
