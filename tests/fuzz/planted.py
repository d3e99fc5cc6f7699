"""Faults that are planted: one of each sort, which the fuzzer must find."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.case import Case, case


def _hang() -> None:
    while True:
        time.monotonic()


def _grow() -> None:
    kept = bytearray(600_000_000)  # zeroed when it is touched
    kept[::4096] = b"x" * len(kept[::4096])
    time.sleep(60)


def _half_replaced() -> None:
    path = Path("artifacts/checkpoint/best.pth")
    path.unlink()
    path.write_bytes(b"half")
    sys.exit("error: artifacts/checkpoint: the disk is full")


FIXED: list[Case] = [
    case("traceback", "runs", plant=lambda: {}["no such key"]),
    case("hang", "runs", plant=_hang),
    case("growth", "runs", plant=_grow),
    case("silent", "runs", plant=lambda: sys.exit(0)),
    case("outputs", "train", plant=_half_replaced),
]


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """One of them again."""
    return draw.choice(FIXED)
