"""Writes and reads the tables of the breakdown in reports/, which `pipeline compare` uses."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.files import write_atomically, write_json
from pipeline.core.paths import EVALUATION
from pipeline.evaluate.breakdown import Breakdown, UnitScore

if TYPE_CHECKING:
    from pipeline.data.joined import AnyIds
    from pipeline.data.tokenizer import Tokenizer

DOCUMENTS = "documents.tsv"
BLOCKS = "blocks.tsv"
POSITIONS = "positions.tsv"
FREQUENCIES = "frequencies.tsv"

_SUMS = ("tokens", "nats", "bytes", "text_nats", "correct")
_AT_ONCE = 1 << 18


def write_tables(breakdowns: Mapping[str, Breakdown], about: dict[str, Any], folder: Path) -> None:
    """Writes the breakdowns of all texts as tables, and evaluation.json with what was evaluated and how."""
    for name, key, columns, field in (
        (DOCUMENTS, "document", _SUMS, "documents"),
        (BLOCKS, "block", _SUMS, "blocks"),
        (POSITIONS, "position", ("tokens", "nats"), "positions"),
        (FREQUENCIES, "lowest", ("tokens", "nats"), "frequencies"),
    ):
        table = [(side, *row) for side, breakdown in breakdowns.items() for row in getattr(breakdown, field)]
        write_atomically(folder / name, _tsv([("side", key, *columns), *table]))
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


def digests(ids: AnyIds, tokenizer: Tokenizer) -> dict[str, str]:
    """sha256 of the `tokens`, and of the `text`: the bytes without special tokens, which do not depend on the
    tokenizer."""
    tokens, text = hashlib.sha256(), hashlib.sha256()
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        tokens.update(part.astype("<u4").tobytes())
        text.update(tokenizer.decode_bytes(part[tokenizer.byte_lengths[part] > 0]))
    return {"tokens": tokens.hexdigest(), "text": text.hexdigest()}
