"""The files corpus: text of .pdf, .docx, .epub and .html files, tables, JSON, and encodings that are detected."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Project
from made_documents import docx, epub, packed, paragraph, pdf
from tqdm import tqdm

from pipeline.authoring.testing.corpus import check_corpus
from pipeline.core.yaml import yaml_values
from pipeline.plugin.components import Corpus
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["corpora"])
DOCUMENTS = sys.modules["plugins.corpora.files.documents"]
CONVERTER = sys.modules["plugins.corpora.files.converter"]
ENCODINGS = sys.modules["plugins.corpora.files.encodings"]
RECORDS = sys.modules["plugins.corpora.files.records"]

for package in ("pypdfium2", "mammoth", "resiliparse"):
    pytest.importorskip(package, reason="the extra `documents` is not installed")


def files(**options: Any) -> Corpus:
    options.setdefault("include", ["**"])
    corpus: Corpus = REGISTRY.build("corpora", "files", {"files": options}, "tokenize.corpus")
    return corpus


def read(root: Path, **options: Any) -> dict[str, str]:
    return {each.name: "".join(each.text) for each in files(**options).documents(root)}


def refused(root: Path, **options: Any) -> str:
    """The error that reading ends with: a line that names a file."""
    with pytest.raises(ValueError, match=r"^\S[^\n]*$") as caught:
        read(root, **options)
    assert type(caught.value) is ValueError
    assert str(root) in str(caught.value)
    return str(caught.value).replace(f"{root}/", "")


HTML = """<!DOCTYPE html><html><head><title>Title</title><style>p {color: red}</style><script>var x</script></head>
<body><h1>The river</h1><p>runs <b>to</b> the
sea &amp; <i>light</i>.<br>A line</p><ul><li>stone<li>reed</ul><pre>def f():
    return 1</pre></body></html>"""
TEXT = "The river\n\nruns to the sea & light.\nA line\n\n  • stone\n  • reed\ndef f():\n    return 1"


# ── text of documents ─────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_document_is_read_and_keeps_the_contract(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.pdf").write_bytes(pdf("the river\nruns-", "to a sea"))
    (tmp_path / "b.DOCX").write_bytes(docx(paragraph("of light") + paragraph("and stone")))
    (tmp_path / "c.epub").write_bytes(
        epub("<p>we</p>", "<html><head><title/></head><p>listen<a id='x'/></p></html>")
    )
    (tmp_path / "d.html").write_text(HTML)
    (tmp_path / "e.htm.gz").write_bytes(gzip.compress(HTML.encode()))
    check_corpus(files(), tmp_path)
    assert read(tmp_path) == {
        "b.DOCX": "of light\n\nand stone",
        "c.epub": "we\n\nlisten",
        "d.html": TEXT,
        "e.htm.gz": TEXT,
        "train/a.pdf": "the river\nruns-\n\nto a sea",
    }
    assert {each.split for each in files(include=["**/*.pdf"]).documents(tmp_path)} == {"train"}


def test_a_page_of_pdf_is_its_lines() -> None:
    assert CONVERTER.page_text("\r\nadip\ufffeiscing \r\n\x02elit\x0c ∑") == "adip-\niscing\nelit ∑"


def test_what_surrounds_the_text_of_a_word_document_is_left_out(tmp_path: Path) -> None:
    deleted = (
        "<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>"
    )
    table = f"<w:tbl><w:tr><w:tc>{paragraph('a')}</w:tc><w:tc>{paragraph('b')}</w:tc></w:tr></w:tbl>"
    (tmp_path / "a.docx").write_bytes(docx(deleted + table))
    words = read(tmp_path)["a.docx"].split()
    assert words == ["new", "a", "b"]


def test_html_says_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes("<meta charset=iso-8859-1><p>caf\u00e9 \u201cx\u201d".encode("cp1252"))
    (tmp_path / "b.html").write_bytes("<p>caf\u00e9 \u201cx\u201d".encode())
    (tmp_path / "c.xhtml").write_bytes('<?xml version="1.0" encoding="koi8-r"?><p>море<br/></p>'.encode("koi8-r"))
    (tmp_path / "d.html").write_bytes("<p>caf\u00e9 \u201cx\u201d".encode("utf-16"))
    found = read(tmp_path)
    assert found.pop("c.xhtml") == "море"
    assert set(found.values()) == {"café “x”"}
    (tmp_path / "a.html").write_bytes("<meta charset=utf-8>море".encode("cp1251"))
    assert "a.html is not UTF-8 at byte 20" in refused(tmp_path)
    assert read(tmp_path, encodings={"a.html": "cp1251"})["a.html"] == "море"


XHTML_BOMB = '<!DOCTYPE html [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><html><body><p>&b;</p></body></html>'
XML_BOMB = "<!DOCTYPE w [" + '<!ENTITY a0 "aaaaaaaaaa">' + "".join(
    f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9)
) + "]>"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdf", lambda: pdf(" ", ""), ("2 pages", "ocrmypdf")),
        ("a.pdf", lambda: b"no pdf", ("no PDF file",)),
        ("a.pdf", lambda: b"", ("no PDF file",)),
        (
            "a.pdf",
            lambda: pdf(
                "x", trailer=f"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P 0/O<{'1' * 64}>/U<{'2' * 64}>>>"
            ),
            ("is encrypted", "password"),
        ),
        ("a.pdf.gz", lambda: gzip.compress(pdf("x")), ("unpack it",)),
        ("a.docx", lambda: docx("")[:-9], ("no DOCX file",)),
        ("a.docx", lambda: packed(other="x"), ("no DOCX file",)),
        ("a.docx", lambda: b"\xd0\xcf\x11\xe0" + bytes(99), ("encrypted", ".doc")),
        ("a.docx", lambda: docx(""), ("holds no text",)),
        ("a.docx", lambda: docx(paragraph("&a9;"), XML_BOMB), ("declares entities",)),
        ("a.docx", lambda: docx("<w:p>" * 3000 + "</w:p>" * 3000), ("nested too deeply",)),
        ("a.epub", lambda: b"PK\x03\x04", ("no EPUB file",)),
        ("a.epub", lambda: packed(other="x"), ("no EPUB file", "container.xml")),
        ("a.epub", lambda: epub("<p/>"), ("holds no text",)),
        ("a.epub", lambda: epub(XHTML_BOMB), ("declares entities",)),
        ("a.epub", lambda: epub("<p>x", **{"META-INF/encryption.xml": XML_BOMB + "<w/>"}), ("declares entities",)),
        (
            "a.epub",
            lambda: epub(
                "<p>x", **{"META-INF/encryption.xml": '<e><CipherReference URI="OPS/text/c1.xhtml"/></e>'}
            ),
            ("is encrypted (DRM)",),
        ),
        ("a.xhtml", lambda: XHTML_BOMB.encode(), ("declares entities", "xmllint")),
    ],
    ids=lambda value: "file" if callable(value) else str(value),  # the name of a lambda is its address
)
def test_a_document_that_gives_no_text_is_one_line(
    name: str, content: Callable[[], bytes], says: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content())
    message = refused(tmp_path)
    for part in (name, *says):
        assert part in message


def test_a_document_that_unpacks_to_too_much_is_refused_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DOCUMENTS, "LARGEST_PAGE", 1000)
    large = "<p>" + "x" * 1000
    for name, content in (
        ("a.html", large.encode()),
        ("a.epub", epub(large)),
        ("a.docx", docx(paragraph("x" * 1000))),
    ):
        (tmp_path / name).write_bytes(content)
        assert f"{name} has over 1,000" in refused(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.long
def test_a_pdf_that_unpacks_to_more_than_the_memory_limit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "converter.py"
    script.write_text(
        Path(CONVERTER.__file__).read_text().replace("MEMORY = 1_500_000_000", "MEMORY = 250_000_000")
    )
    monkeypatch.setattr(CONVERTER, "__file__", str(script))
    root = tmp_path / "raw"
    root.mkdir()
    (root / "a.pdf").write_bytes(pdf("the sea of light\n" * 100_000))
    assert "a.pdf needs over" in refused(root)


# ── JSON and tables ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["one", "two\né"], ["one", "two\né"]),
        ([{"text": "one", "id": 1}, {"text": ""}], ["one", ""]),
        ({"text": "one"}, ["one"]),
        ([], []),
    ],
    ids=str,
)
def test_json_is_a_list_of_texts_or_objects_or_one_object(value: Any, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read(tmp_path) == {f"a.json#{number}": text for number, text in enumerate(found, start=1)}


def test_json_takes_the_options_of_json_lines(tmp_path: Path) -> None:
    items = [{"doc": {"text": "one"}}, None, {"doc": {"text": None}}, {"doc": {"text": "four"}}]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(items).encode("utf-16")))
    options = {"text_field": "doc.text", "encoding": "utf-16"}
    assert "item 2 holds null" in refused(tmp_path, **options)
    found = read(tmp_path, null_text="skip", **options)
    assert found == {"a.json.gz#1": "one", "a.json.gz#4": "four"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"text": "b"}', ("not JSON", ".jsonl")),
        ("[" * 200_000, ("nested too deeply",)),
        ("3", ("holds a number", "list of texts")),
        ('["a", 3]', ("item 2 holds a number", '{"text": …}')),
        ('[{"body": "a", "id": 1}]', ("no field 'text'", "there are: body, id", "text_field")),
        ('{"data": ["a"]}', ("no field 'text'", "there are: data")),
        ("", ("not JSON",)),
    ],
)
def test_json_that_holds_no_texts_is_named(content: str, says: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    message = refused(tmp_path)
    for part in ("a.json", *says):
        assert part in message


def test_json_that_is_too_long_to_hold_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["x" * 99]))
    monkeypatch.setattr(RECORDS, "_LONGEST_LINE", 50)
    assert ".jsonl" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,text\r\n1,"the ""sea"", and\r\nlight"\r\n\r\n2,stone\r\n'),
        ("a.csv", '\ufefftext;id\n"the ""sea"", and\r\nlight";1\nstone;2'),
        ("a.csv", 'id\ttext\n1\t"the ""sea"", and\r\nlight"\n2\tstone\n'),
        ("a.csv", 'id,text\r1,"the ""sea"", and\r\nlight"\r2,stone'),
        ("a.TSV", 'id\ttext\n1\t"the ""sea"", and\r\nlight"\n2\tstone\n'),
    ],
)
def test_a_row_is_a_document(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path) == {f"{name}#1": 'the "sea", and\r\nlight', f"{name}#2": "stone"}
    assert read(tmp_path, newlines="lf")[f"{name}#1"] == 'the "sea", and\nlight'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,body\n1,a\n", ("no column 'text'", "id, body", "text_field")),
        ("text,text\na,b\n", ("2 columns 'text'",)),
        ("text\nthe sea\nthe sea, of light\n", ("row 2 (line 3)", "2 fields", "','")),
        ('text\n"the sea', ("row 1 (line 2)", "unexpected end")),
        ('text\n"the" sea\n', ("row 1 (line 2)", "twice")),
    ],
)
def test_a_table_without_the_column_or_with_other_rows_is_named(
    content: str, says: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    message = refused(tmp_path)
    for part in ("a.csv", *says):
        assert part in message


# ── encodings that are detected ───────────────────────────────────────────────────────────────────

SENTENCES = {
    "cp1252": "He said “hello” – it’s a naïve café. ",
    "koi8-r": "Река бежит к морю света, и камень слушает. ",
    "cp1253": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι. ",
    "shift_jis": "川は光の海へと流れる。すべての人間は、生まれながらにして自由である。",
    "utf-16-le": "Река бежит к морю света. ",
    "utf-16": "The river runs. ",
    "utf-8-sig": "Река. ",
    "utf-8": "川は光の海へ",
}


@pytest.mark.parametrize("encoding", SENTENCES)
def test_encodings_are_detected_and_told(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ENCODINGS, "_SAMPLE", 1001)  # which ends within a character
    text = SENTENCES[encoding] * 100
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.txt").write_text("plain")
    assert read(tmp_path, encoding="auto") == {"a.txt": text, "b.txt": "plain"}
    assert read(tmp_path, encodings={"a.txt": "auto"})["a.txt"] == text
    told = capsys.readouterr().out
    assert ("detected" in told and "a.txt" in told) == (encoding not in ("utf-8", "utf-8-sig"))
    decoded = files(encoding="auto").decoded(iter([text.encode(encoding)]), "stdin")
    assert "".join(decoded) == text


TABLE = {
    "cp1252": (
        "Le café était fermé, mais la fenêtre à côté restait ouverte. ",
        "Chère Madame, j’ai bien reçu votre lettre du 3 août. Veuillez agréer l’expression de mes vœux. Hélène. ",
        "Die Bäume blühen früh in diesem Jahr, und die Straßen sind voller süßer Äpfel. ",
        "El niño comió una manzana en la montaña. ¿Dónde está el corazón del león? ",
        "Pigen går over engen på vej til søen. Fuglene flyver væk over træerne. ",
        "La città è più bella di notte, perché c’è silenzio. Così andò al caffè. ",
    ),
    "cp1250": (
        "Książka leży na stole. Wieczorem chłopiec czytał ją przy świecy, a jego siostra słuchała. ",
        "Zażółć gęślą jaźń. Dziewczyna poszła nad rzekę, gdzie świeciło słońce. ",
        "Příliš žluťoučký kůň úpěl ďábelské ódy. Dívka šla k řece. ",
    ),
    "cp1251": ("Река бежит к морю света, и камень слушает. ",),
    "koi8-r": ("Река бежит к морю света, и камень слушает. ",),
    "cp1253": ("Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι. ",),
    "cp1254": ("Güneş doğdu ve çocuklar bahçeye çıktı. İstanbul'da kış soğuk geçer. ",),
}


@pytest.mark.parametrize("encoding", TABLE)
def test_texts_of_these_languages_are_detected_from_a_few_hundred_characters(encoding: str) -> None:
    for sentences in TABLE[encoding]:
        text = (sentences * 9)[:360]
        found = ENCODINGS.detected([text.encode(encoding)], "a.txt")
        assert text.encode(encoding).decode(found) == text, found
        if encoding == "cp1252":
            assert found == encoding


LATIN = {
    "cp1250 iso8859-2": (
        "A folyó a fény tengerébe fut, és a kövek hallgatják. Őrült gyűrűk őrzik a tűz fölött a füstöt. ",
        "Râul curge spre o mare de lumină, iar pietrele îl ascultă în tăcere şi aşteaptă ploaia. ",
        "Rijeka teče prema moru svjetlosti, a kamenje šuti i sluša. Žene i dječaci čekaju kišu. ",
        "Rieka tečie do mora svetla a kamene ju počúvajú. Deti čakajú na dážď, ktorý ešte neprišiel. ",
        "Řeka běží do moře světla a kameny jí naslouchají. Děti čekají na déšť, který ještě nepřišel. ",
        "Rzeka płynie do morza światła, a kamienie jej słuchają. Dzieci czekają na deszcz, który nie spadł. ",
    ),
    "cp1257 iso8859-13": (
        "Upė bėga į šviesos jūrą, o akmenys jos klausosi. Vaikai laukia lietaus, kurio dar nėra. ",
        "Upe tek uz gaismas jūru, un akmeņi tajā klausās. Bērni gaida lietu, kura vēl nav, un skatās debesīs. ",
    ),
    "cp1257 iso8859-13 cp1252": (
        "Jõgi jookseb valguse merre ja kivid kuulavad seda. Lapsed ootavad vihma, mida veel ei ole tulnud. ",
    ),
    "cp1252": (
        "O rio corre para um mar de luz, e as pedras não falam. As crianças esperam a chuva; não há nuvens. ",
        "Áin rennur út í haf ljóssins og steinarnir hlusta. Börnin bíða eftir regninu, sem ekki er komið ennþá. ",
        "El niño vio la montaña; la niña, el mar. Die Bäume blühen, und die Straßen sind leer. Le café est fermé. ",
    ),
}


@pytest.mark.parametrize("encoding", sorted({each for encodings in LATIN for each in encodings.split()}))
def test_latin_letters_decide_among_encodings_of_equally_many_letters(encoding: str) -> None:
    for encodings, sentences in LATIN.items():
        for sentence in sentences if encoding in encodings.split() else ():
            found = ENCODINGS.detected([(sentence * 6).encode(encoding)], "a.txt")
            assert (sentence * 6).encode(encoding).decode(found) == sentence * 6, found


def test_a_few_accents_are_western_and_a_text_of_no_known_language_is_left_to_charset_normalizer() -> None:
    english = "The river runs to a sea of light, and we listen. " * 20
    assert ENCODINGS.detected([(english + "voilà, à côté").encode("cp1252")], "a.txt") == "cp1252"
    text = "La rivière court à la mer de lumière ; été, où êtes-vous ? " * 9
    assert text.encode("mac_roman").decode(ENCODINGS.detected([text.encode("mac_roman")], "a.txt")) == text


def test_a_detected_encoding_is_shown_by_a_piece_of_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "old letters"
    folder.mkdir()
    (folder / "a.txt").write_bytes((SENTENCES["koi8-r"] * 9).encode("koi8-r"))
    for name in ("b.txt", "c[1].txt"):
        (folder / name).write_bytes((SENTENCES["cp1252"] * 9).encode("cp1252"))
    texts = read(tmp_path, encoding="auto")
    told = capsys.readouterr().out
    for part in ("old letters/a.txt", "koi8_r", "Река бежит"):
        assert part in told
    encodings = dict[str, str]()
    for line in re.findall(r"tokenize\.corpus\.files\.encodings: (\{.*\})$", told, flags=re.MULTILINE):
        encodings |= yaml_values(line)
    assert set(encodings.values()) == {"koi8_r", "cp1252"}
    assert read(tmp_path, encodings=encodings) == texts


def test_of_many_files_with_a_detected_encoding_the_first_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_bytes((SENTENCES["cp1252"] * 9).encode("cp1252"))
    read(tmp_path, encoding="auto")
    assert '{"0.txt": cp1252, "1.txt": cp1252, "2.txt": cp1252, …}' in capsys.readouterr().out


# ── a file that is scored ─────────────────────────────────────────────────────────────────────────


def test_any_file_is_read_as_the_corpus_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, text = tmp_path / "raw", SENTENCES["cp1252"] * 20
    (root / "old").mkdir(parents=True)
    for path in (root / "old/a.txt", tmp_path / "a.txt"):
        path.write_bytes(text.encode("cp1252"))
    (tmp_path / "page.html").write_text(HTML)
    (tmp_path / "a.pdf").write_bytes(pdf("The river"))
    (tmp_path / "a.jsonl").write_text('{"text": "sea"}\n')
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    corpus = files(encodings={"old/*": "cp1252"})

    def found(path: Path, corpus: Corpus = corpus) -> str:
        return "".join(corpus.file_text(path, root))

    assert found(root / "old/a.txt") == text
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        found(tmp_path / "a.txt")
    assert found(tmp_path / "a.txt", files(encoding="auto")) == text
    said = capsys.readouterr()
    assert not said.out
    assert "1 cp1252 (a.txt)" in said.err
    assert "files.encodings" not in said.err  # its patterns are of files below data/raw
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(file=screen, desc="scoring"):
        found(tmp_path / "a.txt", files(encoding="auto"))
    assert "\rnote: encodings that were detected" in screen.getvalue()  # the line is cleared before
    assert found(tmp_path / "page.html") == TEXT
    assert found(tmp_path / "a.pdf") == "The river"
    assert found(tmp_path / "a.jsonl") == '{"text": "sea"}\n'
    with pytest.raises(ValueError, match=r"a\.parquet"):
        found(tmp_path / "a.parquet")


# ── texts of several kinds ────────────────────────────────────────────────────────────────────────


def test_each_pattern_may_have_its_own_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "sea"}\n')
    (tmp_path / "b.csv").write_text("title,body\nriver,light\n")
    assert "text_fields" in refused(tmp_path)
    assert read(tmp_path, text_fields={"*.csv": "body"}) == {"a.jsonl#1": "sea", "b.csv#1": "light"}
    with pytest.raises(ValueError, match=r"text_fields: no file matches 'c\.csv'"):
        read(tmp_path, text_fields={"c.csv": "body"})


def test_many_faults_are_grouped_by_cause(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.json").write_text("[1.5]" if number % 2 else "[" + " " * number)
    (tmp_path / "z.html.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"z\.html\.gz is damaged"):
        read(tmp_path)
    (tmp_path / "z.html.gz").unlink()
    message = refused(tmp_path)
    for part in ("12 things", "00.json", "01.json", "in 5 more: 02.json, 04.json", "in 5 more: 03.json, 05.json"):
        assert part in message
    assert message.count("is not JSON") == 1


def test_what_has_no_known_format_is_told_and_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    for name in ("a.txt", "b.zip", "c.png", "~$d.docx"):
        (tmp_path / name).write_text("x")
    (note,) = files().notes(tmp_path)
    for part in ("1 .zip", "1 .png", "(unknown format)", "1 hidden"):
        assert part in note
    assert "not in include" not in note
    message = refused(tmp_path, include=["*.txt", "*.zip"])
    for part in ("b.zip", "unpack it"):
        assert part in message


def test_what_is_no_utf_8_late_in_a_file_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENCODINGS, "_SAMPLE", 2000)
    text = "The river runs to the sea.\n" * 50_000 + SENTENCES["cp1252"] * 20
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    assert read(tmp_path, encoding="auto") == {"a.txt": text}


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(zlib.compress(bytes(range(256)) * 3))
    for part in ("a.txt", "files.encoding", "auto"):
        assert part in refused(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\x8f\xff\x81\x00\xfe" * 99)
    for part in ("a.txt", "files.encodings"):
        assert part in refused(tmp_path, encoding="auto")
    (tmp_path / "a.txt").write_bytes(SENTENCES["cp1252"].encode("cp1252") * 2000 + b"\x81")
    assert "a.txt is not CP1252 at byte" in refused(tmp_path, encoding="auto")


# ── what is told ──────────────────────────────────────────────────────────────────────────────────


def test_what_could_be_read_is_told_with_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.pdf", "c.PDF", "d.csv.gz", "e.tex"):
        (tmp_path / name).touch()
    corpus = files(include=["*.txt"])
    told = list(corpus.notes(tmp_path))
    assert '"**/*.csv", "**/*.pdf"' in told[1]
    assert "pip" not in told[1]
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    assert "pip install -c constraints.txt -e '.[documents]'" in list(corpus.notes(tmp_path))[1]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r'"\*\*/\*\.pdf".*\[documents\]'):
        read(tmp_path, include=["*.txt"])
    assert "b.pdf needs the package pypdfium2" in refused(tmp_path)


def test_pages_without_text_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("", "the sea", ""))
    assert read(tmp_path) == {"a.pdf": "the sea"}
    assert "2 pages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "packages"),
    [
        ({"include": ["**/*.txt", "**/*.json"]}, set()),
        ({"include": ["**/*.PDF"]}, {"pypdfium2"}),
        ({"include": ["books/*.html.gz"]}, {"resiliparse"}),
        ({"include": ["books"]}, {"pypdfium2", "mammoth", "resiliparse"}),
        ({"include": ["*.txt"], "encodings": {"old": "auto"}}, {"charset-normalizer"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_the_packages_that_decide_the_text_are_those_of_the_options(options: Any, packages: set[str]) -> None:
    assert set(files(**options).packages()) == packages


def test_lock_records_the_packages_of_the_chosen_corpus(project: Project) -> None:
    params, environment = project.root / "params.yaml", project.root / "environment.yaml"
    project.succeed("lock")
    assert "corpora: {}" in environment.read_text()
    text = params.read_text().replace("name: python_docs", "name: files").replace("**/*.txt", "**/*.pdf")
    params.write_text(text)
    assert "pypdfium2" in project.succeed("lock").out
    assert "pypdfium2" in environment.read_text()


def test_a_folder_of_everything_is_tokenized(project: Project) -> None:
    raw = project.root / "data/raw"
    (raw / "a.pdf").write_bytes(pdf("the river runs"))
    (raw / "b.csv").write_text("text\nto a sea\n")
    told = project.succeed("tokenize").out
    assert '"**/*.csv", "**/*.pdf"' in told
    project.succeed("tokenize", "--set", 'tokenize.corpus.files.include=["**"]')
    names = (project.root / "artifacts/tokens/tokens-00000-of-00001.names.jsonl").read_text()
    assert "a.pdf" in names
    assert "b.csv#1" in names
