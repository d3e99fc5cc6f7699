"""The corpus of files of token ids that other programs made: nanoGPT, modded-nanogpt, llm.c, datatrove, parquet."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.plugin import Corpus, CorpusSource, Document, hookimpl

from .finding import find, left_out
from .formats import Ids, Settings, cuts, documents, maker, sidecars, unread

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SAME = ({"gpt2", "r50k_base"}, {"p50k_base", "p50k_edit"}, {"cl100k_base"}, {"o200k_base", "o200k_harmony"})
"""The encodings of tiktoken, by vocabulary."""


class TokenFiles(Corpus):
    """Token ids that other programs made, below data/raw: .bin (nanoGPT, modded-nanogpt, llm.c), .ds (datatrove),
    .npy and .parquet. `tokenize.tokenizer` names the tokenizer that made them."""

    name: ClassVar[str] = "token_files"

    include: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = (
        "**/*.bin", "**/*.ds", "**/*.npy", "**/*.parquet",
    )  # fmt: skip
    """The files to read below data/raw, as globs, names or folders."""
    end_of_text: Annotated[int, Field(ge=0)] = 50256
    """The id that separates documents, before or after each: that of the tokenizer's end of text."""
    dtype: Literal["uint16", "uint32"] = "uint16"
    """The type of the ids in files that do not say it: .bin without a header, .ds without index and metadata."""
    column: Annotated[str, Field(min_length=1)] = "input_ids"
    """The column of .parquet files with the lists of ids."""

    @field_validator("include")
    @classmethod
    def _stays_inside(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            parts = PurePath(pattern).parts
            if not parts or PurePath(pattern).is_absolute() or ".." in parts:
                raise ValueError(f"{pattern!r} must lie below data/raw: DVC sees changes only there")
            if any("**" in part and part != "**" for part in parts):
                raise ValueError(f"{pattern!r}: ** stands alone between slashes, as in **/*.bin")
        return patterns

    def notes(self, root: Path) -> Iterator[str]:
        found = find(root, self.include)
        if count := left_out(root, found):
            yield f"{count:,} files below data/raw are not in tokenize.corpus.token_files.include, and are not read"
        for path in found:
            yield from unread(path)

    def check_tokenizer(self, root: Path, name: str, end_of_text: int) -> Iterator[str]:
        if end_of_text != self.end_of_text:
            raise ValueError(
                f"tokenize.corpus.token_files.end_of_text is {self.end_of_text}, but the tokenizer {name!r} ends "
                f"documents with {end_of_text}: set it to {end_of_text}, or choose the tokenizer that made the ids"
            )
        others: dict[str, str] = {}
        for path in find(root, self.include):
            made_by = maker(path)
            maker_group, group = _group(_short(made_by)), _group(name)
            if not made_by or _short(made_by) == name or (group is not None and group == maker_group):
                continue
            if group is not None and maker_group is not None:
                raise ValueError(
                    f"{path}.metadata names the tokenizer {made_by!r}, but tokenize.tokenizer is {name!r}: set "
                    f"tokenize.tokenizer.tiktoken.encoding: {_short(made_by)}"
                )
            others.setdefault(made_by, path.relative_to(root).as_posix())
        for made_by, file in others.items():
            yield f"{file}: its metadata names the tokenizer {made_by}, read with {name}"

    def sources(self, root: Path) -> Iterator[CorpusSource]:
        for path in find(root, self.include):
            yield replace(CorpusSource.of_file(path, root), beside=tuple(map(str, sidecars(path))))

    def read(self, root: Path, source: CorpusSource) -> Iterator[Document]:
        file = Path(source.path).relative_to(root)
        for number, ids in enumerate(self._ids(source), start=source.first_record + 1):
            yield Document(f"{file.as_posix()}#{number}", split=_split(file), ids=ids)

    def divide(self, root: Path, source: CorpusSource, size: int) -> Iterator[CorpusSource]:
        starts = [0, *dict.fromkeys(cuts(Path(source.path), self._settings, size))]
        for start, end in zip(starts, [*starts[1:], source.size], strict=True):
            name = f"{source.name}@{start}" if len(starts) > 1 else source.name
            yield replace(source, name=name, start=start, end=end)

    def count_records(self, root: Path, source: CorpusSource) -> int:
        return sum(1 for _ in self._ids(source))

    @property
    def _settings(self) -> Settings:
        return Settings(self.dtype, self.end_of_text, self.column)

    def _ids(self, source: CorpusSource) -> Iterator[Iterable[Ids]]:
        """The ids of each document of a source."""
        return documents(Path(source.path), self._settings, source.start, source.end)

    def file_text(self, path: Path, root: Path) -> Iterator[str]:
        if path.suffix.lower() in (".bin", ".ds", ".npy", ".parquet"):
            raise ValueError(f"{path} has token ids: only plain text is read here")
        return super().file_text(path, root)


def _short(made_by: str) -> str:
    """The last part of a name such as openai-community/gpt2."""
    return made_by.rsplit("/", 1)[-1]


def _group(name: str) -> int | None:
    return next((number for number, names in enumerate(_SAME) if name in names), None)


def _split(path: PurePath) -> str | None:
    """The split that a folder or a part of the file's name says, such as fineweb_val_000000.bin; else None."""
    words: Iterable[str] = (*path.parts[:-1], *re.split(r"[^a-zA-Z]+", path.name.partition(".")[0]))
    return next((_SPLITS[word.lower()] for word in words if word.lower() in _SPLITS), None)


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [TokenFiles]
