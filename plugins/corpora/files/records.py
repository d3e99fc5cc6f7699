"""Files that hold many documents: JSON lines and parquet."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from .reading import BLOCK, blocks, damaged, needed
from .text import LongLineError, TextReader, lines

_ROWS = 64
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_FIX = "set tokenize.corpus.files.text_field"


_LONGEST_LINE = 1 << 26
"""Characters of a line of JSON, which is parsed as a whole and then takes some ten times its size."""


def _lines(path: Path, reader: TextReader) -> Iterator[str]:
    texts = reader.decoded(blocks(path), path)
    try:
        yield from lines(texts, _LONGEST_LINE)
    except LongLineError as error:
        raise ValueError(
            f"{path} {error}: put each record on a line of its own, or long texts into .txt files"
        ) from None


def json_lines(path: Path, field: str, reader: TextReader) -> Iterator[tuple[int, str]]:
    """The text of each line's `field`, with the line's number; blank lines are skipped.

    Raises:
        ValueError: a line is no JSON object that holds a text there; names the file and the line.
    """
    for number, line in enumerate(_lines(path, reader), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = json.loads(line)
        except RecursionError:
            raise ValueError(f"{place} is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"{place} is not JSON ({error}): each line holds an object of its own") from None
        text = None if record is None else _field(record, field, place)
        if text is None:
            there = f": the field {field!r} holds null (there are: {_listed(record)})" if record else " holds null"
            reader.skip_null(place + there)
            continue
        if not isinstance(text, str):
            raise ValueError(
                f"{place}: the field {field!r} holds {_named(text)}, not a text (there are: "
                f"{_listed(record)}): fix the line, or {_FIX}"
            )
        yield number, reader.record(text, place)


def _field(record: Any, field: str, place: str) -> Any:
    """A field's value; in a name with dots, of the object in an object, where no field has the whole name."""
    if not isinstance(record, dict):
        raise ValueError(f'{place} holds {_named(record)}, where an object such as {{"{field}": …}} is meant')
    outer, dot, inner = field.partition(".")
    if field in record or not dot or outer not in record:
        if field not in record:
            raise ValueError(f"{place} has no field {field!r} (there are: {_listed(record)}): {_FIX}")
        return record[field]
    return None if record[outer] is None else _field(record[outer], inner, place)


def parquet_rows(path: Path, column: str, reader: TextReader) -> Iterator[tuple[int, str]]:
    """The text of each row's `column`, with the row's number, a few rows in memory at a time.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, has no such column of text, or a row has no text there; names the file.
    """
    parquet = needed(path, "pyarrow.parquet", "parquet")
    import pyarrow as arrow

    with path.open("rb") as opened:
        try:
            file = parquet.ParquetFile(opened, buffer_size=BLOCK, page_checksum_verification=True)
            names = _check_column(path, file.schema_arrow, column)
            batches = file.iter_batches(_ROWS, columns=[column], use_threads=False)
            columns = (_nested(batch.column(names[0]), names[1:]) for batch in batches)
            # As bytes: what a careless program wrote may be no UTF-8.
            arrays = (each.cast(arrow.large_string()).cast(arrow.large_binary()) for each in columns)
            for number, data in enumerate(chain.from_iterable(array.to_pylist() for array in arrays), start=1):
                place = f"{path} row {number}"
                if data is None:
                    reader.skip_null(f"{place}: the column {column!r} holds null, not a text")
                    continue
                yield number, reader.utf8(data, place)
        except (arrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise damaged(path, "parquet", error) from None


def _check_column(path: Path, schema: Any, column: str) -> list[str]:
    """The names that lead to a column of text: one, or several where it lies in structs."""
    from pyarrow import types

    names, rest, fields = list[str](), column, {field.name: field.type for field in schema}
    while rest not in fields and (name := rest.partition(".")[0]) in fields and types.is_struct(fields[name]):
        inner, rest = fields[name], rest.partition(".")[2]
        names.append(name)
        fields = {field.name: field.type for field in inner}
    if rest not in fields:
        raise ValueError(f"{path} has no column {column!r} (there are: {_listed(fields)}): {_FIX}")
    kind = fields[rest]
    value = kind.value_type if types.is_dictionary(kind) else kind
    if not (
        types.is_null(value)
        or types.is_string(value)
        or types.is_large_string(value)
        or types.is_string_view(value)
    ):
        there = _listed(fields)
        raise ValueError(
            f"{path}: the column {column!r} holds {str(kind)[:80]}, not text (there are: {there}): {_FIX}"
        )
    return [*names, rest]


def _nested(column: Any, names: list[str]) -> Any:
    """A field of a struct's column; null where the struct is."""
    from pyarrow.compute import struct_field

    return struct_field(column, names) if names else column


def _named(value: object) -> str:
    return _NAMES.get(type(value), "a number")


def _listed(names: Iterable[str]) -> str:
    """The first names, each cut to what an error message can hold."""
    shown = [name[:40] for name in names]
    return ", ".join(shown[:12] + ["…"] * (len(shown) > 12)) or "none"
