"""The corpus of the user's texts: the files below data/raw."""

import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from pipeline.plugin import Corpus, CorpusSource, Document, all_of, hookimpl

from .conversations import Conversations
from .documents import document_text
from .encodings import AUTO, declared, detected
from .fetching import fetched, located, outlined, sampled
from .finding import beside_folder, check_patterns, find, matching, may_find, mismatch, restoring
from .naming import split_of
from .ranges import after, after_word, cuts, is_divisible, overlaps_itself
from .reading import (
    ARCHIVES,
    BLOCK,
    DOCUMENTS,
    INCLUDED,
    PACKAGES,
    WHOLE,
    Span,
    blocks,
    check,
    form,
    is_compressed,
)
from .records import footer_start, group_cuts, json_items, json_lines, parquet_rows, row_groups, table_rows
from .remote import MANIFEST, check_url, compare_listing, list_objects, read_manifest, write_manifest
from .text import Counts, TextReader, check_encoding, separated

_LOOK_AT_MOST = 1 << 30
"""After an error, at most this many characters are read to find more errors."""
_CONVERTED = 1 << 22
"""A file that needs conversion counts as this many characters then."""
_RECORDS = {
    ".jsonl": json_lines, ".json": json_items, ".csv": table_rows, ".tsv": table_rows, ".parquet": parquet_rows,
}  # fmt: skip
_IN_MEMORY = 1 << 26
_HTML = (".html", ".htm", ".xhtml")

T = TypeVar("T")
P = TypeVar("P", tuple[str, ...], dict[str, str])


class Files(Corpus):
    """The files below data/raw, sorted by name: plain text, JSON, tables, HTML, EPUB, DOCX and PDF."""

    name: ClassVar[str] = "files"

    include: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = tuple(f"**/*{end}" for end in INCLUDED)
    """The files to read below data/raw, as globs (`*.txt` also matches .txt.gz and .txt.zst), names or folders.
    `**` matches .txt, .md, .jsonl, .parquet, .csv, .tsv, .json, .html, .htm, .xhtml, .epub, .docx and .pdf."""
    text_field: Annotated[str, Field(min_length=1)] = "text"
    """The field (.jsonl, .json) or column (.csv, .tsv, .parquet) with the text. `doc.text` is the field `text` of
    the field `doc`."""
    text_fields: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """Fields of files that differ from `text_field`, by patterns as in `include`; the first match is used."""
    null_text: Literal["error", "skip"] = "error"
    """For records whose text is null: `error` stops with an error, `skip` leaves them out and prints their
    number."""
    separator: str = ""
    """A string that separates documents in a plain text, such as `<|endoftext|>`; empty: each file is a
    document."""
    encoding: str = "utf-8"
    """The encoding of the files, by its name in Python: utf-8, utf-16, latin-1, cp1252, shift_jis, gb18030, …
    `auto` detects it for each file, and prints the result. HTML pages may declare their encoding."""
    encodings: dict[str, str] = {}
    """Encodings of files that differ from `encoding`, by patterns as in `include`; the first match is used."""
    errors: Literal["strict", "replace"] = "strict"
    """For bytes that cannot be decoded: `strict` stops with an error, `replace` replaces them by U+FFFD."""
    newlines: Literal["keep", "lf"] = "keep"
    """`keep` keeps line ends; `lf` replaces CRLF and CR by LF."""

    url: str = ""
    """Where the texts are, if not in data/raw: a URL of fsspec, such as `s3://bucket/prefix`. `pipeline lock` lists
    them in data/remote.jsonl."""

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        return url and check_url(url)

    @field_validator("include", "text_fields", "encodings")
    @classmethod
    def _stays_inside(cls, patterns: P) -> P:
        return check_patterns(patterns)

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, encoding: str) -> str:
        return check_encoding(encoding)

    @field_validator("encodings")
    @classmethod
    def _are_encodings(cls, encodings: dict[str, str]) -> dict[str, str]:
        return {pattern: check_encoding(encoding) for pattern, encoding in encodings.items()}

    @model_validator(mode="after")
    def _can_occur(self) -> "Files":
        if self.newlines == "lf" and "\r" in self.separator:
            raise ValueError(f"newlines: lf leaves no separator {self.separator!r}: write \\n for its line ends")
        return self

    def notes(self, root: Path) -> Iterator[str]:
        with self._listed(root) as (folder, objects):
            found = find(folder, self.include) if folder.is_dir() else None
        if objects and (new := compare_listing(self.url, objects)):
            yield f"data/{MANIFEST} lacks {new:,} of the objects below {self.url}: run `pipeline lock` to use them"
        if found and found.left_out:
            yield f"files left out: {found.told()}"
            if remedy := found.remedy():
                yield remedy
        if found and (beside := beside_folder(root)):
            yield f"{', '.join(beside)}: not read, since texts lie in {root.parent.name}/{root.name}"

    def packages(self) -> Iterator[str]:
        for ending, names in PACKAGES.items():
            if any(may_find(pattern, ending) for pattern in self.include):
                yield from names
        if AUTO in (self.encoding, *self.encodings.values()):
            yield "charset-normalizer"

    def record(self, root: Path) -> Iterator[str]:
        manifest = root.parent / MANIFEST
        shown = f"{root.parent.name}/{MANIFEST}"
        if not self.url:
            if manifest.is_file():
                manifest.unlink()
                yield f"{shown} removed: tokenize.corpus.files.url is empty"
            return
        objects = list(list_objects(self.url))
        if write_manifest(manifest, self.url, objects):
            size = sum(each.size for each in objects)
            yield f"{shown} written: {len(objects):,} objects, {size / 1e6:,.1f} MB below {self.url}"

    def documents(self, root: Path) -> Iterator[Document]:
        if self.url:
            yield from super().documents(root)
            return
        paths = self._paths(root)
        counts = Counts()
        try:
            for number, path in enumerate(paths, start=1):
                faults = partial(self._faults, root, paths, number)
                for document in _telling(self._documents(root, path, counts), faults):
                    text = document.text
                    told = text if isinstance(text, str) else _Blocks(text, faults)
                    yield Document(document.name, told, document.split)
        finally:  # also if only the beginning is read
            for line in counts.told():
                print(f"note: files: {line}")

    def sources(self, root: Path) -> Iterator[CorpusSource]:
        with self._listed(root) as (folder, objects):
            for path in self._paths(folder):
                known = objects.get(path.relative_to(folder).as_posix())
                yield known or CorpusSource.of_file(path, folder)

    def read(self, root: Path, source: CorpusSource) -> Generator[Document, None, dict[str, Any]]:
        if source.version:
            with fetched(self.url, source) as (folder, local):
                return (yield from located(self.read(folder, local), folder, self.url))
        counts = Counts()
        yield from self._documents(root, Path(source.path), counts, _span(source))
        return asdict(counts)

    def divide(self, root: Path, source: CorpusSource, size: int) -> Iterator[CorpusSource]:
        if source.version:
            with sampled(self.url, source, size) as (folder, local, size):
                for part in self.divide(folder, local, size):
                    yield replace(part, path=source.path, version=source.version)
            return
        path = Path(source.path)
        starts = [0, *self._cuts(root, path, size)]
        continues = form(path) not in _RECORDS and not self.separator
        for start, end in zip(starts, [*starts[1:], source.size], strict=True):
            if len(starts) > 1:
                name, goes_on = f"{source.name}@{start}", continues and end < source.size
                yield replace(source, name=name, start=start, end=end, continues=goes_on)
            else:
                yield source

    def count_records(self, root: Path, source: CorpusSource) -> int:
        if source.version:
            with fetched(self.url, source) as (folder, local):
                return self.count_records(folder, local)
        path, span = Path(source.path), _span(source)
        if form(path) == ".jsonl":
            return sum(block.count(b"\n") for block in blocks(path, span))
        if form(path) == ".parquet":
            return sum(rows for start, rows in row_groups(path) if span.contains(start))
        if not self.separator:
            return 0
        reader = self._reader(self._encoding(root, path, Counts()), Counts(), span)
        return sum(1 for _ in separated(reader.text(path), self.separator))

    def digest(self, root: Path, source: CorpusSource) -> str:
        if source.version:
            return f"{source.version}, bytes {source.start} to {source.end} of {source.size}"
        digest = super().digest(root, source)
        path = Path(source.path)
        if form(path) == ".parquet" and source.end < source.size:  # the footer describes the row groups
            digest += super().digest(root, replace(source, start=footer_start(path), end=source.size))
        return digest

    def _cuts(self, root: Path, path: Path, size: int) -> Iterable[int]:
        """Where a file can be cut into ranges of about `size` bytes."""
        kind = form(path)
        if path.stat().st_size < 2 * size or is_compressed(path):
            return ()
        if kind == ".parquet":
            return group_cuts(path, size)
        _, encoding = self._chosen_encoding(root, path)
        if encoding == AUTO or not is_divisible(encoding):
            return ()
        if kind == ".jsonl":
            return cuts(path, size, after(b"\n"))
        if kind in (*_RECORDS, *PACKAGES) or overlaps_itself(self.separator):
            return ()
        if not self.separator:
            return cuts(path, size, after_word(encoding))
        mark = self.separator.encode(encoding, "ignore")
        return cuts(path, size, after(mark)) if mark.decode(encoding) == self.separator else ()

    def end_notes(self, reports: Iterable[dict[str, Any]]) -> Iterator[str]:
        total = Counts()
        for report in reports:
            total.add(Counts(**report))
        yield from total.told()

    def file_text(self, path: Path, root: Path) -> Iterator[str]:
        if not path.is_file():  # a pipe, which can be read only once
            yield from super().file_text(path, root)
            return
        kind = form(path)
        if kind == ".parquet":
            raise ValueError(f"{path} is a table, not a text: only plain text and {', '.join(DOCUMENTS)} are read")
        check(path)
        found, counts = Counts(), Counts()
        inside = Path(os.path.abspath(path))
        encoding = self._encoding(root, inside, found)
        _note(found, inside.is_relative_to(root))
        reader = self._reader(encoding, counts)
        try:
            yield from document_text(path, reader, counts) if kind in DOCUMENTS else reader.text(path)
        finally:
            _note(counts)

    def decoded(self, data: Iterable[bytes], name: str) -> Iterator[str]:
        if self.encoding != AUTO:
            yield from self._reader(self.encoding, Counts()).translated(data, name)
            return
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as copy:  # it is read twice
            for block in data:
                copy.write(block)
            copy.seek(0)
            encoding, found = detected(iter(partial(copy.read, BLOCK), b""), name), Counts()
            copy.seek(0)
            found.detect(encoding, name, iter(partial(copy.read, BLOCK), b""))
            _note(found, below=False)
            copy.seek(0)
            yield from self._reader(encoding, Counts()).translated(iter(partial(copy.read, BLOCK), b""), name)

    @contextmanager
    def _listed(self, root: Path) -> Iterator[tuple[Path, dict[str, CorpusSource]]]:
        """data/raw; or a folder with empty files for the texts below `url`, and these by name."""
        if not self.url:
            yield root, {}
            return
        objects = read_manifest(root.parent / MANIFEST, self.url)
        with outlined(self.url, objects.values()) as folder:
            yield folder, objects

    def _reader(self, encoding: str, counts: Counts, span: Span = WHOLE) -> TextReader:
        return TextReader(encoding, self.errors, self.newlines == "lf", counts, self.null_text == "skip", span)

    def _documents(self, root: Path, path: Path, counts: Counts, span: Span = WHOLE) -> Iterator[Document]:
        """The documents of one file, or of a part of it."""
        relative = path.relative_to(root)
        name, split, kind = relative.as_posix(), split_of(relative), form(path)
        reader = self._reader(self._encoding(root, path, counts), counts, span)
        if kind in _RECORDS:
            pattern = matching(path, root, list(self.text_fields))
            text_field = self.text_fields[pattern] if pattern else self.text_field
            if pattern:
                reader.fix = f"text_fields has {{{pattern!r}: {text_field}}}: change it, or put this file before it"
            records: Iterable[tuple[int, str | Iterator[str]]] = _RECORDS[kind](path, text_field, reader)
        elif kind in PACKAGES:
            yield Document(name, _Whole(partial(document_text, path, reader, counts)), split)
            return
        elif self.separator:
            records = enumerate(separated(reader.text(path), self.separator), start=span.first_record + 1)
        else:
            yield Document(name, _Whole(partial(reader.text, path)), split)
            return
        for number, text in records:
            yield Document(f"{name}#{number}", text, split)

    def _encoding(self, root: Path, path: Path, counts: Counts) -> str:
        """The encoding of a file: by pattern, else as declared in an HTML page, else that of all files."""
        inside = path.is_relative_to(root)
        pattern, encoding = self._chosen_encoding(root, path)
        if form(path) in ARCHIVES:
            return encoding  # they say their own
        if not pattern and form(path) in _HTML and (own := declared(next(blocks(path), b""))):
            return own
        if encoding == AUTO:
            encoding = detected(blocks(path), path)
            name = path.relative_to(root).as_posix() if inside else path.name
            counts.detect(encoding, name, blocks(path))
        return encoding

    def _chosen_encoding(self, root: Path, path: Path) -> tuple[str | None, str]:
        """The first pattern of `encodings` that matches, and the encoding that the options choose."""
        inside = path.is_relative_to(root)
        pattern = matching(path, root, list(self.encodings)) if inside else None
        return pattern, self.encodings[pattern] if pattern else self.encoding

    def _paths(self, root: Path) -> list[Path]:
        found = find(root, self.include)
        if not found.texts and not found.faults:
            there = f" (left out: {found.told()})" if found.left_out else ""
            remedy = found.remedy() or restoring(root)
            raise FileNotFoundError(
                f"{root} holds no file that matches {', '.join(self.include)}{there}{remedy and f': {remedy}'}"
            )
        for option, patterns in (("encodings", self.encodings), ("text_fields", self.text_fields)):
            for pattern in patterns:
                if not any(matching(path, root, [pattern]) for path in found.texts):
                    why = f"no file matches {pattern!r}{mismatch(pattern, root, found.texts)}"
                    found.faults.append(ValueError(f"tokenize.corpus.files.{option}: {why}"))
        if found.faults:
            raise all_of(found.faults, root, found.texts)
        return found.texts

    def _faults(self, root: Path, paths: list[Path], read: int, first: Exception) -> Exception:
        """One error with the first error, in the last of the `read` files, and those in the files after it, of
        which at most `_LOOK_AT_MOST` is read."""
        faults, characters = [first], 0
        for number, path in enumerate(paths[read:], start=read):
            characters += _CONVERTED * (form(path) in ARCHIVES)
            try:
                for document in self._documents(root, path, Counts()):
                    for block in [document.text] if isinstance(document.text, str) else document.text:
                        characters += len(block)
                        if characters > _LOOK_AT_MOST:
                            left = f" (and {len(paths) - number - 1:,} files were not looked at)"
                            return all_of(faults, root, paths, left)
            except (OSError, ValueError) as error:
                faults.append(error)
        return all_of(faults, root, paths)


def _span(source: CorpusSource) -> Span:
    whole = source.bytes == source.size
    return WHOLE if whole else Span(source.start, source.end, source.first_record)


def _note(counts: Counts, below: bool = True) -> None:
    """Prints the statistics about one file, which may be `below` data/raw, beside the output of a command."""
    for line in counts.told(below):
        with tqdm.external_write_mode(file=sys.stderr):  # not into a progress line
            print(f"note: {line}", file=sys.stderr)


def _telling(items: Iterable[T], faults: Callable[[Exception], Exception]) -> Iterator[T]:
    """Yields the items. If one raises an error, it is replaced by one with the errors of all files."""
    try:
        yield from items
    except (OSError, ValueError) as error:
        raise faults(error) from error


class _Blocks:
    """The blocks of a text, with errors that list those of all files. Can be iterated repeatedly if `text` can."""

    def __init__(self, text: Iterable[str], faults: Callable[[Exception], Exception]) -> None:
        self._text, self._faults = text, faults

    def __iter__(self) -> Iterator[str]:
        return _telling(self._text, self._faults)


class _Whole:
    """The text of a file in blocks, because it may be larger than memory. Can be iterated repeatedly."""

    def __init__(self, read: Callable[[], Iterator[str]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[str]:
        return self._read()


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [Files, Conversations]
