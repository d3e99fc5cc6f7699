"""The person's own texts: the files under data/raw."""

import re
import stat
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.plugin import Corpus, Document, hookimpl

from .reading import COMPRESSED, FORMS, check, form
from .records import json_lines, parquet_rows
from .text import TextReader, check_encoding, separated

_SIDES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")


class Files(Corpus):
    """Files under data/raw, in the order of their names: plain text, JSON lines (.jsonl) and parquet."""

    name: ClassVar[str] = "files"

    include: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = tuple(f"**/*{end}" for end in FORMS)
    """Which files below data/raw, as globs (`*.txt` also finds .txt.gz and .txt.zst), names or folders."""
    text_field: Annotated[str, Field(min_length=1)] = "text"
    """The field of a .jsonl file's lines, and the column of a .parquet file, that holds the text."""
    separator: str = ""
    """Cuts a plain text into documents wherever it stands, such as `<|endoftext|>`; empty: a file is a document."""
    encoding: str = "utf-8"
    """The files' encoding, by Python's name for it: utf-8, utf-16, latin-1, cp1252, shift_jis, gb18030, …"""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not in the encoding: `strict` is an error that names the byte, `replace` puts U+FFFD there."""
    newlines: Literal["keep", "lf"] = "keep"
    """`keep` leaves line ends as they are; `lf` writes every CRLF and CR as LF."""

    @field_validator("include")
    @classmethod
    def _stays_inside(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            parts = PurePosixPath(pattern).parts
            if not parts or PurePosixPath(pattern).is_absolute() or ".." in parts:
                raise ValueError(f"{pattern!r} must lie below data/raw: DVC sees changes only there")
            if any("**" in part and part != "**" for part in parts):
                raise ValueError(f"{pattern!r}: ** stands alone between slashes, as in **/*.txt")
        return patterns

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, encoding: str) -> str:
        return check_encoding(encoding)

    @model_validator(mode="after")
    def _can_occur(self) -> "Files":
        if self.newlines == "lf" and "\r" in self.separator:
            raise ValueError(f"newlines: lf leaves no separator {self.separator!r}: write \\n for its line ends")
        return self

    def documents(self, root: Path) -> Iterator[Document]:
        reader = TextReader(self.encoding, self.errors, lf=self.newlines == "lf")
        for path in self._paths(root):
            relative = path.relative_to(root)
            name, side = relative.as_posix(), _side(relative)
            if form(path) == ".jsonl":
                records: Iterable[tuple[int, str | Iterator[str]]] = json_lines(path, self.text_field, reader)
            elif form(path) == ".parquet":
                records = parquet_rows(path, self.text_field, reader)
            elif self.separator:
                records = enumerate(separated(reader.text(path), self.separator), start=1)
            else:
                yield Document(name, _Whole(path, reader), side)
                continue
            for number, text in records:
                yield Document(f"{name}#{number}", text, side)
        if reader.replaced:
            print(
                f"files: {reader.replaced:,} places that were not {self.encoding.upper()}, or half a surrogate "
                "pair, became U+FFFD"
            )

    def _paths(self, root: Path) -> list[Path]:
        if not root.exists():
            raise FileNotFoundError(f"{root} is missing: make the folder and put your texts into it")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file: it must be a folder that holds your texts")
        found = sorted({path for pattern in self.include for path in _matches(root, PurePosixPath(pattern))})
        for path in found:
            if not path.exists():
                raise ValueError(f"{path} is a link that leads nowhere: mend or remove it")
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise ValueError(f"{path} is {kind}, where a text file is meant: rename or remove it")
            check(path)
        if not found:
            raise FileNotFoundError(f"{root} holds no file that matches {', '.join(self.include)}")
        return found


class _Whole:
    """A file's text in blocks, so that it may be larger than memory; each iteration reads it anew."""

    def __init__(self, path: Path, reader: TextReader) -> None:
        self._path, self._reader = path, reader

    def __iter__(self) -> Iterator[str]:
        return self._reader.text(self._path)


def _matches(root: Path, pattern: PurePosixPath) -> Iterator[Path]:
    """What a pattern finds; in the folders that it finds, everything with a suffix that is known here."""
    names_files = bool(pattern.suffix) and not (root / pattern).is_dir()
    for ending in ("", *COMPRESSED) if names_files and "*" in pattern.name else ("",):
        for path in root.glob(f"{pattern}{ending}"):
            if path.is_dir() and not names_files:
                found = [below for below in path.rglob("*") if form(below) in FORMS]
            else:  # ** at the end means folders; from Python 3.13 on it finds files as well
                found = [path] if pattern.name != "**" else []
            yield from (each for each in found if not _is_hidden(each.relative_to(root), pattern))


def _is_hidden(path: PurePath, pattern: PurePath) -> bool:
    """Whether a part of the path starts with a dot that the pattern does not name."""
    named = [part for part in pattern.parts if part.startswith(".")]
    hidden = [part for part in path.parts if part.startswith(".")]
    return not all(any(fnmatchcase(part, name) for name in named) for part in hidden)


def _side(path: PurePath) -> str | None:
    """The split that the outermost folder of such a name, or else the file's own name, says."""
    stem = _SHARD.sub("", path.name.partition(".")[0])
    sides = (_SIDES.get(name.lower()) for name in (*path.parts[:-1], stem))
    return next((side for side in sides if side), None)


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [Files]
