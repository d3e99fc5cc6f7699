"""Files of records in JSON lines, read with one-line errors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from pipeline.core.values import explain

T = TypeVar("T", bound=BaseModel)


def record_digest(record: BaseModel) -> str:
    """A short hash of a record, for the name of its item: two runs are compared only on equal items."""
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:8]


def read_json_lines(path: Path, kind: type[T], shown: str, setting: str) -> list[T]:
    """The records of a file, one per line; a pydantic model checks them.

    Args:
        path: The file.
        kind: The model of a line.
        shown: The file's name in messages.
        setting: The key of params.yaml that names the file.

    Raises:
        ValueError: the file is missing, empty or not UTF-8, or a line is invalid.
    """
    if not path.is_file():
        raise ValueError(f"{shown} is missing: put the questions there, or set {setting}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown} is not UTF-8 at byte {error.start:,}: convert it") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            values = from_json(line) if error.errors()[0]["type"] != "json_invalid" else None
            raise ValueError(f"{shown} line {number}: {explain(error, values)}") from None
    if not records:
        raise ValueError(f"{shown} is empty: write one question per line")
    return records
