"""Errors of damaged .npy files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import DataError


@contextmanager
def npy_errors(path: Path, fix: str) -> Iterator[None]:
    """Context manager: an exception of numpy becomes a DataError that names the file and ends with `fix`.

    An OSError of the system, such as a missing permission, says nothing about the file's content: it is raised as
    it is.

    numpy reads a header with Python's own parser, so a damaged one may raise TokenError, SyntaxError or TypeError
    beside ValueError; one that Python 2 could have written gives a warning, which is left out.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())}): {fix}") from None
