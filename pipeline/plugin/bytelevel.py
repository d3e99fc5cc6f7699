"""For tokenizer files: GPT-2's mapping of bytes to printable characters, and texts that test a tokenizer."""

from __future__ import annotations

import random
import unicodedata


def byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte: the byte's own character if it is printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def awkward_texts(strings: int = 2000) -> list[str]:
    """Test texts: every code point, and random strings, which reveal errors in split patterns."""
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    every_point = ["".join(points[start : start + 4096]) for start in range(0, len(points), 4096)]
    generator = random.Random(0)
    assigned = [each for each in points[:0x3000] if unicodedata.category(each) != "Cn"]
    alphabets = [
        "ab'sdmtrevl \n",
        " \t\n\r\u00a0\u3000",
        "aZ09 .,!?'\n",
        "".join(generator.sample(assigned, 400)),
    ]
    lengths = (generator.randint(1, 60) for _ in range(strings))
    return every_point + ["".join(generator.choices(generator.choice(alphabets), k=length)) for length in lengths]
