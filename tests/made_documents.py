"""Tiny .pdf, .docx and .epub files, made by hand."""

from __future__ import annotations

import io
import zipfile


def pdf(*pages: str, trailer: str = "") -> bytes:
    """A PDF whose pages hold these lines."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for page in pages:
        shown = " ".join(f"({line}) Tj 0 -14 Td" for line in page.splitlines())
        stream = f"BT /F1 12 Tf 72 700 Td {shown} ET"
        kids.append(f"{len(objects) + 1} 0 R")
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {len(objects) + 2} 0 R>>",
            f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
        ]
    objects[1] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(kids)}]>>"
    body, table = "%PDF-1.4\n", f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    for number, each in enumerate(objects, start=1):
        table += f"{len(body):010} 00000 n \n"
        body += f"{number} 0 obj{each}endobj\n"
    end = f"trailer<</Size {len(objects) + 1}/Root 1 0 R{trailer}>>\nstartxref\n{len(body)}\n%%EOF"
    return (body + table + end).encode()


def packed(**parts: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def docx(body: str, before: str = "") -> bytes:
    document = f'{before}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
    return packed(**{"word/document.xml": document})


def paragraph(text: str) -> str:
    return f'<w:p><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def epub(*chapters: str, **more: str) -> bytes:
    """A book whose chapters are in the reverse order of their names."""
    names = [f"c{len(chapters) - number}.xhtml" for number in range(len(chapters))]
    items = "".join(f'<item id="{name}" href="text/{name}" media-type="application/xhtml+xml"/>' for name in names)
    spine = "".join(f'<itemref idref="{name}"/>' for name in names)
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata><date>1999</date></metadata>'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    container = '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
    parts = {f"OPS/text/{name}": text for name, text in zip(names, chapters, strict=True)}
    return packed(**{"META-INF/container.xml": container, "OPS/book.opf": opf} | parts | more)
