"""The corpus of files of token ids that other programs made: nanoGPT, modded-nanogpt, llm.c, datatrove, parquet."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.plugin import Corpus, Document, hookimpl

from ..files.finding import all_of, find
from .formats import SIDECARS, Settings, documents, maker, unread

_SIDES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
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
        found = find(root, self.include) if root.is_dir() else None
        if found:
            for kinds in found.left_out.values():
                for ending in SIDECARS:
                    kinds.pop(ending, None)
            if told := found.told():
                yield f"files left out: {told}"
            for path in found.texts:
                yield from unread(path)

    def check_tokenizer(self, root: Path, name: str, end_of_text: int) -> Iterator[str]:
        if end_of_text != self.end_of_text:
            raise ValueError(
                f"tokenize.corpus.token_files.end_of_text is {self.end_of_text}, but the tokenizer {name!r} ends "
                f"documents with {end_of_text}: set it to {end_of_text}, or choose the tokenizer that made the ids"
            )
        others: dict[str, str] = {}
        for path in self._paths(root):
            made_by = maker(path)
            if not made_by or _short(made_by) == name or _group(_short(made_by)) == _group(name) is not None:
                continue
            if _group(_short(made_by)) and _group(name):
                raise ValueError(
                    f"{path}.metadata names the tokenizer {made_by!r}, but tokenize.tokenizer is {name!r}: set "
                    f"tokenize.tokenizer.tiktoken.encoding: {_short(made_by)}"
                )
            others.setdefault(made_by, path.relative_to(root).as_posix())
        for made_by, file in others.items():
            yield f"{file}: its metadata names the tokenizer {made_by}, read with {name}"

    def documents(self, root: Path) -> Iterator[Document]:
        for path in self._paths(root):
            yield from self._documents(root, path)

    def file_text(self, path: Path, root: Path) -> Iterator[str]:
        if path.suffix.lower() in (".bin", ".ds", ".npy", ".parquet"):
            raise ValueError(f"{path} has token ids: only plain text is read here")
        return super().file_text(path, root)

    def _documents(self, root: Path, path: Path) -> Iterator[Document]:
        name, side = path.relative_to(root).as_posix(), _side(path.relative_to(root))
        settings = Settings(self.dtype, self.end_of_text, self.column)
        for number, ids in enumerate(documents(path, settings), start=1):
            yield Document(f"{name}#{number}", split=side, ids=ids)

    def _paths(self, root: Path) -> list[Path]:
        found = find(root, self.include)
        if found.faults:
            raise all_of(found.faults, root, found.texts)
        if not found.texts:
            there = f" (left out: {found.told()})" if found.left_out else ""
            raise FileNotFoundError(f"{root} has no file that matches {', '.join(self.include)}{there}")
        return found.texts


def _short(made_by: str) -> str:
    """The last part of a name such as openai-community/gpt2."""
    return made_by.rsplit("/", 1)[-1]


def _group(name: str) -> int | None:
    return next((number for number, names in enumerate(_SAME) if name in names), None)


def _side(path: PurePath) -> str | None:
    """The split that a folder or a part of the file's name says, such as fineweb_val_000000.bin; else None."""
    words: Iterable[str] = (*path.parts[:-1], *re.split(r"[^a-zA-Z]+", path.name.partition(".")[0]))
    return next((_SIDES[word.lower()] for word in words if word.lower() in _SIDES), None)


@hookimpl
def register_corpora() -> list[type[Corpus]]:
    return [TokenFiles]
