"""Writes and reads the tables of the breakdown in reports/, which `pipeline compare` uses."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.files import write_atomically, write_json
from pipeline.core.paths import EVALUATION
from pipeline.data.masked import MaskedIds
from pipeline.evaluate.breakdown import Breakdown, UnitScore

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer

DOCUMENTS = "documents.tsv"
BLOCKS = "blocks.tsv"
POSITIONS = "positions.tsv"
FREQUENCIES = "frequencies.tsv"
TASKS = "tasks.tsv"

_SUMS = ("tokens", "nats", "bytes", "text_nats", "correct")
_AT_ONCE = 1 << 18
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


class TaskItem(NamedTuple):
    """The value of one item of a task, such as a question; the mean over the items is the number `number`.

    Attributes:
        task: The name of the metric.
        number: The name of the number.
        item: The name of the item.
        value: Its value.
        text: What the model answered; in the table in one line.
    """

    task: str
    number: str
    item: str
    value: float
    text: str


def write_tables(
    breakdowns: Mapping[str, Breakdown], items: Sequence[TaskItem], about: dict[str, Any], folder: Path
) -> None:
    """Writes the breakdowns of all texts and the items of tasks, if there are any, as tables, and evaluation.json
    with what was evaluated and how."""
    for name, key, columns, field in (
        (DOCUMENTS, "document", _SUMS, "documents"),
        (BLOCKS, "block", _SUMS, "blocks"),
        (POSITIONS, "position", ("tokens", "nats"), "positions"),
        (FREQUENCIES, "lowest", ("tokens", "nats"), "frequencies"),
    ):
        table = [(side, *row) for side, breakdown in breakdowns.items() for row in getattr(breakdown, field)]
        write_atomically(folder / name, _tsv([("side", key, *columns), *table]))
    if items:
        rows = [(*each[:3], f"{each.value:g}", each.text.translate(_ESCAPES)) for each in items]
        write_atomically(folder / TASKS, _tsv([TaskItem._fields, *rows]))
    write_json(folder / EVALUATION, about)


def _tsv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_units(text: str) -> dict[str, list[UnitScore]]:
    """The units of each text in a documents.tsv or blocks.tsv.

    Raises:
        ValueError: `text` is not such a table.
    """
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    if tuple(header[2:]) != _SUMS:
        raise ValueError(f"its columns are {', '.join(header)}")
    sides: dict[str, list[UnitScore]] = {}
    for side, name, tokens, nats, size, text_nats, correct in rows:
        unit = UnitScore(name, int(tokens), float(nats), int(size), float(text_nats), int(correct))
        sides.setdefault(side, []).append(unit)
    return sides


def task_table(tasks: Mapping[str, float]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The numbers of tasks as a table: the names of the columns, and the rows, each with its name and values.

    The first row is of all items. A number whose name is that of another one with a part after it, such as
    `questions.exact_match.signature`, is in the row of this part, a kind of items.
    """
    columns = [name for name in tasks if name.rpartition(".")[0] not in tasks]
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in tasks if name not in columns)
    rows: list[tuple[str, list[float | None]]] = [("all", [tasks[column] for column in columns])]
    rows += [(kind, [tasks.get(f"{column}.{kind}") for column in columns]) for kind in kinds]
    return columns, rows


def read_items(text: str) -> list[TaskItem]:
    """The items in a tasks.tsv.

    Raises:
        ValueError: `text` is not such a table.
    """
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    if tuple(header) != TaskItem._fields:
        raise ValueError(f"its columns are {', '.join(header)}")
    return [TaskItem(task, number, item, float(value), said) for task, number, item, value, said in rows]


def digests(ids: MaskedIds, tokenizer: Tokenizer) -> dict[str, str]:
    """sha256 of the `tokens`, and of the `text`: the bytes without special tokens, which do not depend on the
    tokenizer. Where only a part is learnt, both depend on which."""
    tokens, text, learnt_text = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    ids = MaskedIds(ids.ids, ids.learn)  # in any windows
    for start in range(0, len(ids), _AT_ONCE):
        part, learnt = ids.ids[start : start + _AT_ONCE], ids.learnt(start, start + _AT_ONCE)
        has_text = tokenizer.byte_lengths[part] > 0
        tokens.update(part.astype("<u4").tobytes())
        text.update(tokenizer.decode_bytes(part[has_text]))
        if ids.learn is not None:
            tokens.update(learnt.tobytes())
            learnt_text.update(tokenizer.decode_bytes(part[has_text & learnt]))
    if ids.learn is not None:
        text.update(learnt_text.digest())
    return {"tokens": tokens.hexdigest(), "text": text.hexdigest()}
