"""Converts a .pdf or .docx file in a separate process with limits of memory and time: `converter.py PATH`.

Writes lines of JSON: {"text": …} for each page of a .pdf, or {"html": …} for a .docx; then {"blank": PAGES}, or
{"error": …}. A process that ends without either has crashed or exceeded a limit.
"""

import json
import re
import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

MEMORY = 1_500_000_000
SECONDS = 300
"""The limit of processor seconds per file."""

_LARGEST_XML = 1 << 28
_DOCTYPE_WITHIN = 1 << 12
_OLE = b"\xd0\xcf\x11\xe0"
"""The first bytes of an encrypted .docx and of an old .doc file."""
_BACK = re.compile(r' ?<a href="#[^"]*-ref-[^"]*">↑</a>')
"""mammoth's link from a note back to the text."""
_NO_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\uffff]|[ \t]+(?=\n|$)")
"""Glyphs whose font does not say which character they are, and blanks at the end of a line."""


class RefusedError(Exception):
    """A file cannot be converted. The message is the reason, for use after the file's name."""


def pdf(path: Path) -> Iterator[dict[str, Any]]:
    """The text of each page."""
    import pypdfium2

    pages = blank = 0
    try:
        document = pypdfium2.PdfDocument(path)
        pages = len(document)
        for number in range(pages):
            page = document[number]
            text = page_text(page.get_textpage().get_text_range())
            page.close()
            blank += not text
            yield {"text": text}
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise RefusedError("is encrypted: remove its password (`qpdf --decrypt`)") from None
        raise RefusedError(f"is truncated, damaged or no PDF file ({error}): replace it") from None
    if blank == pages:
        raise RefusedError(
            f"has no text on its {pages:,} pages, only pictures (a scan?): add a text layer (`ocrmypdf`), or "
            "move it out of data/raw"
        )
    yield {"blank": blank}


def page_text(text: str) -> str:
    """The text of a page. pdfium replaces a hyphen at the end of a line, with the line end, by U+FFFE."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe", "-\n")
    return _NO_CHARACTERS.sub("", lines).strip("\n")


def docx(path: Path) -> Iterator[dict[str, Any]]:
    """The document as HTML, without pictures, headers and footers."""
    import mammoth

    with path.open("rb") as file:
        if file.read(len(_OLE)) == _OLE:
            raise RefusedError("is encrypted, or a .doc of old: save it as .docx without a password")
        try:
            with zipfile.ZipFile(file) as parts:
                xml = [part for part in parts.infolist() if part.filename.endswith((".xml", ".rels"))]
                if any(b"<!DOCTYPE" in parts.open(part).read(_DOCTYPE_WITHIN) for part in xml):
                    raise RefusedError("declares entities, as no DOCX needs: replace it")
            size = sum(part.file_size for part in xml)
            if size > _LARGEST_XML:
                raise RefusedError(f"holds {size >> 20:,} MiB of XML, over {_LARGEST_XML >> 20}: split it")
            file.seek(0)
            html = mammoth.convert_to_html(
                file,
                convert_image=mammoth.images.img_element(lambda image: {"src": ""}),
                include_embedded_style_map=False,
            ).value
        except (RefusedError, MemoryError):
            raise
        except RecursionError:
            raise RefusedError("is nested too deeply: save it anew, or as .txt") from None
        except Exception as error:  # readers raise many exceptions on damaged parts
            reason = f"{type(error).__name__}: {error}"
            raise RefusedError(f"is truncated, damaged or no DOCX file ({reason}): replace it") from None
    yield {"html": _BACK.sub("", html)}
    yield {"blank": 0}


def main() -> None:
    """Converts the file of the argument."""
    for kind, limit in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
        with suppress(ValueError, OSError):  # macOS does not support memory limits
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    path = Path(sys.argv[1])
    convert = pdf if path.suffix.lower() == ".pdf" else docx
    try:
        for each in convert(path):
            print(json.dumps(each))
    except RefusedError as error:
        print(json.dumps({"error": str(error)}))
    except MemoryError:
        print(json.dumps({"error": f"needs over {MEMORY / 1e9:.1f} GB of memory: split it"}))


if __name__ == "__main__":
    main()
