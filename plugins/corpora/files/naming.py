"""What the name of a file says: the split of its texts."""

import re
from pathlib import PurePath

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")


def split_of(path: PurePath) -> str | None:
    """The split given by the outermost folder with the name of a split, or by the file's name; else None."""
    stem = _SHARD.sub("", path.name.partition(".")[0])
    splits = (_SPLITS.get(name.lower()) for name in (*path.parts[:-1], stem))
    return next((split for split in splits if split), None)
