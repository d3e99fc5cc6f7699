"""What tokenizers' files need: bytes as printable characters (gpt2's convention), and texts that prove them."""

from __future__ import annotations

import random
import unicodedata


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte: itself where it is printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def awkward_texts(strings: int = 2000) -> list[str]:
    """Every code point, and random strings: a short list of nasty texts missed wrong split patterns."""
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
