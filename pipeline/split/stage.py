"""Split the tokens into train, val and test.

Writes artifacts/splits.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.console import Progress, fact, listed, say
from pipeline.core.errors import DataError
from pipeline.core.publication import published_folder
from pipeline.data.index import SPLITS
from pipeline.data.joined import AnyIds, SegmentedIds
from pipeline.data.token_writer import Counts, TokenWriter, smallest_dtype
from pipeline.data.tokens import TokenFolder, finish_folder
from pipeline.split.assignment import REMOVED, Assignment, by_document, by_position, predefined
from pipeline.split.baseline import xz_bits_per_byte
from pipeline.split.duplicates import find_duplicates
from pipeline.split.segments import SegmentWriter

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.core.paths import Paths
    from pipeline.params.params import Params, SplitParams

MOST_COPIED = 1 << 30
"""The number of tokens up to which train.bin is written, which other trainers read."""


def run(params: Params, paths: Paths) -> None:
    """Reads artifacts/tokens and writes artifacts/splits: train.bin, val.bin, test.bin, indexes, meta.json.

    Of more than `MOST_COPIED` tokens, train is written as a list of segments of artifacts/tokens.

    Raises:
        DataError: the tokens cannot be read, or a split gets too few of them.
    """
    write_splits(params, paths)


def write_splits(params: Params, paths: Paths, baseline: bool = True) -> None:
    """As `run`; without the `baseline` of xz, which takes longest, for splits that are not evaluated."""
    split_params = params.split
    tokens = TokenFolder(paths.tokens, "run `python -m pipeline tokenize`")
    assignment = _assign(tokens, split_params)
    names = _splits(assignment, split_params)
    found = find_duplicates(tokens, assignment.places)
    removes = split_params.duplicates == "remove" and len(found) > 0
    if removes:
        assignment.places[found.found] = REMOVED

    with published_folder(paths.splits, paths) as folder:
        files, ids, counts, more = _write(folder, tokens, assignment, names)
        _check(files, split_params)
        recorded = {**tokens.meta["params"], "split": split_params.model_dump(mode="json")}
        more |= {"by": split_params.by, "duplicates": [asdict(each) for each in found.listed]}
        more |= {"duplicates_found": len(found)}
        if baseline and not tokens.has_mask("tokens"):  # xz codes all of a text
            more |= {"xz_bits_per_byte": xz_bits_per_byte(ids, tokens.tokenizer)}
        finish_folder(folder, tokens.tokenizer, files, params=recorded, counts={"train": counts}, **more)

    total = sum(file["tokens"] for file in files.values())
    fact("read", f"{paths.shown(paths.tokens)}: {total:,} tokens")
    for split, file in files.items():
        size = f"{file['tokens']:,} tokens ({file['tokens'] / total:.1%})"
        if "learnt" in file:
            size += f", {file['learnt']:,} to learn"
        fact(split, f"{size}, {file['documents']:,} documents, {file['bytes']:,} bytes")
        _say_small(split, file["tokens"] / total, split_params)
    listed_names = listed([str(duplicate) for duplicate in found.listed], count=len(found))
    if removes:
        fact("removed", f"{len(found):,} duplicates: {listed_names}")
    elif len(found):
        say(
            f"note: {len(found):,} texts are in two splits, which flatters results: {listed_names}; to remove "
            "them, set split.duplicates: remove"
        )
    cut = sum(file["documents"] for file in files.values()) - int(np.count_nonzero(assignment.places != REMOVED))
    counted = f"; documents that are cut count in each of their splits: {cut} more" if cut else ""
    fact("wrote", f"{paths.shown(paths.splits)} (by {split_params.by}{counted})")


def _write(
    folder: Path, tokens: TokenFolder, assignment: Assignment, names: list[str]
) -> tuple[dict[str, dict[str, int]], dict[str, AnyIds], Counts, dict[str, Any]]:
    """Writes the splits; returns their sizes, their ids, the counts of ids in train, and keys of meta.json."""
    total, byte_lengths = tokens.meta["files"]["tokens"]["tokens"], tokens.tokenizer.byte_lengths
    segments = SegmentWriter() if total > MOST_COPIED else None
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(TokenWriter(folder, split, tokens.tokenizer))
            for split in names
            if split != "train" or segments is None
        }
        progress = stack.enter_context(Progress("splitting", "token", total))
        for part in assignment.parts(tokens):
            if segments is not None and part.split == "train":
                segments.add(part.start, part.end)
            else:
                text_bytes = 0
                for ids, learn in part.blocks:
                    writers[part.split].write(ids, learn)
                    if part.text_bytes is None:
                        text_bytes += int(byte_lengths[ids].sum())
                writers[part.split].end_document(
                    part.name, text_bytes if part.text_bytes is None else part.text_bytes
                )
            progress.update(part.end - part.start)
    files = {split: writer.summary() for split, writer in writers.items()}
    written: dict[str, AnyIds] = {
        split: np.memmap(folder / f"{split}.bin", smallest_dtype(tokens.tokenizer.vocab_size), "r")
        for split in files
        if files[split]["tokens"]
    }
    if segments is None:
        return files, written, writers["train"].counts, {}
    table, counts = segments.write(folder), segments.counts(tokens)
    train = {
        "tokens": int(table[0, -1]),
        "documents": segments.documents,
        "bytes": int((counts * byte_lengths).sum()),
    }
    if tokens.has_mask("tokens"):
        train["learnt"] = segments.learnt(tokens)
    of = {"folder": os.path.relpath(tokens.folder, folder), "digest": tokens.digest}
    written = {"train": SegmentedIds(tokens.ids("tokens"), table), **written}
    return {"train": train, **files}, written, counts, {"segments_of": of}


def _assign(tokens: TokenFolder, params: SplitParams) -> Assignment:
    if params.by == "document":
        return by_document(tokens, params.seed, params.val, params.test)
    if params.by == "predefined":
        return predefined(tokens)
    return by_position(tokens, params.unit, params.val, params.test)


def _splits(assignment: Assignment, params: SplitParams) -> list[str]:
    if params.by == "predefined":
        return [split for split, documents in zip(SPLITS, assignment.counts(), strict=True) if documents]
    return [split for split in SPLITS if split != "test" or params.test > 0]


def _say_small(split: str, share: float, params: SplitParams) -> None:
    """Prints a note if a split gets far less than its share: few documents, or very different lengths."""
    wanted = {"val": params.val, "test": params.test}.get(split, 0.0)
    if params.by == "document" and share < wanted / 3:
        say(
            f"note: {split} gets {share:.2%} of the tokens instead of split.{split} {wanted:.0%}: its numbers are "
            "unreliable; set split.by: position, or change split.seed"
        )


def _check(files: dict[str, dict[str, int]], params: SplitParams) -> None:
    documents = sum(file["documents"] for file in files.values())
    for split, file in files.items():
        if file.get("learnt") == 0:
            raise DataError(
                f"split: {split} has {file['documents']:,} documents with nothing to learn: change split.seed, or "
                "add conversations in which the assistant speaks"
            )
        if file["tokens"] >= 2:  # an input and a target
            continue
        what = f"split.{split}" if split != "train" else f"split.val {params.val} and split.test {params.test}"
        if params.by == "document":
            raise DataError(
                f"split: {split} gets {file['documents']} of {documents} documents: add documents, set split.by: "
                f"position, or change {what} or split.seed"
            )
        raise DataError(f"split: {split} gets {file['tokens']} tokens: change {what}, or add text")
