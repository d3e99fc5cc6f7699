"""Copies objects below a URL, or ranges of them, into temporary files, which are read as local texts."""

import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pipeline.plugin import CorpusSource, Document

from .records import footer_start
from .remote import check_object, explained, file_system

T = TypeVar("T")

_BLOCK = 1 << 24
"""The number of bytes per request."""
_DIVIDED = 1 << 28
"""Larger objects are divided into ranges of at least this size: each range costs a request before it is read."""
_SAMPLE = 1 << 20
"""What is read of each range to find where it can begin."""
_PARQUET_END = 8


@contextmanager
def outlined(url: str, objects: Iterable[CorpusSource]) -> Iterator[Path]:
    """A temporary folder with files of the objects' names and sizes, without their content (sparse files)."""
    with _temporary(url) as folder:
        for each in objects:
            _outline(url, each, folder)
        yield folder


@contextmanager
def fetched(url: str, source: CorpusSource) -> Iterator[tuple[Path, CorpusSource]]:
    """A temporary folder, and the source in it: a file of the object's size, with the content of its range.

    Raises:
        ValueError: the object is missing or changed, or cannot be fetched; the message has its URL.
        OSError: the file cannot be written.
    """
    with _temporary(url) as folder:
        local = _outline(url, source, folder)
        for start in range(source.start, source.end, _BLOCK):
            _fill(url, source, local, [start], [min(start + _BLOCK, source.end)])
        if source.end < source.size:
            _fill_footer(url, source, local)
        check_object(url, source)
        yield folder, local


@contextmanager
def sampled(url: str, source: CorpusSource, size: int) -> Iterator[tuple[Path, CorpusSource, int]]:
    """As `fetched`, with the content that is needed to divide the file; yields also the size of a range.

    Args:
        url: The URL.
        source: The whole object.
        size: The size of a range of a local file.
    """
    size = max(size, _DIVIDED)
    with _temporary(url) as folder:
        local = _outline(url, source, folder)
        if source.size >= 2 * size:
            starts = range(size, source.size, size)
            _fill(url, source, local, starts, [min(start + _SAMPLE, source.size) for start in starts])
            _fill_footer(url, source, local)
            check_object(url, source)
        yield folder, local, size


def located(documents: Generator[Document, None, T], folder: Path, url: str) -> Generator[Document, None, T]:
    """The documents, whose errors have the URL instead of the temporary folder."""

    def moved(items: Generator[Any, None, T] | Iterator[Any]) -> Generator[Any, None, Any]:
        try:
            return (yield from items)
        except (OSError, ValueError) as error:
            raise _moved(error, folder, url) from error

    while True:
        try:
            document = next(documents)
        except StopIteration as end:
            result: T = end.value
            return result
        text = document.text
        yield document if isinstance(text, str) else replace(document, text=moved(iter(text)))


def _fill(url: str, source: CorpusSource, local: CorpusSource, starts: Sequence[int], ends: Sequence[int]) -> None:
    """Copies ranges of bytes of an object into its file."""
    with explained(source.path):
        files, base = file_system(url)
        path = f"{base}{source.path.removeprefix(url)}"
        try:
            found: list[bytes] = files.cat_ranges([path] * len(starts), list(starts), list(ends), on_error="raise")
        except OSError:  # perhaps because the object has become shorter
            check_object(url, source)
            raise
    with open(local.path, "r+b") as file:
        for start, end, data in zip(starts, ends, found, strict=True):
            if len(data) != end - start:
                check_object(url, source)
                raise ValueError(
                    f"{source.path}: {len(data):,} bytes came instead of {end - start:,}: run it again"
                )
            try:
                file.seek(start)
                file.write(data)
                file.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, local.path) from None


def _fill_footer(url: str, source: CorpusSource, local: CorpusSource) -> None:
    """Copies the description of the row groups, if the object is a table of Parquet."""
    if source.path.lower().endswith(".parquet") and source.size > _PARQUET_END:
        _fill(url, source, local, [source.size - _PARQUET_END], [source.size])
        _fill(url, source, local, [footer_start(Path(local.path))], [source.size])


def _outline(url: str, source: CorpusSource, folder: Path) -> CorpusSource:
    """Makes the file of an object, of its size, but without content.

    Raises:
        ValueError: an object store accepts such a name, but a disk does not.
    """
    name = source.path.removeprefix(f"{url}/")
    path = folder / name
    wrong = ValueError(f"{source.path}: no file can have this name: rename the object")
    if ".." in PurePosixPath(name).parts or str(PurePosixPath(name)) != name or path.is_dir():
        raise wrong
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise wrong from None
    with path.open("wb") as file:
        file.truncate(source.size)
    return replace(source, path=str(path), version="")


@contextmanager
def _temporary(url: str) -> Iterator[Path]:
    """A temporary folder. Messages of errors in the block have the URL instead of it."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        try:
            yield Path(name)
        except (OSError, ValueError) as error:
            raise _moved(error, Path(name), url) from error


def _moved(error: Exception, folder: Path, url: str) -> Exception:
    """The error with the URL instead of the temporary folder, unless it is about the disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ValueError(str(error).replace(str(folder), url))
