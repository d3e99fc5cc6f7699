"""The list of the texts below a URL, such as s3://bucket/prefix: data/remote.jsonl. fsspec reads the URL."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.plugin import CorpusSource

MANIFEST = "remote.jsonl"
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
    with explained(url):
        files, base = file_system(url)
        found: dict[str, dict[str, Any]] = files.find(base, detail=True)
    if not found:
        raise ValueError(f"{url} holds nothing: correct tokenize.corpus.files.url")
    for path, info in sorted(found.items()):
        name = path.removeprefix(base).removeprefix("/")
        if not name or name.endswith("/"):  # object stores mark folders by empty objects
            continue
        if info.get("size") is None or not _version(info):
            raise ValueError(
                f"{url}: its server gives no sizes, or neither etags nor times: copy the texts elsewhere"
            )
        yield _source(url, name, info["size"], _version(info))


def check_object(url: str, source: CorpusSource) -> None:
    """Checks that an object is still the listed one. Call it after fetching, to notice a change meanwhile.

    Raises:
        ValueError: it is not, or cannot be read; the message has its URL.
    """
    with explained(source.path):
        files, base = file_system(url)
        try:
            info = files.info(f"{base}{source.path.removeprefix(url)}")
        except FileNotFoundError:
            raise ValueError(f"{source.path} is missing, but data/{MANIFEST} lists it: {_LOCK}") from None
    if (info["size"], _version(info)) != (source.size, source.version):
        raise ValueError(f"{source.path} has changed since data/{MANIFEST} was written: {_LOCK}")


def compare_listing(url: str, listed: Mapping[str, CorpusSource]) -> int:
    """Compares what is below `url` with the listed objects; returns the number of objects that are not listed.

    Raises:
        ValueError: a listed object is missing or has changed.
    """
    present = {each.name: each for each in list_objects(url)}
    for name, source in listed.items():
        if name not in present:
            raise ValueError(f"{source.path} is missing, but data/{MANIFEST} lists it: {_LOCK}")
        if present[name] != source:
            raise ValueError(f"{source.path} has changed since data/{MANIFEST} was written: {_LOCK}")
    return len(present.keys() - listed.keys())


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
    objects = {}
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as lines:
            head = json.loads(next(lines, "{}"))
            if head.get("url") != url:
                raise ValueError(f"{where} lists {head.get('url')}, not {url}: {_LOCK}")
            for each in map(json.loads, lines):
                objects[each["name"]] = _source(url, each["name"], each["size"], each["version"])
            if len(objects) != head["objects"]:
                raise KeyError("objects")
    except FileNotFoundError:
        raise ValueError(f"{where} is missing, which lists the texts below {url}: {_LOCK}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{where} is damaged: {_LOCK}") from None
    return objects


@cache
def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, which asks the server each time, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        install = "pip install -c constraints.txt -e '.[remote]'"
        raise ValueError(f"{url} needs the package fsspec ({error}): {install}") from None
    files, base = url_to_fs(url, use_listings_cache=False)
    return files, base.rstrip("/")


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns the errors of fsspec's file systems, which are of many types, into ValueErrors with the URL."""
    try:
        yield
    except ValueError as error:
        if url in str(error):
            raise
        raise ValueError(f"{url}: {_line(error)}: correct tokenize.corpus.files.url") from error
    except ImportError as error:
        raise ValueError(f"{url} needs another package: {_line(error)} (pip install it)") from None
    except PermissionError as error:
        raise ValueError(f"{url}: access denied ({_line(error)}): give fsspec credentials") from None
    except FileNotFoundError as error:
        raise ValueError(f"{url} does not exist ({_line(error)}): correct tokenize.corpus.files.url") from None
    except Exception as error:
        what = f"{type(error).__name__}: {_line(error)}"
        raise ValueError(f"{url} cannot be read ({what}): check network and credentials") from None


def _source(url: str, name: str, size: int, version: str) -> CorpusSource:
    return CorpusSource(name, f"{url}/{name}", size, 0, size, version=version)


def _version(info: dict[str, Any]) -> str:
    return next((f"{key.lower()} {info[key]}".replace('"', "") for key in _VERSIONS if info.get(key)), "")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
