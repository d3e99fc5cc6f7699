"""Held-out text as a checkpoint reads it."""

from __future__ import annotations

from pipeline.core.errors import DataError
from pipeline.data.tokens import TokenFolder
from pipeline.model.checkpoint import Checkpoint


def check_same_tokenizer(checkpoint: Checkpoint, splits: TokenFolder) -> None:
    """Raises DataError when the splits were made by another tokenizer than the one trained with."""
    trained, split = checkpoint.tokenizer.fingerprint, splits.tokenizer.fingerprint
    if trained != split:
        raise DataError(
            f"{splits.folder}: made by another tokenizer ({split[:12]}) than the model was trained with "
            f"({trained[:12]}): train again"
        )


def held_out_text(checkpoint: Checkpoint, splits: TokenFolder, tokens: int) -> str:
    """The text of val's first tokens, special ones left out.

    Raises:
        DataError: the splits were made by another tokenizer.
    """
    check_same_tokenizer(checkpoint, splits)
    ids = splits.ids("val")[:tokens]
    return checkpoint.tokenizer.decode(ids[checkpoint.tokenizer.byte_lengths[ids] > 0])
