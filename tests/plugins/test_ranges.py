"""The ranges of large files: together they give the documents of the file."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from conftest import REPOSITORY
from pyarrow import parquet

from pipeline.authoring.testing import check_corpus
from pipeline.plugin.components import Corpus, CorpusSource
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["corpora"])
RANGES = sys.modules["plugins.corpora.files.ranges"]
END = "<|end|>"
ALPHABET = ["a", "é", "語", "。", ".", " ", "\n", "\r\n", "\r", "7", "🙂", "\ufeff", "_", "<|", "the river", END]


def files(**options: Any) -> Corpus:
    corpus: Corpus = REGISTRY.build("corpora", "files", {"files": options}, "tokenize.corpus")
    return corpus


def ranges(corpus: Corpus, root: Path, size: int) -> list[CorpusSource]:
    """The ranges of the only file."""
    (source,) = corpus.sources(root) or ()
    found, number = [], 0
    for part in corpus.divide(root, source, size):
        found.append(replace(part, first_record=number))
        number += corpus.count_records(root, part)
    return found


def refused(corpus: Corpus, root: Path) -> str:
    """The error of the range that cannot be read; there is one."""
    errors = []
    for part in ranges(corpus, root, 100):
        try:
            list(corpus.read(root, part))
        except ValueError as error:
            errors.append(str(error))
    (error,) = errors
    return error


def made_up(generator: random.Random, length: int, encoding: str) -> bytes:
    characters = [each for each in ALPHABET if each.encode(encoding, "ignore").decode(encoding) == each]
    return "".join(generator.choices(characters, k=length)).encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "koi8-r"])
@pytest.mark.parametrize("newlines", ["keep", "lf"])
@pytest.mark.parametrize("separator", ["", END, "\n"])
def test_ranges_of_any_text_give_its_documents(
    tmp_path: Path, encoding: str, newlines: str, separator: str
) -> None:
    generator = random.Random(f"{encoding}{newlines}{separator}")
    corpus = files(encoding=encoding, newlines=newlines, separator=separator, errors="replace")
    divided = 0
    for length in (5, 30, 300, 300, 300):
        data = bytearray(made_up(generator, length, encoding))
        if length > 30 and encoding == "utf-8":  # invalid bytes
            for _ in range(length // 50):
                data[generator.randrange(len(data))] = generator.choice([0xFF, 0x80, 0xC3, 0xE8])
        (tmp_path / "text.txt").write_bytes(bytes(data) + b"end")
        check_corpus(corpus, tmp_path)
        divided += len(ranges(corpus, tmp_path, len(data) // 5)) > 1
    assert divided >= 3


def test_ranges_of_json_lines_and_of_row_groups_give_their_documents(tmp_path: Path) -> None:
    generator = random.Random(4)
    texts = [made_up(generator, generator.randrange(20), "utf-8").decode() for _ in range(50)] + ["end"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:20]) + "\n\n \n" + "\n".join(lines[20:]), newline="")
    corpus = files()
    check_corpus(corpus, tmp_path)
    assert len(ranges(corpus, tmp_path, 100)) > 5
    (tmp_path / "a.jsonl").unlink()
    table = arrow.table({"id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    check_corpus(corpus, tmp_path)
    assert [each.first_record for each in ranges(corpus, tmp_path, 100)] == [0, 7, 14, 21, 28, 35, 42, 49]


def test_errors_in_a_range_have_the_places_of_the_file(tmp_path: Path) -> None:
    path, corpus = tmp_path / "a.jsonl", files()
    path.write_text('{"text": "one"}\n' * 40 + '{"text": 2}\n' + '{"text": "three"}\n' * 5)
    assert "line 41: the field 'text' holds a number" in refused(corpus, tmp_path)
    path.write_bytes(b'{"text": "one"}\n' * 40 + b'{"text": "\xff"}\n')
    assert "not UTF-8 at byte 650 (0xff)" in refused(corpus, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.txt", "the river\n\n\n" * 90, {"separator": "\n\n"}),  # of three line feeds, which two?
        ("a.txt", "the river " * 90, {"encoding": "auto"}),
        ("a.txt", "the river " * 90, {"encoding": "utf-16"}),
        ("a.txt", "the river " * 90, {"encoding": "shift_jis"}),
        ("a.txt", "the river " * 90, {"encoding": "cp037"}),  # EBCDIC: byte 10 is no line feed
        ("a.txt", "river" * 200, {}),
        ("a.csv", "text\n" + "the river\n" * 90, {"include": ["a.csv"]}),
    ],
)
def test_what_cannot_be_cut_safely_is_not(tmp_path: Path, name: str, content: str, options: dict[str, Any]) -> None:
    encoding = options.get("encoding", "utf-8")
    (tmp_path / name).write_bytes(content.encode("utf-8" if encoding == "auto" else encoding))
    (whole,) = ranges(files(**options), tmp_path, 50)
    assert (whole.name, whole.start, whole.end) == (name, 0, whole.size)


def test_the_digest_of_a_range_is_that_of_its_bytes_and_of_a_row_group_also_of_the_footer(tmp_path: Path) -> None:
    corpus = files()
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 40)
    first, *_, last = (corpus.digest(tmp_path, part) for part in ranges(corpus, tmp_path, 100))
    path.write_text('{"text": "one"}\n' * 39 + '{"text": "two"}\n')
    changed = [corpus.digest(tmp_path, part) for part in ranges(corpus, tmp_path, 100)]
    assert changed[0] == first
    assert changed[-1] != last
    path.unlink()
    digests = []
    for names in (["text", "more"], ["more", "text"]):
        columns = [["one"] * 40, ["two"] * 40]
        table = arrow.table(dict(zip(names, columns, strict=True)))
        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
        digests.append([corpus.digest(tmp_path, part) for part in ranges(corpus, tmp_path, 100)])
    assert not set(digests[0]) & set(digests[1])


def test_a_table_of_characters_is_divisible() -> None:
    divisible = {name: RANGES.is_divisible(name) for name in ("utf-8", "latin-1", "cp1252", "mac-roman", "koi8-r")}
    assert all(divisible.values()), divisible
    others = ("utf-8-sig", "utf-16", "utf-32", "utf-7", "shift_jis", "gb18030", "hz", "iso2022_jp", "cp037", "big5")
    assert not any(map(RANGES.is_divisible, others))
