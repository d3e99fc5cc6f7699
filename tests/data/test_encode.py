"""Text ↔ ids: cutting changes nothing, every text comes back, and end-of-text is only ever added by id."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from conftest import Project
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.data.encode import TextDigest, encode
from pipeline.data.patterns import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    ONE_CHARACTER,
    PIECE,
    cut,
    faster,
    split,
    word_end,
)
from pipeline.data.tokenizer import END_OF_TEXT, TokenIds, Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.components import Document
from pipeline.tokenize.vocabulary import published, raw_bytes, train_bpe

PATTERNS = {
    "gpt2": GPT2_PATTERN,
    "cl100k": CL100K_PATTERN,
    "o200k": O200K_PATTERN,
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "words joined by a hyphen": r"\w+(?:[-']\w+)*|\s+|[^\w\s]+",
    "two at a time": r"[\s\S]{1,2}",
    "characters": ONE_CHARACTER,
}

ENGLISH = "The river runs to a sea of light, and we'll listen: it's 1923 or 2024!\n\n  Don't stop.\r\n" * 20
CHINESE = "語言模型讀很多書,然後預測下一個字。我們聽河流的聲音\n" * 20

SPACES = st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2028", "   \n"])
WORDS = st.sampled_from(
    ["river", "don't", "WE'LL", "'s", "x", "12", "1234567", "½", "²", "Ⅷ", "...", "!?", "_", "/", "a/\n", "語言",
     "é", "e\u0301", "\u0301", "🙂", "👩‍👩‍👧", "ʼ", "ª", "\u200d", "\ufeff", "\x00", END_OF_TEXT, "long" * 40]
)  # fmt: skip
AWKWARD = st.lists(st.one_of(SPACES, WORDS, st.text(max_size=4)), max_size=40).map("".join)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([ENGLISH, CHINESE], 600)


def with_pattern(tokenizer: Tokenizer, name: str) -> Tokenizer:
    return Tokenizer(name, PATTERNS[name], tokenizer.ranks, tokenizer.special_tokens)


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request: pytest.FixtureRequest, bpe: Tokenizer) -> Tokenizer:
    return with_pattern(bpe, request.param)


def joined(parts: Iterable[TokenIds]) -> list[int]:
    return [int(token) for part in parts for token in part]


def blocks(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@settings(deadline=None, max_examples=150)
@given(text=AWKWARD, size=st.integers(1, 30), block=st.integers(1, 50))
def test_the_ids_of_cut_pieces_are_the_ids_of_the_whole_text(
    tokenizer: Tokenizer, text: str, size: int, block: int
) -> None:
    whole = tokenizer.encode(text).tolist()
    for source in (text, blocks(text, block)):
        parts = list(cut(source, tokenizer.pattern, size))
        assert "".join(parts) == text
        assert joined(map(tokenizer.encode, parts)) == whole


@pytest.mark.parametrize(
    "text",
    [ENGLISH, CHINESE, "word " * 100, "1 22 333\n" * 100, "x" * 1000, "x  y   z\n\n\n" * 50, " " * 500, ""],
    ids=["english", "chinese", "words", "numbers", "one word", "spaces", "only spaces", "empty"],
)
def test_pieces_of_any_size_keep_the_ids(tokenizer: Tokenizer, text: str) -> None:
    whole = tokenizer.encode(text).tolist()
    for size in range(1, 60):
        assert joined(tokenizer.encode(part) for part in cut(text, tokenizer.pattern, size)) == whole


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, CL100K_PATTERN], ids=["gpt2", "cl100k"])
@settings(deadline=None, max_examples=300)
@given(text=st.one_of(AWKWARD, st.text(), st.text("aA'sS1é²\u0301語 \t\r\n\u00a0\u3000._/", max_size=30)))
def test_the_faster_pattern_cuts_every_text_as_its_original_does(bpe: Tokenizer, pattern: str, text: str) -> None:
    assert faster(pattern) != pattern
    plain = tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=bpe.ranks, special_tokens={})
    assert replace(bpe, pattern=pattern).encode(text).tolist() == plain.encode_ordinary(text)


KINDS = {
    "english": "the river runs " * 1000,
    "numbers": "1 22 333 12\n" * 1000,
    "chinese lines": "語言模型讀很多書，然後預測下一個字。\n" * 500,
    "japanese": "川は海へ流れる。「そうだ」と彼は言った！？" * 500,
    "base64": base64.b64encode(bytes(range(256)) * 40).decode(),
    "json lines": '{"id":17,"words":["a","b"],"ok":true}\n' * 300,
    "symbols and line breaks": "…。\n—\n" * 1000,
    "emoji": "👩‍👩‍👧🙂\r\n" * 1000,
    "combining marks": "e\u0301\u0302a\u0301" * 1000,
    "white space between words": ("x" + " " * 150) * 50,
}


@pytest.mark.parametrize("text", KINDS.values(), ids=KINDS)
def test_any_kind_of_text_is_cut_into_pieces_of_bounded_size_with_its_ids(tokenizer: Tokenizer, text: str) -> None:
    parts = list(cut(blocks(text, 77), tokenizer.pattern, 200))
    assert joined(map(tokenizer.encode, parts)) == tokenizer.encode(text).tolist()
    longest = max(map(len, split(tokenizer.pattern, text)))
    assert max(map(len, parts)) <= 400 + 4 * longest


def test_a_long_word_is_not_cut_and_not_rescanned_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    place = word_end(GPT2_PATTERN)

    def counting(pattern: str) -> Callable[[str, int], int | None]:
        return lambda text, least: (looked_at.append(len(text)), place(text, least))[1]

    monkeypatch.setattr("pipeline.data.patterns.word_end", counting)
    assert list(cut(["endless"] * 3000, GPT2_PATTERN, 10)) == ["endless" * 3000]
    assert sum(looked_at) <= 3 * len("endless" * 3000)


@pytest.mark.parametrize("letter", ["x", " ", "語", "\n"])
def test_a_word_that_is_too_long_to_encode_is_an_error_that_names_it(
    letter: str, monkeypatch: pytest.MonkeyPatch, bpe: Tokenizer
) -> None:
    monkeypatch.setattr("pipeline.data.patterns.LONGEST_WORD", 1000)
    with pytest.raises(DataError, match=r"'novel'.*1,000 characters"):
        list(encode([Document("novel", blocks("It was " + 600_000 * letter + "!", 10_000))], bpe, 1))


@pytest.mark.parametrize("run", [" ", "\n", "\u3000", "\t \n"])
def test_a_million_spaces_in_a_text_are_encoded(run: str) -> None:
    tokenizer = train_bpe(["a" + run * 50 + "b"], 300)
    text = f"before{run * 1_000_000}after"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # As the same text is cut where the run is short enough for one regular expression.
    short = f"before{run * 3000}after"
    one_word = [tokenizer.encode(word) for word in split(tokenizer.pattern, short)]
    assert joined(one_word) == tokenizer.encode(short).tolist()


def test_a_pattern_that_never_ends_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.patterns.SECONDS", 0.1)
    with pytest.raises(ValueError, match=r"\(a\+\)\+.*0 s"):
        split(r"(a+)+(a+)+(a+)+(?=!)|.", "a" * 5000)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?<=x)y+|[\s\S]", "xyyy" * 100),
        (r"^ab|[\s\S]", "ab" * 100),
        (r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)|[^\p{N}]", "1234567 " * 50 + "8" * 299),
    ],
    ids=["looks behind", "begins", "looks ahead"],
)
def test_words_that_depend_on_their_context_are_cut_as_in_the_whole_text(pattern: str, text: str) -> None:
    for size in (16, 33, 64):
        parts = list(cut(text, pattern, size))
        assert len(parts) > 1
        assert [word for part in parts for word in split(pattern, part)] == split(pattern, text)


def documents() -> Iterator[Document]:
    yield Document("large", ENGLISH * (3 * PIECE // len(ENGLISH)))
    yield Document("empty", "")
    yield Document("blocks", iter(["the ri", "ver ru", "ns to 語", "言", END_OF_TEXT]))
    for number in range(30):
        yield Document(f"small-{number}", f"text number {number}: {CHINESE[number:]}")


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_keep_the_order_and_the_ids_of_every_document(bpe: Tokenizer, threads: int) -> None:
    found: dict[str, list[int]] = {}
    for piece, ids, _ in encode(documents(), bpe, threads):
        found.setdefault(piece.document.name, []).extend(ids.tolist())
    expected = {document.name: bpe.encode("".join(document.text)).tolist() for document in documents()}
    assert list(found) == list(expected)
    assert found == expected


def test_each_document_has_exactly_one_last_piece(bpe: Tokenizer) -> None:
    last = [piece.document.name for piece, _, _ in encode(documents(), bpe, 2) if piece.last]
    assert last == [document.name for document in documents()]


def test_text_that_the_tokenizer_cannot_read_names_its_document(bpe: Tokenizer) -> None:
    broken = [Document("fine", "the river"), Document("half a pair", "a \ud800 b")]
    with pytest.raises(DataError, match="half a pair"):
        list(encode(broken, bpe, 1))


@settings(deadline=None)
@given(text=st.one_of(AWKWARD, st.text()))
def test_decoding_gives_the_text_back(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert int(bpe.byte_lengths[ids].sum()) == len(text.encode())


def test_characters_never_seen_in_training_become_their_bytes() -> None:
    tokenizer = train_bpe(["abc abc abc"], 260)
    ids = tokenizer.encode("🙂")
    assert [tokenizer.token_bytes[token] for token in ids] == [bytes([byte]) for byte in "🙂".encode()]
    assert tokenizer.decode(ids) == "🙂"
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_training_gives_the_256_bytes_the_merges_and_end_of_text_as_the_last_id() -> None:
    tokenizer = train_bpe([ENGLISH], 300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.end_of_text == 299
    assert sorted(tokenizer.ranks.values()) == list(range(299))
    assert {bytes([byte]) for byte in range(256)} <= set(tokenizer.ranks)


def test_training_twice_gives_the_same_tokenizer(bpe: Tokenizer) -> None:
    assert train_bpe([ENGLISH, CHINESE], 600).fingerprint == bpe.fingerprint


def test_training_on_cut_pieces_gives_the_same_tokenizer(bpe: Tokenizer) -> None:
    assert (
        train_bpe([*cut(ENGLISH, GPT2_PATTERN, 50), *cut(CHINESE, GPT2_PATTERN, 50)], 600).fingerprint
        == bpe.fingerprint
    )


def test_a_text_that_looks_like_end_of_text_is_ordinary_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"before{END_OF_TEXT}after")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == f"before{END_OF_TEXT}after"


def test_end_of_text_is_no_text_in_bytes(bpe: Tokenizer) -> None:
    assert bpe.byte_lengths[bpe.end_of_text] == 0
    assert bpe.decode_bytes([bpe.end_of_text]) == END_OF_TEXT.encode()


def test_a_saved_tokenizer_loads_as_it_was(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", "tokenize again")
    assert loaded == bpe
    assert loaded.fingerprint == bpe.fingerprint
    assert loaded.encode(ENGLISH + CHINESE).tolist() == bpe.encode(ENGLISH + CHINESE).tolist()


@pytest.mark.parametrize("change", [{"pattern": r"\s|\S+"}, {"special_tokens": {END_OF_TEXT: 7}}, {"ranks": []}])
def test_a_tokenizer_altered_on_disk_is_refused(bpe: Tokenizer, tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="tokenize again"):
        Tokenizer.load(path, "tokenize again")


def test_tokenizing_ends_each_document_with_exactly_one_end_of_text(project: Project) -> None:
    raw = project.root / "data" / "raw"
    (raw / "literal.txt").write_text(f"It ends {END_OF_TEXT} twice {END_OF_TEXT}", encoding="utf-8")
    (raw / "empty.txt").write_text("")
    project.succeed("tokenize")
    tokens = TokenFolder(project.root / "artifacts" / "tokens", "")
    ids, tokenizer = tokens.ids("tokens"), tokens.tokenizer
    entries = list(tokens.documents("tokens"))
    ends = [entry.start + entry.tokens - 1 for entry in entries]
    assert np.flatnonzero(ids == tokenizer.end_of_text).tolist() == ends
    for entry, end in zip(entries, ends, strict=True):
        assert tokenizer.decode(ids[entry.start : end]) == (raw / entry.name).read_text(encoding="utf-8")
    assert {entry.name for entry in entries} == {path.name for path in raw.iterdir()} - {"empty.txt"}


@pytest.fixture
def gpt2(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken"))
    return published("gpt2")


def test_the_published_gpt2_gives_its_known_ids(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.encode("Every effort moves you").tolist() == [6109, 3626, 6100, 345]


def test_the_published_gpt2_encodes_a_book_in_pieces_as_it_does_whole(gpt2: Tokenizer, test_data: Path) -> None:
    text = (test_data / "the-verdict.txt").read_text(encoding="utf-8")
    whole = gpt2.encode(text).tolist()
    assert len(whole) == 5145
    for size in (64, 1000, 5000):
        assert joined(gpt2.encode(part) for part in cut(text, gpt2.pattern, size)) == whole


@given(st.text(max_size=40))
def test_raw_bytes_are_the_texts_utf_8(text: str) -> None:
    assert raw_bytes().encode(text).tolist() == list(text.encode())
    assert raw_bytes().decode(raw_bytes().encode(text)) == text


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(AWKWARD, st.text(max_size=5)), max_size=6))
def test_white_space_does_not_count_in_the_digest_of_a_text(parts: list[str]) -> None:
    digest = TextDigest()
    for part in parts:
        digest.update(part)
    dense = "".join("".join(parts).split()).encode()
    assert digest.value == (hashlib.blake2b(dense, digest_size=16).hexdigest() if dense else None)
    assert digest.text_bytes == len("".join(parts).encode())


def test_each_white_space_of_unicode_is_left_out_of_the_digest_and_nothing_else() -> None:
    for character in map(chr, [*range(0xD800), *range(0xE000, 0x11000), sys.maxunicode]):
        digest = TextDigest()
        digest.update(character)
        assert (digest.value is None) == character.isspace(), hex(ord(character))
    assert not any(chr(code).isspace() for code in range(0x11000, sys.maxunicode + 1))


@pytest.mark.parametrize("specials", [{END_OF_TEXT: 600}, {END_OF_TEXT: 600, '"語"\\': 601}])
def test_a_tokenizer_is_saved_as_a_line_of_plain_json(
    bpe: Tokenizer, tmp_path: Path, specials: dict[str, int]
) -> None:
    tokenizer = replace(bpe, special_tokens=specials)
    tokenizer.save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), ensure_ascii=False) + "\n"
    ranks = [[base64.b64encode(sequence).decode(), rank] for sequence, rank in tokenizer.ranks.items()]
    assert json.loads(text)["ranks"] == sorted(ranks, key=lambda pair: pair[1])
