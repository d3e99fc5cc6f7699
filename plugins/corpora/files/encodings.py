"""Which encoding a file is in: what it says itself, or what its bytes look like."""

import codecs
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

AUTO = "auto"
"""The name of the option's value that detects each file's encoding."""

_MARKS = (  # UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_DECLARED = re.compile(rb"""(?:<meta[^>]+charset|<\?xml[^>]+encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARED_WITHIN = 1024
_AS_ON_THE_WEB = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
    "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8",
}  # fmt: skip
"""What browsers take some names for: the larger set that pages really use."""
_KNOWN = ["ascii", "utf_8"]
"""Which encodings a text is not in that is no UTF-8."""
_SAMPLE = 1 << 16
_CONTEXT = 1000


def marked(data: bytes) -> str | None:
    """The encoding that the byte order mark at a file's beginning says."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def declared(data: bytes) -> str | None:
    """The encoding that an HTML page says at its beginning, by a byte order mark or in <meta> or <?xml."""
    if mark := marked(data):
        return mark
    found = _DECLARED.search(data, 0, _DECLARED_WITHIN)
    try:
        codec = codecs.lookup(found[1].decode("ascii")) if found else None
    except (LookupError, ValueError):
        return None
    return _AS_ON_THE_WEB.get(codec.name, codec.name) if codec and codec._is_text_encoding else None


def detected(data: Iterable[bytes], path: Path | str) -> str:
    """The encoding of a file's bytes, which come in blocks: by its byte order mark; else UTF-8 where all of it is
    that; else what charset-normalizer takes its beginning for, or the part where it first is no UTF-8.

    Raises:
        ValueError: it looks like no encoding.
    """
    decoder, beginning, blocks = codecs.getincrementaldecoder("utf-8")(), b"", iter(data)
    for block in chain(blocks, [b""]):
        if not beginning:
            beginning = block[:_SAMPLE]
            if known := marked(beginning) or _utf_16(beginning):
                return known
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            sample = error.object[max(0, error.start - _CONTEXT) :] + next(blocks, b"")
            return _guess(beginning if block.startswith(beginning) else sample[:_SAMPLE], path)
    return "utf-8"


def _utf_16(data: bytes) -> str | None:
    """UTF-16 without a mark, which may be valid UTF-8: each second byte is below 9 for most alphabets."""
    even, odd = (sum(half.count(byte) for byte in range(9)) for half in (data[::2], data[1::2]))
    if max(even, odd) > len(data) * 0.4 and not min(even, odd):
        return "utf-16-be" if even else "utf-16-le"
    return None


def _guess(sample: bytes, path: Path | str) -> str:
    from charset_normalizer import from_bytes

    # The sample may end within a character.
    matches = [match for cut in range(4) for match in from_bytes(sample[: len(sample) - cut], cp_exclusion=_KNOWN)]
    if not matches:
        raise ValueError(
            f"{path} looks like text in no encoding: say which in tokenize.corpus.files.encodings, or move it "
            "out of data/raw"
        )
    best = min((match.chaos, -match.coherence) for match in matches)
    equal = [match for match in matches if (match.chaos, -match.coherence) == best]
    # Of those that fit equally well, Western Europe's, as on the web: a few accents do not tell it from others.
    western = any("cp1252" in match.could_be_from_charset for match in equal)
    return "cp1252" if western else str(equal[0].encoding)
