"""The baseline that split measures: xz's bytes, whatever window they are found in."""

from __future__ import annotations

import lzma

from conftest import made_up_text

from pipeline.split.baseline import _xz


def test_a_window_of_the_texts_length_finds_what_the_presets_finds() -> None:
    for text in (b"", b"a", made_up_text(0, 5_000).encode()):
        assert _xz(text) == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
