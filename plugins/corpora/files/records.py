"""Files that hold many documents: JSON lines, JSON, CSV and parquet."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from io import SEEK_END
from itertools import chain
from pathlib import Path
from typing import Any

from .reading import BLOCK, blocks, damaged, needed
from .text import LongLineError, TextReader, lines

_ROWS = 64
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_LINE_ENDS = re.compile(r"[^\r]*\r\n?|[^\r]+")


_LONGEST_LINE = 1 << 26
"""The maximum number of characters of a JSON line: parsing takes about ten times its size in memory."""


def _lines(path: Path, reader: TextReader) -> Iterator[str]:
    texts = reader.decoded(blocks(path, reader.span), path)
    try:
        yield from lines(texts, _LONGEST_LINE, reader.span.first_record)
    except LongLineError as error:
        raise ValueError(
            f"{path} {error}: put each record on a line of its own, or long texts into .txt files"
        ) from None


def json_lines(path: Path, field: str, reader: TextReader) -> Iterator[tuple[int, str]]:
    """Yields the line number and the text of `field` for each line; blank lines are skipped.

    Raises:
        ValueError: a line is not a JSON object with a text in `field`; the message names the file and the line.
    """
    for number, line in enumerate(_lines(path, reader), start=reader.span.first_record + 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        text = _record_text(_parsed(line, place, "each line holds an object of its own"), field, place, reader)
        if text is not None:
            yield number, text


def json_items(path: Path, field: str, reader: TextReader) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each item of a .json file.

    The file is a list of texts, a list of objects with a text in `field`, or a single such object.

    Raises:
        ValueError: the file is not JSON, is too long, or has an item without a text.
    """
    blocks_of_text, length = [], 0
    for text in reader.decoded(blocks(path), path):
        blocks_of_text.append(text)
        length += len(text)
        if length > _LONGEST_LINE:
            raise ValueError(
                f"{path} has over {_LONGEST_LINE:,} characters of JSON: make a .jsonl of it, an object a line "
                "(`jq -c '.[]'`)"
            )
    value = _parsed("".join(blocks_of_text), str(path), "a file with an object on each line must end in .jsonl")
    if not isinstance(value, list | dict):
        raise ValueError(f"{path} holds {_named(value)}, where a list of texts or objects, or an object is meant")
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        place = f"{path} item {number}"
        if isinstance(item, str):
            yield number, reader.record(item, place)
        elif (found := _record_text(item, field, place, reader)) is not None:
            yield number, found


def _parsed(text: str, place: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({error}): {hint}") from None


def _record_text(record: Any, field: str, place: str, reader: TextReader) -> str | None:
    """The text of a record; None for a null that is skipped."""
    text = None if record is None else _field(record, field, place, reader.fix)
    if text is None:
        there = f": the field {field!r} holds null (there are: {_listed(record)})" if record else " holds null"
        reader.skip_null(place + there)
        return None
    if not isinstance(text, str):
        raise ValueError(
            f"{place}: the field {field!r} holds {_named(text)}, not a text (there are: "
            f"{_listed(record)}): mend it, or {reader.fix}"
        )
    return reader.record(text, place)


def table_rows(path: Path, column: str, reader: TextReader) -> Iterator[tuple[int, str]]:
    """Yields the row number and the text of `column` for each row of a .csv or .tsv file with a header row.

    A .csv file may be separated by semicolons or tabs, if its header then has the column.

    Raises:
        ValueError: there is no such column, or a row has more or fewer fields than the header; the message names
            the file and the row.
    """
    csv.field_size_limit(_LONGEST_LINE)
    lines_read = (part for line in _lines(path, reader) for part in _LINE_ENDS.findall(line + "\n"))
    first = next(lines_read, "")
    marks = "\t" if ".tsv" in path.name.lower() else ",;\t"
    mark = next((each for each in marks if column in next(csv.reader([first], delimiter=each), [])), marks[0])
    rows, number, names = csv.reader(chain([first], lines_read), delimiter=mark, strict=True), 0, list[str]()
    try:
        for row in rows:
            if not row:
                continue
            if not names:
                names = row
                if names.count(column) != 1:
                    how = f"{names.count(column)} columns" if column in names else "no column"
                    raise ValueError(
                        f"{path} has {how} {column!r} (its first row names: {_listed(names)}): {reader.fix}"
                    )
                place = names.index(column)
                continue
            number += 1
            if len(row) != len(names):
                raise ValueError(
                    f"{path} row {number} (line {rows.line_num}) has {len(row)} fields, the first row {len(names)}"
                    f": quote texts that contain {mark!r}, or mend it"
                )
            yield number, reader.record(row[place], f"{path} row {number}")
    except csv.Error as error:
        raise ValueError(
            f"{path} row {number + 1} (line {rows.line_num}) is no row of a table ({error}): mend it; in a quoted "
            'text a quote is written twice ("")'
        ) from None


def _field(record: Any, field: str, place: str, fix: str) -> Any:
    """The value of a field. A name with dots that is not itself a field leads into nested objects; `fix` is for
    errors."""
    if not isinstance(record, dict):
        raise ValueError(f'{place} holds {_named(record)}, where an object such as {{"{field}": …}} is meant')
    outer, dot, inner = field.partition(".")
    if field in record or not dot or outer not in record:
        if field not in record:
            raise ValueError(f"{place} has no field {field!r} (there are: {_listed(record)}): {fix}")
        return record[field]
    return None if record[outer] is None else _field(record[outer], inner, place, fix)


def parquet_rows(path: Path, column: str, reader: TextReader) -> Iterator[tuple[int, str]]:
    """Yields the row number and the text of `column` for each row, with a few rows in memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, has no such text column, or a row has no text; the message names the file.
    """
    parquet = needed(path, "pyarrow.parquet", "parquet")
    import pyarrow as arrow

    with path.open("rb") as opened:
        try:
            file = parquet.ParquetFile(opened, buffer_size=BLOCK, page_checksum_verification=True)
            names = _check_column(path, file.schema_arrow, column, reader.fix)
            groups = [group for group, start in enumerate(_group_starts(file)) if reader.span.contains(start)]
            batches = file.iter_batches(_ROWS, columns=[column], row_groups=groups, use_threads=False)
            columns = (_nested(batch.column(names[0]), names[1:]) for batch in batches)
            # Read as bytes, because the strings may be invalid UTF-8.
            arrays = (each.cast(arrow.large_string()).cast(arrow.large_binary()) for each in columns)
            every = chain.from_iterable(array.to_pylist() for array in arrays)
            for number, data in enumerate(every, start=reader.span.first_record + 1):
                place = f"{path} row {number}"
                if data is None:
                    reader.skip_null(f"{place}: the column {column!r} holds null, not a text")
                    continue
                yield number, reader.utf8(data, place)
        except (arrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise damaged(path, "parquet", error) from None


def row_groups(path: Path) -> list[tuple[int, int]]:
    """The offset and the number of rows of each row group of a .parquet file; none if it cannot be read."""
    parquet = needed(path, "pyarrow.parquet", "parquet")
    import pyarrow as arrow

    try:
        with parquet.ParquetFile(path) as file:
            rows = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            return list(zip(_group_starts(file), rows, strict=True))
    except (arrow.ArrowException, OSError, ValueError):
        return []


def group_cuts(path: Path, size: int) -> Iterator[int]:
    """The offsets of row groups that are at least `size` bytes apart."""
    starts = [start for start, _ in row_groups(path)]
    last = 0
    for start in starts if starts == sorted(starts) else ():
        if start - last >= size:
            last = start
            yield start


def footer_start(path: Path) -> int:
    """Where the description of the row groups begins."""
    with path.open("rb") as file:
        end = file.seek(-8, SEEK_END)
        return max(0, end - int.from_bytes(file.read(4), "little"))


def _group_starts(file: Any) -> list[int]:
    """The offset of the first page of each row group."""
    starts = []
    for number in range(file.metadata.num_row_groups):
        columns = [file.metadata.row_group(number).column(each) for each in range(file.metadata.num_columns)]
        pages = [(column.dictionary_page_offset, column.data_page_offset) for column in columns]
        starts.append(min(offset for offset in chain.from_iterable(pages) if offset is not None))
    return starts


def _check_column(path: Path, schema: Any, column: str, fix: str) -> list[str]:
    """The path to a text column: one name, or several if it is in structs; `fix` is for errors."""
    from pyarrow import types

    names, rest, fields = list[str](), column, {field.name: field.type for field in schema}
    while rest not in fields and (name := rest.partition(".")[0]) in fields and types.is_struct(fields[name]):
        inner, rest = fields[name], rest.partition(".")[2]
        names.append(name)
        fields = {field.name: field.type for field in inner}
    if rest not in fields:
        raise ValueError(f"{path} has no column {column!r} (there are: {_listed(fields)}): {fix}")
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
            f"{path}: the column {column!r} holds {str(kind)[:80]}, not text (there are: {there}): {fix}"
        )
    return [*names, rest]


def _nested(column: Any, names: list[str]) -> Any:
    """A field of a struct column; null where the struct is null."""
    from pyarrow.compute import struct_field

    return struct_field(column, names) if names else column


def _named(value: object) -> str:
    return _NAMES.get(type(value), "a number")


def _listed(names: Iterable[str]) -> str:
    """The first names, each shortened for an error message."""
    shown = [" ".join(name[:40].split()) for name in names]
    return ", ".join(shown[:12] + ["…"] * (len(shown) > 12)) or "none"
