"""The split stage: divides the tokens into train, val and test, as raw ids that other trainers can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.core.console import fact, listed, say
from pipeline.core.errors import DataError
from pipeline.core.publication import published_folder
from pipeline.data.index import SPLITS
from pipeline.data.tokens import TokenFolder, TokenWriter, finish_folder
from pipeline.split.assignment import Part, by_document, by_position, duplicates, predefined
from pipeline.split.baseline import xz_bits_per_byte

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params, SplitParams


def run(params: Params, paths: Paths) -> None:
    """Reads artifacts/tokens and writes artifacts/splits: train.bin, val.bin, test.bin, indexes, meta.json.

    Raises:
        DataError: the tokens cannot be read, or a split gets too few of them.
    """
    split_params = params.split
    tokens = TokenFolder(paths.tokens, "run `python -m pipeline tokenize`")
    found = duplicates(_parts(tokens, split_params))
    removed = {(duplicate.split, duplicate.name) for duplicate in found if split_params.duplicates == "remove"}

    with published_folder(paths.splits, paths) as folder:
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(TokenWriter(folder, split, tokens.tokenizer))
                for split in _splits(tokens, split_params)
            }
            for part in _parts(tokens, split_params):
                if (part.split, part.name) in removed:
                    continue
                text_bytes = 0
                for ids in part.blocks:
                    writers[part.split].write(ids)
                    text_bytes += int(tokens.tokenizer.byte_lengths[ids].sum())
                writers[part.split].end_document(part.name, text_bytes)
            files = {split: writer.summary() for split, writer in writers.items()}
        _check(files, split_params)
        recorded = {**tokens.meta["params"], "split": split_params.model_dump(mode="json")}
        repeated = [asdict(duplicate) for duplicate in found]
        more: dict[str, Any] = {"by": split_params.by, "duplicates": repeated}
        more["xz_bits_per_byte"] = xz_bits_per_byte(folder, files, tokens.tokenizer)
        finish_folder(folder, tokens.tokenizer, files, params=recorded, **more)

    total = sum(file["tokens"] for file in files.values())
    fact("read", f"{paths.shown(paths.tokens)}: {total:,} tokens")
    for split, file in files.items():
        size = f"{file['tokens']:,} tokens ({file['tokens'] / total:.1%})"
        fact(split, f"{size}, {file['documents']:,} documents, {file['bytes']:,} bytes")
        _say_small(split, file["tokens"] / total, split_params)
    names = listed([str(duplicate) for duplicate in found])
    if removed:
        fact("removed", f"{len(found):,} duplicates: {names}")
    elif found:
        say(
            f"note: {len(found):,} texts are in two splits, which flatters results: {names}; to remove them, set "
            "split.duplicates: remove"
        )
    fact("wrote", f"{paths.shown(paths.splits)} (by {split_params.by})")


def _parts(tokens: TokenFolder, params: SplitParams) -> Iterator[Part]:
    if params.by == "document":
        return by_document(tokens, params.seed, params.val, params.test)
    if params.by == "predefined":
        return predefined(tokens)
    return by_position(tokens, params.unit, params.val, params.test)


def _splits(tokens: TokenFolder, params: SplitParams) -> list[str]:
    if params.by == "predefined":
        found = {entry.split for entry in tokens.documents("tokens")}
        return [split for split in SPLITS if split in found]
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
        if file["tokens"] >= 2:  # an input and a target
            continue
        what = f"split.{split}" if split != "train" else f"split.val {params.val} and split.test {params.test}"
        if params.by == "document":
            raise DataError(
                f"split: {split} gets {file['documents']} of {documents} documents: set split.by: position, or "
                f"change {what} or split.seed"
            )
        raise DataError(f"split: {split} gets {file['tokens']} tokens: change {what}, or add text")
