"""The files corpus: which files it reads, and every form, encoding and cut of their text."""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import json
import os
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
import zstandard
from conftest import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.authoring.testing import check_corpus
from pipeline.core.errors import ParamsError
from pipeline.plugin.components import Corpus, Document
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["corpora"])
CUTTING = sys.modules["plugins.corpora.files.text"]
RECORDS = sys.modules["plugins.corpora.files.records"].__dict__
FILES = type(REGISTRY.build("corpora", "files", {}, ""))
READING = sys.modules["plugins.corpora.files.reading"]
HALF = "\\ud800"


def files(**options: Any) -> Corpus:
    corpus: Corpus = REGISTRY.build("corpora", "files", {"files": options}, "tokenize.corpus")
    return corpus


def text_of(document: Document) -> str:
    return document.text if isinstance(document.text, str) else "".join(document.text)


def read(root: Path, **options: Any) -> dict[str, str]:
    return {document.name: text_of(document) for document in files(**options).documents(root)}


def refused(root: Path, **options: Any) -> str:
    """The error that reading ends with: a line that names a file."""
    with pytest.raises(ValueError, match=r"^\S[^\n]*$") as caught:
        read(root, **options)
    assert str(root) in str(caught.value)
    return str(caught.value).replace(f"{root}/", "")


def write(root: Path, name: str, content: str | bytes) -> Path:
    """Writes a file, compressed as its name says."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
    path.write_bytes(pack.get(path.suffix, bytes)(data))
    return path


def rows(root: Path, name: str, column: Any, **options: Any) -> None:
    parquet.write_table(arrow.table({"id": list(range(len(column))), "text": column}), root / name, **options)


def damage(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])


def records(*texts: str) -> str:
    return "".join(json.dumps({"id": 7, "text": text}) + "\n" for text in texts)


@pytest.fixture
def every_form(tmp_path: Path) -> Path:
    for ending in ("", ".gz", ".zst"):
        write(tmp_path, f"train/a.txt{ending}", f"the river{ending}\r\nruns")
        write(tmp_path, f"val/b.md{ending}", f"# to a sea{ending}")
        write(tmp_path, f"c/d/test.jsonl{ending}", records("of light", "and\r\nstone"))
    rows(tmp_path, "we.parquet", ["we", "listen"])
    return tmp_path


# ── which files ───────────────────────────────────────────────────────────────────────────────────


def test_every_form_is_read_in_the_order_of_names_and_keeps_the_contract(every_form: Path) -> None:
    for options in ({}, {"separator": "r", "newlines": "lf"}, {"errors": "replace"}):
        check_corpus(files(**options), every_form)
    assert list(read(every_form)) == [
        *[f"c/d/test.jsonl{ending}#{line}" for ending in ("", ".gz", ".zst") for line in (1, 2)],
        *[f"train/a.txt{ending}" for ending in ("", ".gz", ".zst")],
        *[f"val/b.md{ending}" for ending in ("", ".gz", ".zst")],
        "we.parquet#1",
        "we.parquet#2",
    ]


@pytest.mark.parametrize(
    ("include", "found"),
    [
        (["**/*.txt"], ["a.txt", "books/b.txt", "books/z.txt.gz"]),
        (["a.txt"], ["a.txt"]),
        (["books/z.txt"], None),  # a name is exact
        (["books"], ["books/b.txt", "books/v1.0/c.md", "books/z.txt.gz"]),
        (["books/v1.0"], ["books/v1.0/c.md"]),
        (["*"], ["a.txt", "books/b.txt", "books/v1.0/c.md", "books/z.txt.gz", "run.log"]),
        (["**"], ["a.txt", "books/b.txt", "books/v1.0/c.md", "books/z.txt.gz"]),
        (["*.log"], ["run.log"]),
        (
            ["**/*"],
            ["a.txt", "books/b.txt", "books/no-suffix", "books/v1.0/c.md", "books/z.txt.gz", "run.log"],
        ),
        ([".notes"], [".notes/n.txt"]),
        ([".notes/**/*"], [".notes/n.txt"]),
        ([".*/*.txt"], [".notes/n.txt"]),
        ([".hidden.txt"], [".hidden.txt"]),
        (["**/.hidden*"], [".hidden.txt", ".hidden.md"]),
    ],
    ids=str,
)
def test_patterns_find_files_and_what_is_hidden_only_where_they_name_it(
    include: list[str], found: list[str] | None, tmp_path: Path
) -> None:
    for name in (
        *("a.txt", "run.log", "books/b.txt", "books/v1.0/c.md", "books/z.txt.gz", "books/no-suffix"),
        *(".hidden.txt", ".hidden.md", ".notes/n.txt", ".notes/.DS_Store", "books/.DS_Store"),
    ):
        write(tmp_path, name, name)
    if found is None:
        with pytest.raises(FileNotFoundError, match=r"matches books/z\.txt"):
            read(tmp_path, include=include)
    else:
        assert read(tmp_path, include=include) == {name: name for name in sorted(found)}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("train.txt", "train"),
        ("Train/a.txt", "train"),
        ("a/VALIDATION/b.txt", "val"),
        ("valid.md", "val"),
        ("val.txt.gz", "val"),
        ("test.jsonl.zst", "test"),
        ("data/train-00000-of-00001.parquet", "train"),
        ("validation-00001-of-00012-a09b74b3ef9c3b56.parquet", "val"),
        ("train/test.txt", "train"),
        ("test/train/a.txt", "test"),
        ("dev.txt", None),
        ("training/a.txt", None),
        ("train-1.txt", None),
        ("my-train.txt", None),
        ("a.train.txt", None),
    ],
)
def test_folders_and_names_say_the_side(name: str, side: str | None, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows(tmp_path, name, ["text"])
    else:
        write(tmp_path, name, records("text"))
    assert [document.split for document in files().documents(tmp_path)] == [side]


def write_all(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root, name, name)


def left_out(root: Path, **options: Any) -> str:
    return " ".join(files(**options).notes(root))


def test_endings_are_the_same_in_upper_case(tmp_path: Path) -> None:
    write_all(tmp_path, "a.TXT", "b/NOTES.Md", "c.txt.GZ")
    (tmp_path / "c.txt.GZ").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "d.JSONL.Zst").write_bytes(zstandard.compress(records("row").encode()))
    rows(tmp_path, "e.PARQUET", ["cell"])
    expected = ["a.TXT", "b/NOTES.Md", "c.txt.GZ", "d.JSONL.Zst#1", "e.PARQUET#1"]
    assert list(read(tmp_path)) == expected
    assert list(read(tmp_path, include=["*.TXT", "b"])) == ["a.TXT", "b/NOTES.Md", "c.txt.GZ"]
    assert not left_out(tmp_path)
    (tmp_path / "c.txt.GZ").write_bytes(b"not packed")
    assert "c.txt.GZ is truncated, damaged or no gzip file" in refused(tmp_path)


def test_what_is_left_out_is_told_by_ending_and_why(tmp_path: Path) -> None:
    write_all(tmp_path, "a.txt", "b.pdf", "c.PDF", "d/e.html", "README", "x.csv.gz", ".hidden.txt", ".git/config")
    (tmp_path / "empty.md").touch()
    os.mkfifo(tmp_path / "pipe")
    told = left_out(tmp_path)
    for part in ("2 .pdf", "1 .html", "1 .csv.gz", "1 without an ending", "1 no regular file", "(not in include)"):
        assert part in told
    for part in ("1 hidden,", "1 hidden folder", "1 empty"):
        assert part in f"{told},"
    (tmp_path / "a.txt").unlink()
    (tmp_path / "empty.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"left out: 2 \.pdf"):
        read(tmp_path)


def test_a_text_beside_the_folder_is_told(tmp_path: Path) -> None:
    root = tmp_path / "data" / "raw"
    write_all(root, "a.txt")
    write_all(root.parent, "raw.dvc", "tokenizer.json", "remote.jsonl", "README.md", ".b.txt")
    assert [*files().notes(root)] == []
    write_all(root.parent, "b.txt", "c.pdf")
    (note,) = files().notes(root)
    assert "data/b.txt, data/c.pdf" in note


def test_many_endings_are_one_short_line(tmp_path: Path) -> None:
    write_all(tmp_path, "a.txt", *(f"b.x{number}" for number in range(50)))
    assert "45 others" in left_out(tmp_path)
    assert len(left_out(tmp_path)) < 100


def test_folders_behind_links_are_read_once_and_loops_end(tmp_path: Path) -> None:
    root, disk = tmp_path / "raw", tmp_path / "disk"
    write_all(disk, "a.txt", "deep/b.txt")
    write_all(root, "own/c.txt")
    (root / "linked").symlink_to(disk)
    assert list(read(root)) == ["linked/a.txt", "linked/deep/b.txt", "own/c.txt"]
    assert not left_out(root)
    (root / "again").symlink_to(root / "own")
    (disk / "up").symlink_to(root)
    (root / "own" / "top").symlink_to("/")
    (root / "other.txt").symlink_to(root / "own" / "c.txt")
    assert list(read(root)) == ["linked/a.txt", "linked/deep/b.txt", "own/c.txt"]
    assert "4 link to what is read already" in left_out(root)


def test_all_faults_are_listed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, "a.txt", "b/b.txt", "closed/c.txt")
    (tmp_path / "d").symlink_to("gone")
    (tmp_path / "e.txt").mkdir()
    os.mkfifo(tmp_path / "f.txt")
    scan, open_file = os.scandir, Path.open

    def refuses(path: Any, *arguments: Any) -> Any:
        if str(path).endswith(("closed", "b.txt")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *arguments) if arguments else scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuses)
        patch.setattr(Path, "open", refuses)
        message = refused(tmp_path)
    for part in (
        "5 things",
        "closed: Permission",
        "b/b.txt: Permission",
        "d is a link",
        "e.txt is a",
        "f.txt is no",
    ):
        assert part in message


def test_a_line_of_json_that_is_too_long_to_hold_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.dumps({"text": "x" * 50})
    write(tmp_path, "a.jsonl.gz", f"{record}\n{record}\n")
    assert len(read(tmp_path)) == 2
    monkeypatch.setitem(RECORDS, "_LONGEST_LINE", 40)
    for part in ("a.jsonl.gz line 1", "40 characters", "a line of its own"):
        assert part in refused(tmp_path)


def test_texts_that_cannot_be_decoded_are_listed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        write(tmp_path, f"{number}.txt", b"fine" if number == 4 else b"ab\xff")
    write(tmp_path, "z.jsonl", "no\n")
    message = refused(tmp_path)
    for part in ("9 things", "0.txt is not UTF-8 at byte 2", "5.txt", "in 7 more", "z.jsonl line 1"):
        assert part in message
    assert "4.txt is" not in message
    monkeypatch.setitem(FILES.documents.__globals__, "_LOOK_AT_MOST", 3)
    assert "5 files were not looked at" in refused(tmp_path)
    assert len(read(tmp_path, errors="replace", include=["*.txt"])) == 9


def test_a_missing_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert "loop.txt is a link that leads nowhere" in refused(tmp_path)
    (tmp_path / "raw").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match="raw is a link that leads nowhere"):
        read(tmp_path / "raw")


def test_without_files_that_is_the_error_whatever_else_is_set(tmp_path: Path) -> None:
    root = tmp_path / "data" / "raw"
    options: dict[str, Any] = {"encodings": {"old/*": "latin-1"}, "text_fields": {"*.csv": "body"}}
    with pytest.raises(FileNotFoundError, match="is missing: make the folder"):
        read(root, **options)
    root.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no file that matches [^:]*$"):
        read(root, **options)
    (root.parent / "raw.dvc").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no file .* `git checkout data/raw\.dvc && dvc checkout"):
        read(root, **options)


def test_files_have_encodings_of_their_own(tmp_path: Path) -> None:
    for name, encoding in (("old/a.txt", "latin-1"), ("old/b.TXT", "utf-16"), ("c.txt", "utf-8")):
        write(tmp_path, name, "é".encode(encoding))
    encodings = {"old/b*.txt": "utf-16", "old": "latin-1"}
    assert set(read(tmp_path, encodings=encodings).values()) == {"é"}
    with pytest.raises(ValueError, match=r"encodings: no file matches 'new/\*'"):
        read(tmp_path, encodings={"new/*": "latin-1"})
    with pytest.raises(ValueError, match=r"no file matches 'a\.txt', but '\*\*/a\.txt' does: old/a\.txt"):
        read(tmp_path, encodings={"a.txt": "latin-1"})
    write(tmp_path, "old/d.csv", "text\nsea\n")
    with pytest.raises(ValueError, match=r"no file matches '\*\.csv' that include matches: old/d\.csv is left out"):
        read(tmp_path, text_fields={"*.csv": "body"})
    for wrong in ({"old": "utf9"}, {"../old": "utf-8"}):
        with pytest.raises(ParamsError, match="encodings"):
            files(encodings=wrong)


# ── plain text ────────────────────────────────────────────────────────────────────────────────────


def blocks(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


@given(
    text=st.text(alphabet="ab|\n", max_size=60), separator=st.text(alphabet="ab|\n", min_size=1, max_size=4),
    size=st.integers(1, 70),
)  # fmt: skip
@example(text="aab|b||b", separator="||", size=1)
def test_cutting_blocks_is_cutting_the_whole_text(text: str, separator: str, size: int) -> None:
    whole = text.split(separator)
    found: dict[int, str] = {}
    for number, piece in CUTTING.cut(blocks(text, size), separator):
        found[number] = found.get(number, "") + piece
    assert found == dict(enumerate(whole, start=1))
    assert list(CUTTING.lines(blocks(text, size), 10**6)) == text.split("\n")
    for long in (0, 3, 1000):
        parts = ["".join(part) for part in CUTTING.separated(blocks(text, size), separator, long)]
        assert parts == [part for part in whole if part.strip()]


def first_unknown_byte(data: bytes, encoding: str) -> int | None:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return None


ENCODINGS = ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp1252", "shift_jis", "gb18030", "koi8-r", "hz"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_every_encoding_in_blocks_gives_the_text_or_names_the_first_byte_that_is_none(
    encoding: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(READING, "BLOCK", block)

    @settings(deadline=None, max_examples=25)
    @given(text=st.text(max_size=12), noise=st.binary(max_size=12))
    @example(text="\ufeffthe \ufffd sea", noise=b"\xff\xff")
    @example(text="é € 語 🙂 \r\n", noise=b"\xe2\x82")
    def check(text: str, noise: bytes) -> None:
        known = text.encode(encoding, "ignore")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write(root, "a.txt", known)
            expected = known.decode(encoding)
            if encoding not in ("utf-16", "utf-32"):  # those read their own mark
                expected = expected.removeprefix("\ufeff")
            assert read(root, encoding=encoding) == {"a.txt": expected}
            write(root, "a.txt", known + noise)
            start = first_unknown_byte(known + noise, encoding)
            assert start is None or f"byte {start:,} " in refused(root, encoding=encoding)

    check()


@given(data=st.binary(max_size=20), size=st.integers(1, 8))
@example(data=b"\xe2\x82 \xef\xbf\xbd \xff", size=2)
@example(data=b"\xef\xbb\xbfa\xef\xbb", size=1)
def test_replacing_in_blocks_is_replacing_in_the_whole_text(data: bytes, size: int) -> None:
    counts = CUTTING.Counts()
    reader = CUTTING.TextReader("utf-8", "replace", lf=False, counts=counts)
    whole = data.decode("utf-8", "replace")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(READING, "BLOCK", size)
        path = write(Path(folder), "a.txt", data)
        assert "".join(reader.text(path)) == whole.removeprefix("\ufeff")
    assert counts.replaced == whole.count("\ufffd") - data.count("\ufffd".encode())


def test_utf_16_needs_to_say_its_byte_order(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "the sea".encode("utf-16-be"))
    assert "utf-16-le" in refused(tmp_path, encoding="utf-16")
    assert read(tmp_path, encoding="utf-16-be") == {"a.txt": "the sea"}
    write(tmp_path, "a.txt", codecs.BOM_UTF16_BE + "the sea".encode("utf-16-be"))
    assert read(tmp_path, encoding="utf-16") == read(tmp_path, encoding="utf-16-be") == {"a.txt": "the sea"}


@pytest.mark.parametrize("encoding", ["UTF8", "latin_1", "Shift-JIS", "euc_kr", "mac-roman"])
def test_an_encoding_goes_by_any_of_its_names(encoding: str) -> None:
    assert files(encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf9", "did you mean 'utf"),
        ("windows-1253x", "did you mean 'windows_125"),
        ("base64", "utf-8, utf-16, latin-1"),
        ("idna", "utf-8, utf-16, latin-1"),
        ("unicode_escape", "utf-8, utf-16, latin-1"),
        ("", "utf-8, utf-16, latin-1"),
        ("a\0b", "utf-8, utf-16, latin-1"),
        ("../x" * 999, "utf-8, utf-16, latin-1"),
    ],
)
def test_what_is_no_encoding_of_texts_is_an_error_with_those_that_are(encoding: str, says: str) -> None:
    with pytest.raises(ParamsError, match=r"files\.encoding: there is no text encoding") as caught:
        files(encoding=encoding)
    assert says in str(caught.value)


def test_a_separator_makes_documents_and_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "one<|x|>\n <|x|>two\r\n<|x|>")
    write(tmp_path, "b.jsonl", records("three<|x|>four"))
    write(tmp_path, "c.md", " \n")
    expected = {"a.txt#1": "one", "a.txt#2": "two\r\n", "b.jsonl#1": "three<|x|>four"}
    assert read(tmp_path, separator="<|x|>") == expected


def test_a_separator_of_line_ends_is_found_after_they_are_translated(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "one\r\n\r\ntwo\r\rthree\n\r\nfour")
    found = read(tmp_path, separator="\n\n", newlines="lf")
    assert list(found.values()) == ["one", "two", "three", "four"]
    with pytest.raises(ParamsError, match=r"newlines: lf leaves no separator '\\r\\n'"):
        files(separator="\r\n", newlines="lf")


@pytest.mark.parametrize("separator", ["<|x|>", "never there"])
def test_a_file_larger_than_memory_streams(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"the river runs to a sea of light" * 32768)
        file.write(b"<|x|>short")
    tracemalloc.start()
    lengths = [sum(map(len, document.text)) for document in files(separator=separator).documents(tmp_path)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lengths == ([64 << 20, 5] if separator == "<|x|>" else [(64 << 20) + 10])
    assert peak < 16 << 20


def test_line_ends_of_every_kind_of_text(every_form: Path) -> None:
    rows(every_form, "we.parquet", ["we\r\nlisten\r"])
    kept, translated = read(every_form), read(every_form, newlines="lf")
    assert {name: text.replace("\r\n", "\n").replace("\r", "\n") for name, text in kept.items()} == translated
    assert "\r" in kept["train/a.txt.gz"] + kept["c/d/test.jsonl.zst#2"] + kept["we.parquet#1"]


# ── compressed files ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_members_one_after_the_other_are_one_text(ending: str, tmp_path: Path) -> None:
    first = write(tmp_path, f"a.txt{ending}", "the river ")
    second = write(tmp_path, f"b.txt{ending}", "runs")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert read(tmp_path)[first.name] == "the river runs"


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_damaged_compressed_file_is_named(name: str, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path, name + ending, records(*(str(number) for number in range(5000))))
    content = path.read_bytes()
    for broken in (content[:-1], content[: len(content) // 2], content[:2], b"plain text", content + b"more", b""):
        path.write_bytes(broken)
        assert path.name in refused(tmp_path), broken[:20]
    path.write_bytes(content)
    damage(path)
    assert path.name in refused(tmp_path)


@pytest.mark.parametrize(("window", "whole"), [(28, True), (31, True), (32, False)])
def test_a_zstd_frame_may_have_a_large_window(window: int, whole: bool, tmp_path: Path) -> None:
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(window - 10) << 3])
    text = b"the river"
    frame = header + (len(text) << 3 | 1).to_bytes(3, "little") + text
    (tmp_path / "a.txt.zst").write_bytes(frame)
    if whole:
        assert read(tmp_path) == {"a.txt.zst": "the river"}
    else:
        assert "a.txt.zst needs a window over 2 GiB" in refused(tmp_path)


# ── JSON lines ────────────────────────────────────────────────────────────────────────────────────


def test_a_line_is_a_document_named_by_its_number(tmp_path: Path) -> None:
    lines = '{"text": "one"}\r\n\n  \n{"id": [1], "text": "two\\n\\u00e9\u2028\\ud83d\\ude42"}\n{"text": ""}'
    write(tmp_path, "a.jsonl", "\ufeff" + lines)
    assert read(tmp_path) == {"a.jsonl#1": "one", "a.jsonl#4": "two\né\u2028🙂", "a.jsonl#5": ""}


def test_a_field_and_an_encoding_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", '{"text": 3, "body": "語言"}\n'.encode("utf-16"))
    assert read(tmp_path, text_field="body", encoding="utf-16") == {"a.jsonl#1": "語言"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "the', ("not JSON", "Unterminated")),
        ("the river", ("not JSON",)),
        ('{"text": "a"} {"text": "b"}', ("not JSON", "Extra data")),
        ("[" * 200_000, ("nested too deeply",)),
        ('{"n": ' + "9" * 5000 + "}", ("not JSON", "digits")),
        ('["the"]', ("holds a list", '{"text": …}')),
        ('"the"', ("holds a text",)),
        ("null", ("holds null",)),
        ("3", ("holds a number",)),
        ("{}", ("no field 'text'", "there are: none")),
        ('{"body": "the", "id": 1}', ("no field 'text'", "there are: body, id", "text_field")),
        ('{"text": null, "id": 1}', ("'text' holds null", "there are: text, id")),
        ('{"text": ["the"]}', ("'text' holds a list",)),
        ('{"text": "a ' + HALF + ' b"}', ("half a surrogate pair", "errors: replace")),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_line_that_is_no_document_is_named(line: str, says: tuple[str, ...], tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    message = refused(tmp_path)
    for part in ("a.jsonl line 3", *says):
        assert part in message


@pytest.mark.parametrize(("name", "content"), [("b.csv", "id,text\n1,sea\n"), ("b.jsonl", '{"text": "sea"}\n')])
def test_a_field_that_a_pattern_asks_for_is_named_with_it(name: str, content: str, tmp_path: Path) -> None:
    write(tmp_path, name, content)
    message = refused(tmp_path, include=["**"], text_fields={"b.*": "body"})
    assert "'body'" in message
    assert "text_fields has {'b.*': body}" in message


def test_many_and_long_fields_keep_the_message_short(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", json.dumps({f"{number}{'x' * 1000}": 0 for number in range(1000)}))
    assert len(refused(tmp_path)) < 1000


def test_a_field_in_a_field(tmp_path: Path) -> None:
    lines = '{"doc": {"text": "one"}}\n{"doc.text": "two", "doc": {"text": "no"}}\n'
    write(tmp_path, "a.jsonl", lines)
    rows(tmp_path, "b.parquet", [{"text": "three", "n": 1}, {"text": "four", "n": 2}])
    found = read(tmp_path, text_field="doc.text", include=["*.jsonl"])
    assert found == {"a.jsonl#1": "one", "a.jsonl#2": "two"}
    found = read(tmp_path, text_field="text.text", include=["*.parquet"])
    assert found == {"b.parquet#1": "three", "b.parquet#2": "four"}
    assert "no field 'body'" in refused(tmp_path, text_field="doc.body", include=["*.jsonl"])
    assert "no column 'text.body'" in refused(tmp_path, text_field="text.body", include=["*.parquet"])


def test_a_null_is_skipped_and_counted_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a.jsonl", '{"text": "one"}\nnull\n{"text": null}\n{"text": "four"}\n')
    rows(tmp_path, "b.parquet", [None, "two"])
    rows(tmp_path, "c.parquet", arrow.nulls(2))
    assert "null_text: skip" in refused(tmp_path)
    assert list(read(tmp_path, null_text="skip")) == ["a.jsonl#1", "a.jsonl#4", "b.parquet#2"]
    assert "5 records" in capsys.readouterr().out
    (tmp_path / "a.jsonl").write_text('{"doc": null}\n{"doc": {"text": null}}\n{"doc": {"text": "x"}}\n')
    rows(tmp_path, "d.parquet", [None, {"text": None}, {"text": "x"}])
    only = {"null_text": "skip", "include": ["a.jsonl"]}
    assert list(read(tmp_path, text_field="doc.text", **only)) == ["a.jsonl#3"]
    only["include"] = ["d.parquet"]
    assert list(read(tmp_path, text_field="text.text", **only)) == ["d.parquet#3"]


def test_half_a_pair_is_replaced_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a.jsonl", '{"text": "' + HALF + " \\ude42" + HALF + '"}\n')
    write(tmp_path, "b.txt", b"\xff")
    assert read(tmp_path, errors="replace") == {"a.jsonl#1": "\ufffd \ufffd\ufffd", "b.txt": "\ufffd"}
    assert capsys.readouterr().out.startswith("note: files: 4 places")


# ── parquet ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind",
    [arrow.string(), arrow.large_string(), arrow.string_view(), arrow.dictionary(arrow.int32(), arrow.string())],
    ids=str,
)
def test_every_kind_of_text_column_is_read_row_by_row(kind: Any, tmp_path: Path) -> None:
    texts = [f"text {number % 7} é" for number in range(1000)]
    column = arrow.array(texts).dictionary_encode() if arrow.types.is_dictionary(kind) else arrow.array(texts, kind)
    rows(tmp_path, "a.parquet", column, row_group_size=150)
    assert read(tmp_path) == {f"a.parquet#{number}": text for number, text in enumerate(texts, start=1)}


@pytest.mark.parametrize(
    ("column", "options", "says"),
    [
        (["a"], {"text_field": "body"}, ("no column 'body'", "there are: id, text", "text_field")),
        (["a"], {"text_field": "id"}, ("'id' holds int64, not text", "there are: id, text")),
        ([["a"]], {}, ("holds list<", "not text")),
        ([b"a"], {}, ("holds binary", "not text")),
        (["a", None], {}, ("row 2", "null")),
    ],
)
def test_a_column_that_holds_no_text_is_named(
    column: list[Any], options: dict[str, str], says: tuple[str, ...], tmp_path: Path
) -> None:
    rows(tmp_path, "a.parquet", column)
    message = refused(tmp_path, **options)
    for part in ("a.parquet", *says):
        assert part in message


def test_a_row_that_is_not_utf_8(tmp_path: Path) -> None:
    column = arrow.array([b"fine", b"caf\xe9"]).cast(arrow.string(), safe=False)
    rows(tmp_path, "a.parquet", column)
    assert "a.parquet row 2 is not UTF-8 at byte 3 (0xe9)" in refused(tmp_path, encoding="latin-1")
    assert read(tmp_path, errors="replace") == {"a.parquet#1": "fine", "a.parquet#2": "caf\ufffd"}


@pytest.mark.parametrize("change", ["truncate", "empty", "text", "middle", "only the magic"])
def test_a_damaged_parquet_file_is_named(change: str, tmp_path: Path) -> None:
    rows(tmp_path, "a.parquet", [f"text {number}" for number in range(5000)], write_page_checksum=True)
    path = tmp_path / "a.parquet"
    if change == "middle":
        damage(path)
    else:
        content = path.read_bytes()
        path.write_bytes({"truncate": content[:-9], "empty": b"", "text": b"no parquet"}.get(change, b"PAR1"))
    assert refused(tmp_path).startswith("a.parquet is truncated, damaged or no parquet file")


def test_a_compressed_parquet_file_is_to_be_unpacked(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet.gz", b"PAR1")
    assert "unpack it" in refused(tmp_path)


# ── packages that are not there ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("z.parquet", "pyarrow", "parquet"), ("z.txt.zst", "zstandard", "zstd")]
)
def test_a_missing_package_is_said_before_anything_is_read(
    name: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pyarrow", "pyarrow.parquet", "zstandard", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    write(tmp_path, "a.txt", b"\xff")
    (tmp_path / name).write_bytes(b"anything")
    message = refused(tmp_path)
    assert message.startswith(f"{name} needs the package {package}")
    assert message.endswith(f"pip install -c constraints.txt -e '.[{extra}]'")


class Zstd:
    """What Python 3.14 brings as compression.zstd, as far as it is used here."""

    __name__ = "compression.zstd"

    class ZstdError(Exception):
        """A damaged file."""

    class DecompressionParameter:
        """Names of its options."""

        window_log_max = "window_log_max"

    def open(self, path: Path, options: Any) -> Any:
        assert options == {"window_log_max": 31}
        data = path.read_bytes()
        if data[:4] != b"\x28\xb5\x2f\xfd":
            raise self.ZstdError("no frame")
        return io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(data))


def test_pythons_own_zstd_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", Zstd())  # type: ignore[arg-type]
    path = write(tmp_path, "a.txt.zst", "the river")
    assert read(tmp_path) == {"a.txt.zst": "the river"}
    path.write_bytes(b"plain text")
    assert "a.txt.zst is truncated, damaged or no zstd file (no frame)" in refused(tmp_path)
