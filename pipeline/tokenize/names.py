"""Checks that the names of the documents of all shards are unique, in 8 bytes per document."""

from __future__ import annotations

import numpy as np

from pipeline.data.documents import DocumentIndex
from pipeline.data.index import name_hash


def repeated_name(index: DocumentIndex, documents: int) -> str | None:
    """A name that several documents have, if there is one.

    Args:
        index: The index of the documents.
        documents: Their number.
    """
    hashes, end = np.empty(documents, dtype=np.uint64), 0
    for records in index.records():
        hashes[end : end + len(records)] = records["name_hash"]
        end += len(records)
    hashes.sort()
    equal = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not equal:
        return None
    seen = set[str]()
    for name in index.names():
        if name_hash(name) in equal:  # different names may have the same hash
            if name in seen:
                return name
            seen.add(name)
    return None
