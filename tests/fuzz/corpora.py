"""Broken corpora: bytes, encodings, endings, links, what is no file, damaged archives and records, long lines."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.fuzz.case import WEIRD, Break, Case, both, case, damaged, dump, with_set, write
from tests.made_documents import docx, epub, packed, paragraph, pdf

WEIGHT = 2
_RAW = "data/raw"


def _texts(root: Path) -> str:
    """The names of the documents that were tokenized."""
    return (root / "artifacts/tokens/tokens-00000-of-00001.names.jsonl").read_text(encoding="utf-8")


def _told(*names: str) -> Callable[[Path, str], str]:
    """Each of these was either tokenized, or is told on standard output."""

    def after(root: Path, out: str) -> str:
        missing = [name for name in names if name not in out and name not in _texts(root)]
        return f"{', '.join(missing)}: left out without a word" if missing else ""

    return after


def _named(text: str) -> Callable[[Path, str], str]:
    """Standard output names it."""
    return lambda root, out: "" if text.lower() in out.lower() else f"no word of {text}"


def _link(path: str, target: str) -> Break:
    def breaks(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)

    return breaks


def _linked_folder(root: Path) -> None:
    write("elsewhere/linked-text.txt", "the sea " * 50)(root)
    _link(f"{_RAW}/linked", "../../elsewhere")(root)


def _raw_is_a_link(root: Path) -> None:
    shutil.move(root / _RAW, root / "elsewhere")
    (root / _RAW).symlink_to("../elsewhere")


def _unreadable(path: str, mode: int = 0) -> Break:
    return both(write(f"{_RAW}/locked/hidden.txt", "the sea\n"), lambda root: (root / path).chmod(mode))


def _only(name: str, content: Callable[[], bytes]) -> Break:
    """The one text of the corpus, made when it is needed."""

    def breaks(root: Path) -> None:
        shutil.rmtree(root / _RAW)
        write(f"{_RAW}/{name}", content())(root)

    return breaks


def _wide_frame() -> bytes:
    """A whole zst frame that asks for a window of 256 MiB."""
    writer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    ).compressobj()
    return writer.compress(b"the sea of light " * 1000) + writer.flush()


def _deflated_pdf(lines: int) -> bytes:
    """A page of so many lines, of a few kilobytes."""
    whole = pdf("@")
    stream = zlib.compress(b"BT /F1 12 Tf 72 700 Td " + b"(abcde) Tj " * lines + b"ET", 9)
    head, _, rest = whole.partition(b"<</Length ")
    return (
        head
        + b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(stream), stream)
        + (rest.partition(b"endstream")[2])
    )


def parquet(root: Path, columns: dict[str, Any], path: str = f"{_RAW}/x.parquet") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), root / path)


_ALL = "tokenize.corpus.files.include=['**']"
_ENTITIES = "<!DOCTYPE w [" + '<!ENTITY a0 "aaaaaaaaaa">' + "".join(
    f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9)
) + "]>"  # fmt: skip
_ENDINGS = (".pdf", ".html", ".csv", ".json", ".docx", ".epub", ".rst", ".PDF", ".xml", ".tex", ".py")
FIXED: list[Case] = [
    *(
        case(f"a file {name}", "tokenize", write(f"{_RAW}/{name}", "a text of its own\n"), after=_told(name))
        for name in ("b.TXT", "NOTES.MD", "c.Txt", "d.md.GZ.txt", "e.Md")
    ),
    *(case(f"records {name}", "tokenize", write(f"{_RAW}/{name}", '{"text": "the sea"}\n'), after=_told(name))
      for name in ("f.JSONL", "g.Jsonl")),
    *(case(f"a packed {name}", "tokenize", write(f"{_RAW}/{name}", gzip.compress(b"the sea\n")), after=_told(name))
      for name in ("h.TXT.gz", "i.txt.GZ", "j.MD.Gz")),
    *(
        case(f"a file with the ending {ending!r}", command, write(f"{_RAW}/left{ending}", "a text\n"),
             after=_named(ending))
        for ending in _ENDINGS for command in (("tokenize", "check") if ending in (".pdf", ".csv") else ("tokenize",
            ))
    ),
    case("a folder behind a link", "tokenize", _linked_folder, after=_told("linked")),
    case("a folder behind a link", "check", _linked_folder,
         after=_named("linked")),
    case("a link to itself", "tokenize", _link(f"{_RAW}/loop", ".")),
    case("a link to its parent", "tokenize", _link(f"{_RAW}/sub/up", "..")),
    case("links in a circle", "tokenize", both(_link(f"{_RAW}/a.txt", "b.txt"), _link(f"{_RAW}/b.txt", "a.txt")),
         want="error"),
    case("a link to /dev", "tokenize", _link(f"{_RAW}/p", "/dev"), want="error"),
    case("a link to an endless file", "tokenize", _link(f"{_RAW}/z.txt", "/dev/zero"), want="error"),
    *(case("an unreadable folder", command, _unreadable(f"{_RAW}/locked"), want="error", names="locked",
           unprivileged=True) for command in ("tokenize", "check")),
    case("a folder that cannot be listed", "tokenize", _unreadable(f"{_RAW}/locked", 0o111), want="error",
         names="locked", unprivileged=True),
    case("a folder whose files cannot be opened", "tokenize", _unreadable(f"{_RAW}/locked", 0o444), want="error",
         names="locked", unprivileged=True),
    case("an unreadable file", "tokenize", _unreadable(f"{_RAW}/locked/hidden.txt"), want="error", names="hidden",
         unprivileged=True),
    case("data/raw is unreadable", "tokenize", _unreadable(_RAW), want="error", names="raw", unprivileged=True),
    case("a FIFO", "tokenize", lambda root: os.mkfifo(root / _RAW / "pipe.txt"), want="error", names="pipe"),
    case("a socket's name", "tokenize", lambda root: os.mknod(root / _RAW / "s.txt", 0o140644), want="error"),
    *(case("a wide zst frame", "tokenize", write(f"{_RAW}/{name}", _wide_frame()), after=_told("wide"))
      for name in ("wide.txt.zst",)),
    *(
        with_set(case(f"{note} in {kind}", "tokenize", breaks), *settings)
        for kind, make in [
            (".jsonl", lambda rows: write(f"{_RAW}/x.jsonl", "\n".join(json.dumps(row) for row in rows))),
            (".parquet", lambda rows: lambda root: parquet(root, {"text": [row.get("text") for row in rows]})),
        ]
        for note, breaks, settings in [
            ("null rows", make([{"text": "the sea"}, {"text": None}, {"text": "a"}]), ()),
            ("null rows only", make([{"text": None}] * 3), ()),
            ("a nested field", make([{"doc": {"text": "the sea"}, "text": "a"}]),
             ("tokenize.corpus.files.text_field=doc.text",)),
        ]
    ),
    case("a column of null", "tokenize", lambda root: parquet(root, {"text": pa.nulls(3)}), want="error"),
    case("a column of bytes", "tokenize", lambda root: parquet(root, {"text": [b"\xff", b"a"]})),
    case("a column of lists", "tokenize", lambda root: parquet(root, {"text": [["a"], None]}), want="error"),
    case("a column of structs", "tokenize", lambda root: parquet(root, {"text": [{"text": "a"}]}), want="error"),
    case("a dictionary column", "tokenize",
         lambda root: parquet(root, {"text": pa.array(["a", None]).dictionary_encode()})),
    with_set(case("score in the corpus's encoding", "score data/raw/text-00.txt",
                  write(f"{_RAW}/text-00.txt", "café ärger".encode("utf-16")), want="ok"),
             "tokenize.corpus.files.encoding=utf-16"),
    *(case(f"{note}, 3 MB", "tokenize", _only("x.txt", content), want="ok") for note, content in [
        ("spaces", lambda: b"the sea" + b" " * 3_000_000), ("line breaks", lambda: b"the sea" + b"\n" * 3_000_000),
        ("Chinese lines", lambda: "河流向海洋的光。\n".encode() * 120_000),
        ("one line of Chinese", lambda: "河流向海洋的光".encode() * 140_000),
        ("base64", lambda: b"aGVsbG8gd29ybGQ" * 200_000), ("one letter", lambda: b"a" * 3_000_000),
        ("digits", lambda: b"1234567890" * 300_000), ("Thai", lambda: "แม่น้ำไหลลงทะเล".encode() * 66_000),
        ("emoji", lambda: "🌊🌞".encode() * 375_000), ("combining marks", lambda: "é".encode() * 1_000_000),
        ("NUL", lambda: bytes(3_000_000)), ("hats", lambda: b"^" * 3_000_000),
        ("CR", lambda: b"the sea" + b"\r" * 3_000_000), ("tabs", lambda: b"the sea" + b"\t" * 3_000_000),
        ("no-break spaces", lambda: b"the sea" + "\u00a0".encode() * 1_500_000),
    ]),
    *(
        with_set(case(f"{note} in {name}", "tokenize", write(f"{_RAW}/{name}", content), want=want, names=name),
                 _ALL)
        for note, name, content, want in [
            ("texts", "x.pdf", pdf("the sea"), "ok"), ("texts", "x.docx", docx(paragraph("the sea")), "ok"),
            ("texts", "x.epub", epub("<p>the sea"), "ok"), ("texts", "x.html", "<p>the sea", "ok"),
            ("texts", "x.csv", "text,n\nthe sea,1\n", "ok"), ("texts", "x.json", '["the sea"]', "ok"),
            ("no text", "x.pdf", pdf("", ""), "error"), ("no text", "x.epub", epub("<p>"), "error"),
            ("another column", "x.csv", "body\nthe sea\n", "error"), ("a number", "x.json", "3", "error"),
            ("a line of JSON each", "x.json", '{"text": "a"}\n{"text": "b"}\n', "error"),
            ("entities", "x.docx", docx(paragraph("&a9;"), _ENTITIES), "error"),
            ("entities", "x.epub", epub(_ENTITIES + "<p>&a9;"), "error"),
            ("entities", "x.xhtml", _ENTITIES, "error"),
            ("deep elements", "x.docx", docx("<w:p>" * 9999 + "</w:p>" * 9999), "error"),
            ("deep elements", "x.html", "<div><b>" * 50_000 + "a", "ok"),
            ("deep lists", "x.json", "[" * 99_999, "error"), ("an open quote", "x.csv", 'text\n"a' * 99, "error"),
        ]
    ),
    *(
        with_set(case(f"{note} in {name}", "tokenize", _only(name, content), want="error", names=name), _ALL)
        for note, name, content in [
            ("a large chapter", "x.epub", lambda: epub("a" * 20_000_000)),
            ("a large page", "x.html", lambda: b"a" * 20_000_000),
            ("a large part", "x.docx", lambda: packed(**{"word/document.xml": " " * 300_000_000})),
            ("a hundred million letters", "x.pdf", lambda: _deflated_pdf(20_000_000)),
        ]
    ),
    *(case(f"{note}, 30 MB", "tokenize", _only(name, content)) for note, name, content in [
        ("one line of Chinese", "x.txt", lambda: "河流向海洋的光".encode() * 1_430_000),
        ("packed JSON on one line", "x.jsonl.gz",
            lambda: gzip.compress(b'{"text": "' + b"abc" * 10_000_000 + b'"}')),
    ]),
]  # fmt: skip

_ALPHABETS = (
    "the sea of light\n", "河流海洋光。\n", "aeiou", " ", "\n", "\t \n", "0123456789", "é̀", "🌊👩‍🔬", "\x00",
    "\u2028", "א", "^", "a ", "'s ", "\r\n", "\ufeff", "한국어", "ก้",
)  # fmt: skip
_NAMES = (
    "x.txt", "x.TXT", "x.md", "x.jsonl", "x.parquet", "x.txt.gz", "x.jsonl.zst", "x.zst", "x.gz", ".x.txt", "x",
    "é.txt", "a b.txt", "a\nb.txt", "x.txt.gz.gz", "train.txt", "-.txt", "\udcff.txt", "sub/x.md", "x.csv",
    "x.json", "x.tsv", "x.html", "x.xhtml", "x.htm.gz", "x.csv.zst", "x.pdf", "x.docx", "x.epub",
)  # fmt: skip


_OTHER = (".json", ".csv", ".tsv", "html", ".htm", ".pdf", ".docx", ".epub")
_WHOLE = {
    "pdf": pdf("the river runs", "to a sea"), "docx": docx(paragraph("the river") + paragraph("runs")),
    "epub": epub("<h1>the river</h1>", "<p>runs<br/>to a sea"), "csv": b'id,text\n1,"the\nriver"\n2,runs\n',
    "tsv": b"text\tid\nthe river\t1\n", "json": b'[{"text": "the river"}, "runs", {"text": null}]',
    "html": b"<meta charset=utf-8><p>the river<table><tr><td>runs<td>to</table>", "xhtml": b"<p>the <b/>river</p>",
}  # fmt: skip


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """A file of any name and content among the texts or alone, and perhaps an option that does not fit it."""
    name, content, note = draw.choice(_NAMES), *_content(draw)
    ending = name.rsplit(".", 1)[-1]
    if ending == "gz" and draw.random() < 0.8:
        content = gzip.compress(content)
    if ending == "zst" and draw.random() < 0.8:
        content = zstandard.compress(content)
    if ending in _WHOLE and draw.random() < 0.8:
        content, note = _WHOLE[ending], "a whole file"
    if draw.random() < 0.3:
        content, note = damaged(content, draw), f"{note}, damaged"
    alone = draw.random() < 0.3
    breaks = _only(name, lambda: content) if alone else write(f"{_RAW}/{name}", content)
    if ending == "parquet" and draw.random() < 0.8:
        breaks = _parquet(draw)
    command = draw.choice(("tokenize", "tokenize", "tokenize", "check", "score"))
    if command == "score":
        return Case(f"{note} in {name!r}", ("score", f"{_RAW}/{name}"), breaks)
    made = case(f"{note} in {name!r}{' alone' if alone else ''}", command, breaks)
    tokenizer = draw.choice(("bpe", "bpe", "characters", "bytes", "tiktoken"))
    made = with_set(made, f"tokenize.tokenizer.name={tokenizer}")
    if any(each in name for each in _OTHER):
        made = with_set(made, _ALL)
    if draw.random() < 0.5:
        key, options = draw.choice((
            ("encoding", ("auto", "auto", "utf-8", "utf-16", "latin-1", "gb18030", "utf-7", "utf-32", "ascii",
                "idna", "hex",
                "shift_jis",
                          "iso2022_jp", "utf-8-sig", "punycode", "unicode_escape", "rot13", "undefined", "mbcs",
                          "cp037",
                          "hz", "raw_unicode_escape", "utf_16_be")),
            ("errors", ("replace",)), ("newlines", ("lf",)), ("separator", ('"\\n"', "the", '" "', '"\\0"', "[")),
            ("include", ("[x*]", "['**']", "['*']", "['**/*']", "['[']", "['**/[']", "[sub]", "['.*']",
                "['x\\0']")),
            ("text_field", ("a", "text.a", "'.'", "doc.text")),
        ))  # fmt: skip
        made = with_set(made, f"tokenize.corpus.files.{key}={draw.choice(options)}")
        if key == "encoding" and draw.random() < 0.5:
            made = with_set(made, "tokenize.corpus.files.errors=replace")
    return made


def _content(draw: random.Random) -> tuple[bytes, str]:
    kind, size = draw.randrange(5), int(10 ** draw.uniform(0, 5.3))
    if kind == 0:
        return draw.randbytes(size), f"{size} random bytes"
    if kind == 1:
        rows = [dump({"text": draw.choice([*WEIRD, "the sea", "light"])}) for _ in range(min(size, 20))]
        return "\n".join(rows).encode(), "odd records"
    letters = "".join(draw.sample(_ALPHABETS, draw.randint(1, 3)))
    text = "".join(draw.choices(letters, k=size)) if kind < 4 else letters * (size // len(letters) + 1)
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "gb18030"))
    return text.encode(encoding, "replace"), f"{size} of {letters[:12]!r} in {encoding}"


def _parquet(draw: random.Random) -> Break:
    column = draw.choice(
        ([1, 2], [None, "a"], ["a"] * 3, [b"a", b"\xff"], [[]], [{"a": 1}], [True], [1.5], [], ["\x00"])
    )
    name = draw.choice(("text", "text", "text", "Text", "a.b", ""))
    harm = draw.randrange(2**32) if draw.random() < 0.5 else None

    def breaks(root: Path) -> None:
        parquet(root, {name: column})
        if harm is not None:
            path = root / _RAW / "x.parquet"
            path.write_bytes(damaged(path.read_bytes(), random.Random(harm)))

    return breaks
