"""Texts below a URL, such as s3://bucket/prefix: listed in data/remote.jsonl, fetched one by one by fsspec."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.plugin import CorpusSource

MANIFEST = "remote.jsonl"
_BLOCK = 1 << 24
_LOCK = "run `pipeline lock`, then `dvc repro`"
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
"""The properties by which file systems tell that an object has changed, the most reliable ones first."""


def check_url(url: str) -> str:
    """Returns `url` without a slash at its end.

    Raises:
        ValueError: it is not a URL, or holds a password.
    """
    scheme, separator, rest = url.partition("://")
    if not (scheme and separator and rest):
        raise ValueError(f"{url!r} is not a URL, such as s3://bucket/prefix or file:///folder")
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise ValueError("a URL in params.yaml must not hold a password: put it into fsspec's configuration")
    return url.rstrip("/")


def list_objects(url: str) -> Iterator[CorpusSource]:
    """All objects below `url`, sorted by name.

    Raises:
        ValueError: they cannot be listed; the message has `url`.
    """
    with _explained(url):
        files, base = _file_system(url)
        found: dict[str, dict[str, Any]] = files.find(base, detail=True)
    if not found:
        raise ValueError(f"{url} holds nothing: correct tokenize.corpus.files.url")
    for path, info in sorted(found.items()):
        name = path.removeprefix(base.rstrip("/")).removeprefix("/")
        if not name or name.endswith("/"):  # object stores mark folders by empty objects
            continue
        if info.get("size") is None or not _version(info):
            raise ValueError(
                f"{url}: its server tells no sizes, or neither etags nor times: copy the texts elsewhere"
            )
        yield CorpusSource(name, f"{url}/{name}", info["size"], 0, info["size"], version=_version(info))


def write_manifest(path: Path, url: str, objects: list[CorpusSource]) -> bool:
    """Writes the names, sizes and versions of the objects, one a line; returns whether they changed."""
    lines = [json.dumps({"url": url, "objects": len(objects), "bytes": sum(each.size for each in objects)})]
    lines += [
        json.dumps({"name": each.name, "size": each.size, "version": each.version}, ensure_ascii=False)
        for each in objects
    ]
    text = "\n".join([*lines, ""]).encode(errors="surrogatepass")
    if path.is_file() and path.read_bytes() == text:
        return False
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(text)
    partial.replace(path)
    return True


def read_manifest(path: Path, url: str) -> dict[str, CorpusSource]:
    """The objects of the manifest, by name.

    Raises:
        ValueError: the manifest is missing or damaged, or has another URL.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as lines:
            head = json.loads(next(lines, "{}"))
            if head.get("url") != url:
                raise ValueError(f"{where} lists {head.get('url')}, not {url}: {_LOCK}")
            objects = {}
            for line in lines:
                each = json.loads(line)
                name, size, version = each["name"], each["size"], each["version"]
                objects[name] = CorpusSource(name, f"{url}/{name}", size, 0, size, version=version)
            if len(objects) != head["objects"]:
                raise KeyError("objects")
    except FileNotFoundError:
        raise ValueError(f"{where} is missing, which lists the texts below {url}: {_LOCK}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{where} is damaged: {_LOCK}") from None
    return objects


@contextmanager
def outlined(url: str, objects: dict[str, CorpusSource]) -> Iterator[Path]:
    """A temporary folder with files of the objects' names and sizes, without their content (sparse files)."""
    with _temporary(url) as folder:
        for each in objects.values():
            with _create(folder, each).open("wb") as file:
                file.truncate(each.size)
        yield folder


@contextmanager
def fetched(url: str, source: CorpusSource) -> Iterator[tuple[Path, Path]]:
    """A temporary folder, and in it the file of the source, in which only its range of bytes is filled.

    Raises:
        ValueError: the object is missing or changed, or cannot be fetched; the message has its URL.
        OSError: the file cannot be written.
    """
    with _temporary(url) as folder:
        path = _create(folder, source)
        with path.open("wb") as file:
            file.truncate(source.size)
            for start in range(source.start, source.end, _BLOCK):
                data = _range(url, source, start, min(start + _BLOCK, source.end))
                try:
                    file.seek(start)
                    file.write(data)
                    file.flush()
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(folder)) from None
        _check(url, source)
        yield folder, path


def _range(url: str, source: CorpusSource, start: int, end: int) -> bytes:
    with _explained(source.path):
        files, base = _file_system(url)
        try:
            data: bytes = files.cat_file(f"{base}/{source.name}", start=start, end=end)
        except OSError:  # which the range of an object that became shorter may cause
            _check(url, source)
            raise
        if len(data) != end - start:
            _check(url, source)
            raise ValueError(f"{source.path}: {len(data):,} bytes instead of {end - start:,} came: run it again")
        return data


def _check(url: str, source: CorpusSource) -> None:
    """Checks that an object is the one of the manifest. Called after fetching it, to notice a change meanwhile."""
    with _explained(source.path):
        files, base = _file_system(url)
        try:
            info = files.info(f"{base}/{source.name}")
        except FileNotFoundError:
            raise ValueError(f"{source.path} is missing, but {MANIFEST} lists it: {_LOCK}") from None
    if (info["size"], _version(info)) != (source.size, source.version):
        raise ValueError(f"{source.path} has changed since {MANIFEST} was written: {_LOCK}")


def _create(folder: Path, source: CorpusSource) -> Path:
    """The path of an object's file, in a new folder.

    Raises:
        ValueError: an object store accepts such a name, but a disk does not.
    """
    path = folder / source.name
    if ".." in PurePosixPath(source.name).parts or str(PurePosixPath(source.name)) != source.name or path.is_dir():
        raise ValueError(f"{source.path}: no file can have this name: rename the object")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise ValueError(f"{source.path}: no file can have this name: rename the object") from None
    return path


@contextmanager
def _temporary(url: str) -> Iterator[Path]:
    """A temporary folder. Messages of ValueErrors in the block have the URL instead of it."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        try:
            yield Path(name)
        except (OSError, ValueError) as error:
            raise located(Path(name), url, error) from error


def located(folder: Path, url: str, error: Exception) -> Exception:
    """The error with the URL instead of the temporary folder, unless it is about that folder's disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ValueError(str(error).replace(str(folder), url))


@cache
def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, which asks the server each time, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ValueError(
            f"{url} needs the package fsspec ({error}): pip install -c constraints.txt -e '.[remote]'"
        ) from None
    files, base = url_to_fs(url, use_listings_cache=False)
    return files, base


def _version(info: dict[str, Any]) -> str:
    return next((f"{key.lower()} {info[key]}".replace('"', "") for key in _VERSIONS if info.get(key)), "")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns the errors of fsspec's file systems, which are of many types, into ValueErrors with the URL."""
    try:
        yield
    except ValueError as error:
        if url in str(error):
            raise
        raise ValueError(
            f"{url}: {_line(error)}: set tokenize.corpus.files.url to a URL that fsspec knows"
        ) from error
    except ImportError as error:
        raise ValueError(f"{url} needs another package: {_line(error)} (pip install it)") from None
    except PermissionError as error:
        raise ValueError(
            f"{url}: access denied ({_line(error)}): give its credentials to fsspec (docs/data.md)"
        ) from None
    except FileNotFoundError as error:
        raise ValueError(f"{url} does not exist ({_line(error)}): correct tokenize.corpus.files.url") from None
    except Exception as error:
        what = f"{type(error).__name__}: {_line(error)}"
        raise ValueError(
            f"{url} cannot be read ({what}): check network and credentials, and run it again"
        ) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
