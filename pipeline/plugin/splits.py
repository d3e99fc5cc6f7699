"""The split of a document by its name, for `split.by: document` and for corpora that must agree with it."""

from __future__ import annotations

import hashlib


def split_of(name: str, seed: int, val: float, test: float) -> str:
    """The split of a document: "train", "val" or "test". It depends only on the document's name and the numbers.

    Args:
        name: The document's name.
        seed, val, test: As in the section `split` of params.yaml.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < test:
        return "test"
    return "val" if fraction < test + val else "train"
