"""Detects the encoding of a file, from its declaration or its bytes."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

AUTO = "auto"
"""The value of the option `encoding` that enables detection."""

_MARKS = (  # UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_DECLARED = re.compile(rb"""(?:<meta[^>]+charset|<\?xml[^>]+encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_DECLARED_WITHIN = 1024
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_AS_ON_THE_WEB = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
    "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8",
}  # fmt: skip
"""The encodings that browsers use for some names: supersets that pages actually contain."""
_KNOWN = ["ascii", "utf_8"]
"""Encodings that are excluded for a text that is not UTF-8."""
_SAMPLE = 1 << 16
_CONTEXT = 1000
_PUNCTUATION = frozenset("“”„‘’‚–—…«»‹›·¿¡§°€£©®™•\xa0")
"""Characters of any Latin text. Others, such as ¹ ³ ± ¶, are letters in other encodings."""
_WESTERN = (
    "äöüß", "àâæçéèêëîïôùûüÿœ", "áéíñóúüªº", "àáâãçéêíóôõúüªº", "àèéìíîòóùúªº", "àçèéíïòóúü", "éèëïöü", "åäöé",
    "åæøéèêóòâôü", "áéíóú", "äöõü",
)  # fmt: skip
_ICELANDIC = "áðéíóúýþæö"
_CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž")
_BALTIC = ("ąčęėįšųūž", "āčēģīķļņšūž", "äöõüšž")
_TURKISH = "çğıöşüâîû" + "İ".lower()
_LATIN = {
    "cp1252": (*_WESTERN, _ICELANDIC), "iso8859-15": _WESTERN, "cp1250": _CENTRAL, "iso8859-2": _CENTRAL,
    "cp1257": _BALTIC, "iso8859-13": _BALTIC, "cp1254": (_TURKISH,),
}  # fmt: skip
"""The letters beyond ASCII of languages with Latin letters, by encoding. Of equally good ones the first is taken.

German, French, Spanish, Portuguese, Italian, Catalan, Dutch, Swedish and Finnish, Danish and Norwegian, Irish,
Estonian; Icelandic; Polish, Czech, Slovak, Hungarian, Romanian, Slovenian and Croatian; Lithuanian, Latvian,
Estonian; Turkish.
"""
_IS_ONE = 0.9
"""The share of the characters beyond ASCII that must be letters of one language, or of Western European ones."""
_FEW = 0.02
"""Fewer characters beyond ASCII than this share do not tell Western European languages from others."""
_AROUND = 20


def marked(data: bytes) -> str | None:
    """The encoding given by a byte order mark at the beginning of the file."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def declared(data: bytes) -> str | None:
    """The encoding that an HTML page declares: by a byte order mark, in <meta> or in <?xml."""
    if mark := marked(data):
        return mark
    found = _DECLARED.search(data, 0, _DECLARED_WITHIN)
    try:
        codec = codecs.lookup(found[1].decode("ascii")) if found else None
    except (LookupError, ValueError):
        return None
    return _AS_ON_THE_WEB.get(codec.name, codec.name) if codec and codec._is_text_encoding else None


def detected(data: Iterable[bytes], path: Path | str) -> str:
    """Detects the encoding of bytes given in blocks.

    It is given by a byte order mark; else it is UTF-8 if all bytes are valid UTF-8; else charset-normalizer detects
    it from the beginning of the file, or from the first part that is not UTF-8.

    Raises:
        ValueError: no encoding was detected.
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
    """Detects UTF-16 without a byte order mark, which may be valid UTF-8: every second byte is below 9 in most
    alphabets."""
    even, odd = (sum(half.count(byte) for byte in range(9)) for half in (data[::2], data[1::2]))
    if max(even, odd) > len(data) * 0.4 and not min(even, odd):
        return "utf-16-be" if even else "utf-16-le"
    return None


def _guess(sample: bytes, path: Path | str) -> str:
    from charset_normalizer import from_bytes

    # The sample may end in the middle of a character.
    matches = [match for cut in range(4) for match in from_bytes(sample[: len(sample) - cut], cp_exclusion=_KNOWN)]
    if not matches:
        raise ValueError(
            f"{path} is no text in a known encoding: if it is text, name its encoding in "
            "tokenize.corpus.files.encodings; if not, convert it to text, or leave it out"
        )
    best = min(matches, key=lambda match: (match.chaos, -match.coherence))
    return (_latin(sample) if _is_latin(str(best)) else None) or str(best.encoding)


def _is_latin(text: str) -> bool:
    """Whether most letters beyond ASCII are Latin."""
    letters = [each for each in text if not each.isascii() and unicodedata.category(each) in ("Lu", "Ll", "Lo")]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return 2 * latin >= len(letters)


def _latin(sample: bytes) -> str | None:
    """The encoding in which the characters beyond ASCII are the letters of one language.

    It is cp1252 if they are those of several Western European languages, or may be and are few; None if no encoding
    fits.
    """
    western = _share(sample, "cp1252", "".join(_WESTERN)) >= _IS_ONE
    if western and sum(byte > 127 for byte in sample) < _FEW * len(sample):
        return "cp1252"
    shares = {
        encoding: max(round(_share(sample, encoding, letters), 2) for letters in languages)
        for encoding, languages in _LATIN.items()
    }
    best = max(shares, key=lambda encoding: shares[encoding])
    if shares[best] >= _IS_ONE:
        return best
    return "cp1252" if western else None


def _share(sample: bytes, encoding: str, letters: str) -> float:
    """The share of the characters beyond ASCII that are these letters or punctuation, if the bytes are in the
    encoding."""
    found = Counter(sample.decode(encoding, "replace").lower())
    beyond = {character: count for character, count in found.items() if not character.isascii()}
    return sum(beyond[each] for each in _PUNCTUATION.union(letters) & beyond.keys()) / max(sum(beyond.values()), 1)


def snippet(data: Iterable[bytes], encoding: str) -> str:
    """A few decoded characters around the first one beyond ASCII, on one line; empty if there is none."""
    decoder, before = codecs.getincrementaldecoder(encoding)("replace"), ""
    for block in data:
        text = before + decoder.decode(block).replace("\ufeff", "")
        if found := _BEYOND_ASCII.search(text):
            around = text[max(0, found.start() - _AROUND) : found.start() + _AROUND]
            return " ".join("".join(each if each.isprintable() else " " for each in around).split())
        before = text[-_AROUND:]
    return ""
