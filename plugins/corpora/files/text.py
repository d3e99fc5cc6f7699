"""Decodes bytes to text in blocks, converts line ends, and splits at separators."""

import codecs
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from encodings.aliases import aliases
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

from .encodings import AUTO, snippet
from .reading import BLOCK, WHOLE, Span, blocks

_COMMON = ("utf-8", "utf-16", "latin-1", "cp1252", "shift_jis", "gb18030", "koi8-r")
_NO_FILES = {"idna", "punycode", "undefined", "unicode-escape", "unicode_escape", "raw-unicode-escape"}
_READ_THEIR_BOM = {"utf-16", "utf-32", "utf-8-sig"}
_NAMED = 3
_WILD = re.compile(r"[*?\[]")
FIX = "set tokenize.corpus.files.text_field, or text_fields for some files only"
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def check_encoding(name: str) -> str:
    """Returns `name` if it is a text encoding or `auto`.

    Raises:
        ValueError: it is neither; the message suggests similar or common ones.
    """
    if name == AUTO:
        return name
    try:
        codec = codecs.lookup(name)
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):  # ValueError: the name has a NUL
        codec = None
    if codec is None or not codec._is_text_encoding or codec.name in _NO_FILES:
        known = sorted({*aliases, *aliases.values(), *_COMMON})
        close = difflib.get_close_matches(name.lower(), known, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"there is no text encoding {name!r}{suggestion} (common ones: {', '.join(_COMMON)}; or {AUTO})"
        )
    return name


@dataclass
class Counts:
    """Statistics to print after reading.

    Attributes:
        replaced: The number of U+FFFD replacements.
        skipped: The number of records whose text is null.
        blank_pages: The number of .pdf pages without text.
        detected: The files with detected encodings, by encoding: their number and the first names.
        snippets: What the first file has beyond ASCII, as decoded, by detected encoding.
    """

    replaced: int = 0
    skipped: int = 0
    blank_pages: int = 0
    detected: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    snippets: dict[str, str] = field(default_factory=dict)

    def detect(self, encoding: str, name: str, data: Iterable[bytes]) -> None:
        """Counts a file whose encoding was detected.

        Args:
            encoding: The encoding.
            name: The name of the file, relative to data/raw if it is there.
            data: The file in blocks.
        """
        if encoding not in self.detected and encoding != "utf-8":
            self.snippets[encoding] = snippet(data, encoding)
        count, names = self.detected.get(encoding, (0, []))
        self.detected[encoding] = count + 1, [*names, name][:_NAMED]

    def add(self, other: "Counts") -> None:
        """Adds the statistics of the files after these."""
        self.replaced += other.replaced
        self.skipped += other.skipped
        self.blank_pages += other.blank_pages
        for encoding, (count, names) in other.detected.items():
            before, first = self.detected.get(encoding, (0, []))
            self.detected[encoding] = before + count, [*first, *names][:_NAMED]
        self.snippets = other.snippets | self.snippets

    def told(self, below: bool = True) -> Iterator[str]:
        """Yields one line per non-zero statistic; `below` data/raw, the option `encodings` applies."""
        if self.replaced:
            yield f"{self.replaced:,} places that were no character became U+FFFD"
        if self.skipped:
            yield f"{self.skipped:,} records without a text (null) were skipped"
        if self.blank_pages:
            yield f"{self.blank_pages:,} pages of .pdf files hold no text (blank, or pictures)"
        if self.snippets:  # not all are UTF-8
            each = sorted(self.detected.items(), key=lambda item: (-item[1][0], item[0]))
            told = (f"{count:,} {name} ({_some(names, count)})" for name, (count, names) in each)
            yield f"encodings that were detected: {', '.join(told)}"
            for encoding, shown in self.snippets.items():
                count, names = self.detected[encoding]
                yield f'{names[0]} as {encoding} reads "{shown}"; if that is wrong, ' + (
                    f"correct {encoding} in tokenize.corpus.files.encodings: {_pinned(names, encoding, count)}"
                    if below
                    else "set tokenize.corpus.files.encoding"
                )


def _pinned(names: list[str], encoding: str, count: int) -> str:
    """The encodings of the files `names`, and of more if `count` says so, as the option has them."""
    patterns = (json.dumps(_WILD.sub("[\\g<0>]", name), ensure_ascii=False) for name in names)
    return "{" + ", ".join([f"{each}: {encoding}" for each in patterns] + ["…"] * (count > len(names))) + "}"


def _some(names: list[str], count: int) -> str:
    return ", ".join([name[-60:] for name in names] + ["…"] * (count > len(names)))


class TextReader:
    """Decodes files to text.

    Args:
        encoding: The encoding of the files, by its name in Python.
        errors: `strict` or `replace`.
        lf: Whether every CRLF and CR becomes LF.
        counts: The statistics to update.
        skip_null: Whether a record whose text is null is skipped.
        span: The part of each file to read.
    """

    def __init__(
        self, encoding: str, errors: str, lf: bool, counts: Counts, skip_null: bool = False, span: Span = WHOLE
    ) -> None:
        self._encoding, self._errors, self._lf = encoding, errors, lf
        self._counts, self._skip_null = counts, skip_null
        self.span = span
        self.fix = FIX
        """What to set if the text of a record is not where it was looked for."""

    def text(self, path: Path) -> Iterator[str]:
        """Yields the text of a file in blocks."""
        return self.translated(blocks(path, self.span), path)

    def translated(self, data: Iterable[bytes], path: Path | str) -> Iterator[str]:
        """Decodes bytes to text in blocks, with line ends converted if requested."""
        if not self._lf:
            yield from self.decoded(data, path)
            return
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        for text in self.decoded(data, path):
            yield newlines.decode(text)
        yield newlines.decode("", final=True)

    def skip_null(self, what: str) -> None:
        """Counts a record without a text.

        Raises:
            ValueError: such records are errors; the message has `what`.
        """
        if not self._skip_null:
            raise ValueError(f"{what}: fix it, or set tokenize.corpus.files.null_text: skip; or {self.fix}")
        self._counts.skipped += 1

    def decoded(self, data: Iterable[bytes], path: Path | str) -> Iterator[str]:
        """Decodes bytes to text in blocks, with line ends unchanged, and without a byte order mark.

        Raises:
            ValueError: bytes cannot be decoded and errors are strict; the message has the first one.
        """
        codec = codecs.getincrementaldecoder(self._encoding)
        decoder, sound = codec(self._errors), codec("ignore")
        offset = self.span.start
        mark = not offset and codecs.lookup(self._encoding).name not in _READ_THEIR_BOM
        for block in chain(data, [b""]):
            final = not block
            try:
                text = decoder.decode(block, final)
            except UnicodeDecodeError as error:
                # The decoder's buffer has its remainder of the previous block before `block`.
                start = offset + len(block) - len(error.object) + error.start
                raise ValueError(
                    f"{path} is not {self._encoding.upper()} at byte {start:,} ({error.object[error.start]:#04x}): "
                    f"set tokenize.corpus.files.encoding to its own ({AUTO} detects each file's), or "
                    "tokenize.corpus.files.errors: replace"
                ) from None
            except UnicodeError as error:  # UTF-16 without a byte order mark
                raise ValueError(
                    f"{path} is not {self._encoding.upper()} ({error}): set tokenize.corpus.files.encoding to "
                    "its own, such as utf-8 or utf-16-le"
                ) from None
            if self._errors == "replace":
                self._count(text, sound.decode(block, final))
            offset += len(block)
            if mark and text:
                text, mark = text.removeprefix("\ufeff"), False
            if text:
                yield text

    def utf8(self, data: bytes, place: str) -> str:
        """Decodes a record from a format that is always UTF-8.

        Raises:
            ValueError: it is not UTF-8 and errors are strict; the message has `place` and the first byte.
        """
        try:
            text = data.decode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{place} is not UTF-8 at byte {error.start:,} ({data[error.start]:#04x}): fix it, or set "
                "tokenize.corpus.files.errors: replace"
            ) from None
        if self._errors == "replace":
            self._count(text, data.decode("utf-8", "ignore"))
        return self.record(text, place)

    def record(self, text: str, place: str) -> str:
        """The text of a record, with line ends converted if requested.

        Raises:
            ValueError: it has a lone surrogate (possible in JSON) and errors are strict.
        """
        if _HALF_A_PAIR.search(text):
            if self._errors == "strict":
                raise ValueError(
                    f"{place} holds half a surrogate pair, which is no character: fix it, or set "
                    "tokenize.corpus.files.errors: replace"
                )
            text, count = _HALF_A_PAIR.subn("\ufffd", text)
            self._counts.replaced += count
        return text.replace("\r\n", "\n").replace("\r", "\n") if self._lf else text

    def _count(self, text: str, sound: str) -> None:
        """Counts the U+FFFD from decoding: all but those that are also there when errors are ignored."""
        self._counts.replaced += text.count("\ufffd") - sound.count("\ufffd")


def cut(texts: Iterable[str], separator: str) -> Iterator[tuple[int, str]]:
    """Splits a text in blocks at separators, as `str.split` does; yields (number of the part, piece of the part).

    Parts are numbered from 1 and have one or more pieces; an empty part is a single piece "".
    """
    number, pending = 1, ""
    for text in texts:
        *ended, pending = (pending + text).split(separator)
        for part in ended:
            yield number, part
            number += 1
        # Yield everything except a possible beginning of a separator.
        safe = max(0, len(pending) - len(separator) + 1)
        if safe:
            yield number, pending[:safe]
            pending = pending[safe:]
    yield number, pending


class LongLineError(ValueError):
    """A line is too long."""


def lines(texts: Iterable[str], longest: int, before: int = 0) -> Iterator[str]:
    """Yields the lines of a text in blocks, without line feeds.

    Raises:
        LongLineError: a line has more than `longest` characters; the message has its number, `before` lines added.
    """
    for number, pieces in groupby(cut(texts, "\n"), key=itemgetter(0)):
        line, length = [], 0
        for _, piece in pieces:
            line.append(piece)
            length += len(piece)
            if length > longest:
                raise LongLineError(f"line {before + number} has over {longest:,} characters")
        yield "".join(line)


def separated(texts: Iterable[str], separator: str, long: int = BLOCK) -> Iterator[str | Iterator[str]]:
    """Yields the non-blank parts between separators.

    A part of more than `long` characters may be larger than memory, so it is yielded as an iterator of blocks,
    which must be consumed before the next part.
    """
    for _, numbered in groupby(cut(texts, separator), key=itemgetter(0)):
        pieces = (piece for _, piece in numbered)
        head, length, blank = [], 0, True
        for piece in pieces:
            head.append(piece)
            length += len(piece)
            blank = blank and not piece.strip()
            if length > long and not blank:
                yield chain(head, pieces)
                break
        else:
            if not blank:
                yield "".join(head)
