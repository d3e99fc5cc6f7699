"""The maps of attention heads as small pictures, and in words where each looks."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluate.report.records import AttentionMaps

_INK = (0, 103, 163)


@dataclass(frozen=True)
class Head:
    """A head's map: its name, its picture as a data: address, and in words where it looks."""

    name: str
    picture: str
    habit: str


def head_pictures(maps: AttentionMaps) -> list[Head]:
    """Each head's map, layer by layer."""
    heads = []
    for row, layer in enumerate(maps.layers):
        for column, head in enumerate(maps.heads):
            weights = maps.weights[row, column]
            shares = sorted(habit(weights).items(), key=lambda item: -item[1])
            words = ", ".join(f"{share:.0%} {name}" for name, share in shares)
            heads.append(Head(f"Layer {layer}, head {head}", _picture(weights), words))
    return heads


def columns(heads: int) -> int:
    """How many maps stand side by side on a wide screen: whole layers, or equal parts of one, where that goes."""
    fitting = [count for count in (8, 7, 6, 5) if count % heads == 0 or heads % count == 0]
    return fitting[0] if fitting else 7


def _picture(weights: np.ndarray) -> str:
    """Weights [T, T] as a PNG of T × T dots whose ink covers as much as the root of the weight."""
    from matplotlib.image import imsave

    dots = np.zeros((*weights.shape, 4), dtype=np.uint8)
    dots[..., :3] = _INK
    dots[..., 3] = np.round(255 * np.sqrt(np.clip(weights, 0, 1)))
    dots[dots[..., 3] == 0] = 0
    buffer = io.BytesIO()
    no_version: Any = {"Software": None}
    imsave(buffer, dots, format="png", metadata=no_version, pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … count − 1, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(number * (count - 1) / (most - 1)) for number in range(most)})


def habit(weights: np.ndarray) -> dict[str, float]:
    """What a head's weights [T, T] go to, as shares of all: the token itself, the one before it, the first one.

    The first two tokens are left out: for them these are the same. What is one of the two others is not counted as
    the first. Empty for a text of less than three tokens.
    """
    length = len(weights)
    if length < 3:
        return {}
    rows = np.arange(2, length)
    return {
        "itself": float(weights[rows, rows].mean()),
        "the previous": float(weights[rows, rows - 1].mean()),
        "the first": float(weights[rows, 0].mean()),
    }
