"""Attention maps as small pictures, and a short description of each."""

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
    """The map of a head: name, picture as a data: URL, and a description of where it attends."""

    name: str
    picture: str
    habit: str


def head_pictures(maps: AttentionMaps) -> list[Head]:
    """The maps of all heads, layer by layer."""
    heads = []
    for row, layer in enumerate(maps.layers):
        for column, head in enumerate(maps.heads):
            weights = maps.weights[row, column]
            shares = sorted(habit(weights).items(), key=lambda item: -item[1])
            words = ", ".join(f"{share:.0%} {name}" for name, share in shares)
            heads.append(Head(f"Layer {layer}, head {head}", _picture(weights), words))
    return heads


def columns(heads: int) -> int:
    """The number of maps per row on a wide screen: whole layers or equal parts of one, if possible."""
    fitting = [count for count in (8, 7, 6, 5) if count % heads == 0 or heads % count == 0]
    return fitting[0] if fitting else 7


def _picture(weights: np.ndarray) -> str:
    """Weights [T, T] as a PNG of T × T pixels, whose darkness is the square root of the weight."""
    from matplotlib.image import imsave

    dots = np.zeros((*weights.shape, 4), dtype=np.uint8)
    dots[..., :3] = _INK
    dots[..., 3] = np.round(255 * np.sqrt(np.clip(weights, 0, 1)))
    dots[dots[..., 3] == 0] = 0
    buffer = io.BytesIO()
    no_version: Any = {"Software": None}
    imsave(buffer, dots, format="png", metadata=no_version, pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def evenly_spaced_indices(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … count − 1, evenly spaced, including the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(number * (count - 1) / (most - 1)) for number in range(most)})


def habit(weights: np.ndarray) -> dict[str, float]:
    """The shares of a head's weights [T, T] on the token itself, the previous token, and the first token.

    The first two tokens are left out, because these targets coincide for them. Weight on the token itself or the
    previous one does not count for the first token. Empty for texts of fewer than three tokens.
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
