"""The contract suite's check of a corpus with sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.authoring.testing import check_corpus
from pipeline.core.errors import PluginError
from pipeline.plugin import Corpus, CorpusSource, Document
from pipeline.plugin.components import KINDS
from pipeline.plugin.contract import _check_component


class Lines(Corpus):
    """The lines of some files, which can be read from the middle; `wrong` is the rule that it breaks."""

    name: ClassVar[str] = "lines"
    wrong: str = ""

    def sources(self, root: Path) -> Iterable[CorpusSource]:
        sources = [CorpusSource.of_file(path, root) for path in sorted(root.glob("*.txt"))]
        if self.wrong == "names":
            sources = [replace(source, name="same") for source in sources]
        return sources

    def read(self, root: Path, source: CorpusSource) -> Any:
        data = Path(source.path).read_bytes()[source.start : source.end]
        lines = data.decode().splitlines()
        for number, line in enumerate(lines, start=source.first_record):
            if source.start and self.wrong == "number":
                number -= source.first_record
            yield Document(f"{Path(source.path).name}#{number}", line)

    def divide(self, root: Path, source: CorpusSource, size: int) -> Iterator[CorpusSource]:
        data, start = Path(source.path).read_bytes(), 0
        while start < source.end:
            end = data.find(b"\n", start + size) + 1 or source.end
            end = min(start + size, source.end) if self.wrong == "cut" else end
            part = replace(source, name=f"{source.name}@{start}", start=start, end=end)
            part = replace(part, continues=self.wrong == "continues")
            start = end + (self.wrong == "gap")
            yield part

    def count_records(self, root: Path, source: CorpusSource) -> int:
        return Path(source.path).read_bytes()[source.start : source.end].count(b"\n")


class Reversed(Lines):
    """Its documents are not those of its sources."""

    def documents(self, root: Path) -> Iterator[Document]:
        yield from reversed(list(super().documents(root)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"line {number}\n" for number in range(20)))
    return tmp_path


def test_a_corpus_of_sources_keeps_the_contract(root: Path) -> None:
    check_corpus(Lines, root)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("names", "two sources have the same name"),
        ("number", "the ranges of a.txt must give its documents"),
        ("cut", "the ranges of a.txt must give its documents"),
        ("gap", "the ranges of a.txt must follow each other"),
        ("continues", "a.txt@0 continues: it must have one document"),
    ],
)
def test_a_corpus_that_breaks_a_rule_is_told_which(root: Path, wrong: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_corpus(Lines(wrong=wrong), root)


def test_its_documents_are_those_of_its_sources(root: Path) -> None:
    with pytest.raises(AssertionError, match="of all sources in order"):
        check_corpus(Reversed, root)


class Empty(Corpus):
    """It has no documents."""

    name: ClassVar[str] = "empty"


class Unreadable(Empty):
    """It has sources, but does not read them."""

    def sources(self, root: Path) -> Iterable[CorpusSource]:
        return ()


@pytest.mark.parametrize("component", [Empty, Unreadable])
def test_a_corpus_without_documents_is_refused(component: type[Corpus]) -> None:
    with pytest.raises(PluginError, match=f"{component.__name__} has no method documents"):
        _check_component(component, KINDS["corpora"])
