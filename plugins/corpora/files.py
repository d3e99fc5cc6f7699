"""The person's own texts: the files under data/raw."""

import codecs
import io
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.plugin import Corpus, Document, hookimpl

_BLOCK = 1 << 20


class Files(Corpus):
    """Text files under data/raw, one document each, in the order of their names."""

    name: ClassVar[str] = "files"

    include: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("**/*.txt", "**/*.md")
    """Which files, as globs or folders below data/raw."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: `strict` is an error that names the byte, `replace` puts U+FFFD there."""
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

    def documents(self, root: Path) -> Iterator[Document]:
        paths = self._paths(root)
        replaced = 0
        for path in paths:
            blocks = _Blocks(path, self.errors, translate=self.newlines == "lf")
            yield Document(path.relative_to(root).as_posix(), blocks)
            replaced += blocks.replaced
        if replaced:
            print(f"files: {replaced:,} bytes or groups of bytes were not UTF-8 and became U+FFFD")

    def _paths(self, root: Path) -> list[Path]:
        if not root.exists():
            raise FileNotFoundError(f"{root} is missing: make the folder and put your texts into it")
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is a file: it must be a folder that holds your texts")
        found: set[Path] = set()
        for pattern in self.include:
            matches = set(root.glob(pattern))
            folders = {path for path in matches if path.is_dir()} if not _names_files(pattern) else set()
            for folder in folders:
                matches |= {path for path in folder.rglob("*") if path.suffix in {".txt", ".md"}}
            found |= matches - folders
        for path in sorted(found):
            if not path.exists():
                raise ValueError(f"{path} is a link that leads nowhere: mend or remove it")
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise ValueError(f"{path} is {kind}, where a text file is meant: rename or remove it")
        if not found:
            raise FileNotFoundError(f"{root} holds no file that matches {', '.join(self.include)}")
        return sorted(found)


def _names_files(pattern: str) -> bool:
    return bool(PurePosixPath(pattern).suffix)


class _Blocks:
    """A file's text in blocks, so that it may be larger than memory; each iteration reads it anew."""

    def __init__(self, path: Path, errors: str, translate: bool) -> None:
        self._path, self._errors, self._translate = path, errors, translate
        self.replaced = 0

    def __iter__(self) -> Iterator[str]:
        self.replaced = 0
        utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        newlines = io.IncrementalNewlineDecoder(None, translate=True) if self._translate else None
        offset, first = 0, True
        with self._path.open("rb") as file:
            while True:
                data = file.read(_BLOCK)
                text = self._decode(utf8, data, offset, final=not data)
                offset += len(data)
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                if newlines is not None:
                    text = newlines.decode(text, final=not data)
                if text:
                    yield text
                if not data:
                    return

    def _decode(self, decoder: codecs.IncrementalDecoder, data: bytes, offset: int, final: bool) -> str:
        pending = decoder.getstate()[0]
        try:
            return decoder.decode(data, final)
        except UnicodeDecodeError as error:
            if self._errors == "strict":
                place = offset - len(pending) + error.start
                raise ValueError(
                    f"{self._path} is not UTF-8 at byte {place:,} ({error.object[error.start]:#04x}): save it as "
                    "UTF-8, or set tokenize.corpus.files.errors: replace"
                ) from None
        return self._replace(decoder, pending + data, final)

    def _replace(self, decoder: codecs.IncrementalDecoder, data: bytes, final: bool) -> str:
        """Decodes with U+FFFD for what is not UTF-8, counting, and leaves a split character pending."""
        parts = []
        while True:
            decoder.reset()
            try:
                parts.append(decoder.decode(data, final))
                return "".join(parts)
            except UnicodeDecodeError as error:
                parts.append(data[: error.start].decode("utf-8") + "\ufffd")
                self.replaced += 1
                data = data[error.end :]


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [Files]
