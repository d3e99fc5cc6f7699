"""Several errors about texts as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_LISTED = 5
"""More faults than this are grouped by cause."""
_NAMED = 20
_VARIES = re.compile(r"\d[\d,.]*|0x[0-9a-f]+|'[^']*'")
"""What may differ between two faults of the same cause."""


def all_of(faults: Sequence[Exception], root: Path, files: Iterable[Path | str], more: str = "") -> Exception:
    """One error with all messages; many are grouped by cause, with the names of the files.

    Args:
        faults: The errors.
        root: The folder to which the names of grouped files are relative.
        files: The files that the errors may name.
        more: What to add to the number of errors.
    """
    if len(faults) == 1:
        return faults[0]
    messages = [_said(fault) for fault in faults]
    groups = {message: [""] for message in messages}
    if len(faults) > _LISTED:
        groups, names = {}, {str(file) for file in files}
        first_of = dict[str, str]()
        for message in messages:
            name = next((message[:end] for end in range(len(message), 0, -1) if message[:end] in names), "")
            first = first_of.setdefault(_VARIES.sub("", message.removeprefix(name)), message)
            groups.setdefault(first, []).append(name.removeprefix(f"{root}/"))
    shown = "; ".join(message + _likewise(others) for message, (_, *others) in groups.items())
    return ValueError(f"{len(faults):,} things are wrong with the texts{more}: {shown}")


def _likewise(names: Sequence[str]) -> str:
    """The other files with the same fault, after the message about the first."""
    rest = [f"and {len(names) - _NAMED:,} more"] * (len(names) > _NAMED)
    return f" (the same in {len(names):,} more: {', '.join([*names[:_NAMED], *rest])})" if names else ""


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
