"""The held-out text for a checkpoint."""

from __future__ import annotations

from pipeline.core.errors import DataError
from pipeline.data.tokens import TokenFolder
from pipeline.model.checkpoint import Checkpoint


def check_same_tokenizer(checkpoint: Checkpoint, splits: TokenFolder) -> None:
    """Raises DataError if the tokenizer of the splits is not the checkpoint's."""
    trained, split = checkpoint.tokenizer.fingerprint, splits.tokenizer.fingerprint
    if trained != split:
        raise DataError(
            f"{splits.folder} has another tokenizer ({split[:12]}) than the model ({trained[:12]}): train again"
        )


def held_out_text(checkpoint: Checkpoint, splits: TokenFolder, tokens: int) -> str:
    """The text of the first `tokens` tokens of val, without special tokens.

    Raises:
        DataError: the tokenizer of the splits is not the checkpoint's.
    """
    check_same_tokenizer(checkpoint, splits)
    ids = splits.ids("val")[:tokens]
    return checkpoint.tokenizer.decode(ids[checkpoint.tokenizer.byte_lengths[ids] > 0])
