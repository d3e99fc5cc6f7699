"""Incremental decoding: only complete characters, and no text that belongs to a stop string."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands.decode import TextStream

LETTERS = "abé€"
stop_strings = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3)


def stream(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    """The text after each token with these bytes, and at the end; and whether it stopped."""
    tokenizer: Any = SimpleNamespace(token_bytes=pieces)
    text = TextStream(tokenizer, stops)
    shown = []
    for token in range(len(pieces)):
        shown.append(text.add(token))
        if text.stopped:
            break
    return [*shown, text.finish()], text.stopped


def up_to_a_stop(text: str, stops: list[str]) -> str:
    """The text before the stop string that is completed first; of several, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=200, deadline=None)
@given(st.text(LETTERS, max_size=20), stop_strings, st.data())
def test_the_text_ends_before_the_first_stop_wherever_its_tokens_are_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    utf8 = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(utf8)), max_size=8)))
    pieces = [utf8[start:end] for start, end in zip([0, *cuts], [*cuts, len(utf8)], strict=True)]
    shown, stopped = stream(pieces, stops)
    assert "".join(shown) == up_to_a_stop(text, stops)
    assert stopped == any(stop in text for stop in stops)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    assert stream([b"so EN", b"d", b" EN"], ["END", "\n\n"])[0] == ["so ", "ENd", " ", "EN"]
    assert stream([b"a\n", b"b\n", b"\n", b"c"], ["\n\n"])[0] == ["a", "\nb", "", ""]


def test_half_a_character_waits_for_its_other_half() -> None:
    assert stream(["é".encode()[:1], "é".encode()[1:], b"\xe2\x82"], []) == (["", "é", "", "�"], False)
