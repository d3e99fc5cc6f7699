"""How files of a byte-level BPE write bytes as printable characters (gpt2's convention)."""

from __future__ import annotations


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte: itself where it is printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
