"""Python's garbage collector at start-up."""

from __future__ import annotations

import gc

_OBJECTS_OF_IMPORTS = 200_000
"""Objects that a process makes before its first collection: torch's import makes more."""


def collect_after_imports() -> None:
    """Postpones the first garbage collection, and leaves the objects that exist then out of all later ones.

    Otherwise, a tenth of the imports' time goes into collections that find nothing: what an import makes stays.
    """
    thresholds = gc.get_threshold()

    def first(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            gc.callbacks.remove(first)
            gc.freeze()
            gc.set_threshold(*thresholds)

    gc.callbacks.append(first)
    gc.set_threshold(_OBJECTS_OF_IMPORTS, *thresholds[1:])
