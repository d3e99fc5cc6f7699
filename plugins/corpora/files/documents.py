"""The text of .html, .epub, .docx and .pdf files, without pictures, scripts, styles and metadata."""

import errno
import json
import os
import posixpath
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from . import converter
from .encodings import declared
from .reading import ARCHIVES, blocks, form
from .text import Counts, TextReader

LARGEST_PAGE = 1 << 24
"""The maximum number of characters of an HTML page: parsing may take a hundred times its size in memory."""

_BREAK = "\n\n"
"""The separator of .pdf pages and .epub chapters."""
_VOID = "area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr"
_EMPTY = re.compile(rf"<(?!(?:{_VOID})\b)([A-Za-z][\w.:-]*)((?:\s[^<>]*)?)/>")
"""An empty XHTML element in its short form, which HTML does not have."""
_ENTITIES = re.compile(r"<!DOCTYPE[^<>\[]*\[", re.IGNORECASE)
_DOCTYPE_BEGINS = 4096


class RefusedError(Exception):
    """A file has no usable text. The message is the reason, for use after the file's name."""


def document_text(path: Path, reader: TextReader, counts: Counts) -> Iterator[str]:
    """Yields the text of a file in blocks; `reader` decodes .html files.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, encrypted or too large, or has only pictures; the message names the file.
    """
    texts = {".pdf": _pdf, ".docx": _docx, ".epub": _epub}.get(form(path), _html)(path, reader, counts)
    found = False
    try:
        for text in texts:
            if text := text.strip("\n"):
                yield reader.record(_BREAK * found + text, str(path))
                found = True
    except RefusedError as error:
        raise ValueError(f"{path} {' '.join(str(error).split())}") from None
    if not found and form(path) in ARCHIVES:
        raise ValueError(f"{path} holds no text, only pictures or nothing: move it out of data/raw")


# ── HTML ──────────────────────────────────────────────────────────────────────────────────────────


def _html(path: Path, reader: TextReader, counts: Counts) -> Iterator[str]:
    texts, length = [], 0
    for text in reader.decoded(blocks(path), path):
        texts.append(text)
        length += len(text)
        if length > LARGEST_PAGE:
            raise RefusedError(f"has over {LARGEST_PAGE:,} characters of HTML: split it")
    page = "".join(texts)
    yield html_text(page, xml=form(path) == ".xhtml" or page.lstrip().startswith("<?xml"))


def html_text(page: str, xml: bool = False) -> str:
    """The text of an HTML page: paragraphs, lists, rows of tables; line breaks of <pre> are kept.

    Args:
        page: The page.
        xml: Whether it is XHTML, where `<title/>` is an empty element; in HTML it is an unclosed one.

    Raises:
        RefusedError: the page declares entities, which are not expanded.
    """
    from resiliparse.extract.html2text import extract_plain_text

    if _ENTITIES.search(page, 0, _DOCTYPE_BEGINS):
        raise RefusedError("declares entities in its DOCTYPE: expand them (`xmllint --noent --dropdtd`)")
    if xml:
        page = _EMPTY.sub(r"<\1\2></\1>", page)
    text: str = extract_plain_text(page, preserve_formatting=True, main_content=False, alt_texts=False)
    return text


# ── EPUB ──────────────────────────────────────────────────────────────────────────────────────────


def _epub(path: Path, reader: TextReader, counts: Counts) -> Iterator[str]:
    """The text of each chapter, in reading order."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as book:
                for name in _chapters(book):
                    data = _part(book, name)
                    yield html_text(data.decode(declared(data) or "utf-8").removeprefix("\ufeff"), xml=True)
        except (RefusedError, MemoryError):
            raise
        except Exception as error:  # readers raise many exceptions on damaged parts
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a damaged offset
                raise
            reason = f"{type(error).__name__}: {error}"
            raise RefusedError(f"is truncated, damaged or no EPUB file ({reason}): replace it") from None


def _chapters(book: zipfile.ZipFile) -> Iterator[str]:
    """The names of the pages in the spine, in reading order."""
    root = _xml(book, "META-INF/container.xml").find(".//{*}rootfile")
    if root is None:
        raise RefusedError("is damaged: META-INF/container.xml names no package: replace it")
    package = root.attrib["full-path"]
    tree = _xml(book, package)
    items = {item.attrib["id"]: item for item in tree.iterfind("{*}manifest/{*}item")}
    locked = set[str]()
    if "META-INF/encryption.xml" in book.namelist():
        references = _xml(book, "META-INF/encryption.xml").iterfind(".//{*}CipherReference")
        locked = {unquote(each.attrib["URI"]) for each in references}
    for reference in tree.iterfind("{*}spine/{*}itemref"):
        item = items[reference.attrib["idref"]]
        if "html" not in item.get("media-type", ""):
            continue  # a page that is a picture
        href = unquote(item.attrib["href"].partition("#")[0])
        name = posixpath.normpath(posixpath.join(posixpath.dirname(package), href))
        if name in locked:
            raise RefusedError("is encrypted (DRM): bring a copy without it")
        yield name


def _xml(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    data = _part(book, name)
    if b"<!ENTITY" in data:
        raise RefusedError(f"declares entities in {name}, as no EPUB needs: replace it")
    return ElementTree.fromstring(data)


def _part(book: zipfile.ZipFile, name: str) -> bytes:
    """Reads a file of the archive, at most as many bytes as its header declares."""
    if book.getinfo(name).file_size > LARGEST_PAGE:
        raise RefusedError(f"has over {LARGEST_PAGE:,} bytes in {name}: split it")
    return book.read(name)


# ── what is converted in a process of its own ─────────────────────────────────────────────────────


def _docx(path: Path, reader: TextReader, counts: Counts) -> Iterator[str]:
    for each in _converted(path):
        page = each.get("html", "")
        if len(page) > LARGEST_PAGE:
            raise RefusedError(f"has over {LARGEST_PAGE:,} characters as HTML: split it")
        yield html_text(page)


def _pdf(path: Path, reader: TextReader, counts: Counts) -> Iterator[str]:
    for each in _converted(path):
        yield each.get("text", "")
        counts.blank_pages += each.get("blank", 0)


def _converted(path: Path) -> Iterator[dict[str, Any]]:
    """Runs converter.py and yields its output.

    It is a separate process, because the PDF library is written in C++, and a small file can exhaust its memory.
    """
    path.open("rb").close()  # raises now if the file cannot be read
    command = [sys.executable, "-P", converter.__file__, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, env=environment) as process:
        try:
            for line in process.stdout or ():
                told = json.loads(line)
                if "error" in told:
                    raise RefusedError(told["error"])
                yield told
                if "blank" in told:
                    return
            code = process.wait()
        finally:
            process.kill()
    if code == -signal.SIGXCPU:
        why = f"takes over {converter.SECONDS} s of processor time"
    else:
        ended = signal.Signals(-code).name if code < 0 else f"code {code}"
        why = f"needs over {converter.MEMORY / 1e9:.1f} GB of memory, or ends the process that reads it ({ended})"
    raise RefusedError(f"{why}: split it, or move it out of data/raw")
