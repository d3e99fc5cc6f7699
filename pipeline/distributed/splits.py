"""The splits, opened by all ranks and checked by one."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.tokens import TokenFolder
from pipeline.distributed.ranks import Ranks


def open_splits(folder: Path, ranks: Ranks) -> TokenFolder:
    """Opens the splits; only the first of several ranks checks the files' hashes. All ranks must call it.

    Raises:
        DataError: a file is missing or corrupt.
    """
    fix = "run `python -m pipeline split`"
    if ranks.world_size > 1:
        ranks.on_rank0(lambda: TokenFolder(folder, fix).names)
    return TokenFolder(folder, fix, hashes=ranks.world_size == 1)
