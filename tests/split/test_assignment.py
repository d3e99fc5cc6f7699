"""Train, validation and test: nothing lost, nothing twice, and no document in two splits."""

from __future__ import annotations

import itertools
import tempfile
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Project, made_up_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.data.index import SPLITS
from pipeline.data.patterns import GPT2_PATTERN, cut
from pipeline.data.token_writer import TokenWriter
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.data.tokens import TokenFolder, finish_folder
from pipeline.plugin.splits import split_of
from pipeline.split.assignment import Part, by_document, by_position, predefined
from pipeline.split.duplicates import find_duplicates

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" r": 258, " é".encode()[:2]: 259}
TOKENIZER = Tokenizer("small", GPT2_PATTERN, RANKS, {END_OF_TEXT: 260})
TEXTS = {"a": "the river runs", "b": "the sea é 語言", "c": "the", "d": "light and the stone"}
SHARES = st.tuples(st.floats(0.01, 0.6), st.floats(0, 0.39))


def write(folder: Path, texts: dict[str, str]) -> TokenFolder:
    with TokenWriter(folder, "tokens", TOKENIZER) as writer:
        for name, text in texts.items():
            writer.write(np.append(TOKENIZER.encode(text), TOKENIZER.end_of_text))
            writer.end_document(name, len(text.encode()))
    counts = {"tokens": writer.counts}
    finish_folder(folder, TOKENIZER, {"tokens": writer.summary()}, params={}, counts=counts)
    return TokenFolder(folder, "")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFolder:
    return write(tmp_path_factory.mktemp("tokens"), TEXTS)


def kept(parts: Iterable[Part]) -> list[Part]:
    """The parts with their ids in memory."""
    return [replace(part, blocks=list(part.blocks)) for part in parts]


def ids_of(parts: list[Part], split: str | None = None) -> list[int]:
    chosen = [part for part in parts if split in (None, part.split)]
    return [int(token) for part in chosen for ids, _ in part.blocks for token in ids]


def text_of(parts: list[Part], split: str | None = None) -> str:
    return TOKENIZER.decode(token for token in ids_of(parts, split) if token != TOKENIZER.end_of_text)


def test_a_document_keeps_its_split_if_other_documents_change(tmp_path: Path) -> None:
    many = {f"text-{number}": f"the river {number}" for number in range(40)}
    few = dict(itertools.islice(many.items(), 0, None, 3))
    splits = []
    for name, texts in (("many", many), ("few", few)):
        (tmp_path / name).mkdir()
        tokens = write(tmp_path / name, texts)
        splits.append({part.name: part.split for part in by_document(tokens, 2, 0.3, 0.2).parts(tokens)})
    assert splits[1] == {name: splits[0][name] for name in few}
    assert set(splits[0].values()) == set(SPLITS)


def test_the_share_of_documents_in_each_split_is_near_its_param() -> None:
    splits = [split_of(f"document {number}", 1, 0.1, 0.2) for number in range(5000)]
    assert splits.count("val") / 5000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 5000 == pytest.approx(0.2, abs=0.02)


def test_another_seed_holds_out_other_documents() -> None:
    first, second = ([split_of(str(n), seed, 0.3, 0.3) for n in range(100)] for seed in (1, 2))
    assert first != second


def test_a_test_share_of_0_puts_no_document_there() -> None:
    assert "test" not in {split_of(str(number), 1, 0.5, 0.0) for number in range(1000)}


@settings(deadline=None)
@given(shares=SHARES, seed=st.integers(0, 2**63 - 1))
def test_splitting_by_document_keeps_each_document_in_one_split(
    tokens: TokenFolder, shares: tuple[float, float], seed: int
) -> None:
    parts = list(by_document(tokens, seed, *shares).parts(tokens))
    assert [part.name for part in parts] == list(TEXTS)
    assert ids_of(parts) == tokens.ids("tokens").tolist()


@settings(deadline=None)
@given(shares=SHARES, unit=st.sampled_from(["tokens", "characters"]))
def test_splitting_by_position_keeps_the_order_and_loses_nothing(
    tokens: TokenFolder, shares: tuple[float, float], unit: str
) -> None:
    parts = kept(by_position(tokens, unit, *shares).parts(tokens))
    order = [SPLITS.index(part.split) for part in parts]
    assert order == sorted(order)
    assert text_of(parts) == "".join(TEXTS.values())
    assert ids_of(parts).count(TOKENIZER.end_of_text) == len(TEXTS)
    if unit == "tokens":
        assert ids_of(parts) == tokens.ids("tokens").tolist()


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5),
    shares=SHARES,
    unit=st.sampled_from(["tokens", "characters"]),
)
def test_any_texts_can_be_split_by_position(texts: list[str], shares: tuple[float, float], unit: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = {str(number): text for number, text in enumerate(texts)}
        tokens = write(Path(folder), named)
        parts = kept(by_position(tokens, unit, *shares).parts(tokens))
        ids, text = ids_of(parts), text_of(parts)
    if unit == "tokens":
        assert len(ids) == sum(len(TOKENIZER.encode(text)) + 1 for text in texts)
    else:
        assert text == "".join(texts)


@pytest.mark.parametrize(("val", "test", "sizes"), [(0.05, 0.05, (900, 50, 50)), (0.1, 0.0, (900, 100, 0))])
@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_a_thousand_are_cut_where_the_shares_say(
    tmp_path: Path, unit: str, val: float, test: float, sizes: tuple[int, ...]
) -> None:
    length = 999 if unit == "tokens" else 1000  # end-of-text is a token and no character
    tokens = write(tmp_path, {"one": "x" * length})
    parts = kept(by_position(tokens, unit, val, test).parts(tokens))
    found = {split: len(ids_of(parts, split) if unit == "tokens" else text_of(parts, split)) for split in SPLITS}
    assert tuple(found.values()) == sizes


def test_cutting_by_characters_gives_the_ids_of_a_text_that_was_cut_first(tmp_path: Path) -> None:
    text = "the river runs to the sea, and the stone listens " * 3  # cuts fall inside words and tokens
    tokens = write(tmp_path, {"one": text})
    parts = kept(by_position(tokens, "characters", 0.1, 0.0).parts(tokens))
    place = int(0.9 * len(text))
    assert ids_of(parts, "train") == TOKENIZER.encode(text[:place]).tolist()
    assert ids_of(parts, "val") == [*TOKENIZER.encode(text[place:]).tolist(), TOKENIZER.end_of_text]


@pytest.mark.parametrize("missing", [0, 12, -1], ids=["at the beginning", "inside", "at the end"])
def test_ids_that_are_not_utf8_are_cut_by_tokens_only(missing: int, tmp_path: Path) -> None:
    ids = np.frombuffer("é the sea, é 語言 and é語".encode(), dtype=np.uint8)
    with TokenWriter(tmp_path, "tokens", TOKENIZER) as writer:
        writer.write(np.delete(ids, missing))
        writer.end_document("made", len(ids) - 1)
    finish_folder(tmp_path, TOKENIZER, {"tokens": writer.summary()}, params={}, counts={"tokens": writer.counts})
    tokens = TokenFolder(tmp_path, "")
    with pytest.raises(DataError, match=r"'made'.*split.unit: tokens"):
        kept(by_position(tokens, "characters", 0.5, 0.2).parts(tokens))
    assert len(ids_of(kept(by_position(tokens, "tokens", 0.5, 0.2).parts(tokens)))) == len(ids) - 1


@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_a_document_at_the_cut_may_be_larger_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr("pipeline.data.tokens._BLOCK", 1 << 12)
    monkeypatch.setattr("pipeline.split.assignment._AT_ONCE", 1 << 12)
    monkeypatch.setattr("pipeline.split.assignment.cut", lambda text, pattern: cut(text, pattern, 1 << 12))
    peaks = []
    for repeats in (5, 25):
        folder = tmp_path / str(repeats)
        folder.mkdir()
        tokens = write(folder, {"one": "the river runs to the sea of stone and light é\n" * 100 * repeats})
        tracemalloc.start()
        parts = by_position(tokens, unit, 0.3, 0.2).parts(tokens)
        written = sum(len(ids) for part in parts for ids, _ in part.blocks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert written >= len(tokens.ids("tokens"))
    assert peaks[1] < 1.5 * peaks[0]


def test_a_split_that_is_read_in_pieces_has_the_ids_of_its_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.tokens._BLOCK", 7)
    monkeypatch.setattr("pipeline.split.assignment._AT_ONCE", 7)
    monkeypatch.setattr("pipeline.split.assignment.cut", lambda text, pattern: cut(text, pattern, 5))
    text = "the river é runs to the 語言 sea, and the stone listens\n\n  " * 5
    tokens = write(tmp_path, {"before": "the", "one": text})
    parts = kept(by_position(tokens, "characters", 0.3, 0.2).parts(tokens))
    assert text_of(parts) == "the" + text
    for part in parts[1:]:
        own = text_of([part])
        assert ids_of([part])[: len(TOKENIZER.encode(own))] == TOKENIZER.encode(own).tolist()
    assert ids_of(parts)[-1] == TOKENIZER.end_of_text


@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_each_entrys_bytes_are_its_texts(project: Project, unit: str) -> None:
    raw = project.root / "data" / "raw"
    (raw / "text-08.txt").write_text("the sea é 語言 " * 300, encoding="utf-8")
    project.succeed("tokenize")
    project.succeed("split", "--set", "split.by=position", "--set", f"split.unit={unit}")
    splits = TokenFolder(project.root / "artifacts" / "splits", "")
    total = 0
    for split in splits.names:
        for entry in splits.documents(split):
            ids = splits.ids(split)[entry.start : entry.start + entry.tokens]
            text = splits.tokenizer.decode_bytes(ids[ids != splits.tokenizer.end_of_text])
            assert entry.bytes == len(text)
            total += entry.bytes
    assert total == sum(path.stat().st_size for path in raw.iterdir())


def test_the_split_stage_puts_no_document_on_two_splits(trained: Path) -> None:
    splits = TokenFolder(trained / "artifacts" / "splits", "")
    names = {split: {entry.name for entry in splits.documents(split)} for split in splits.names}
    assert all(names.values())
    assert not any(names[one] & names[other] for one, other in itertools.combinations(names, 2))
    tokens = TokenFolder(trained / "artifacts" / "tokens", "")
    assert set().union(*names.values()) == {entry.name for entry in tokens.documents("tokens")}


# ── predefined ────────────────────────────────────────────────────────────────────────────────────


def write_splits(folder: Path, splits: dict[str, str | None]) -> TokenFolder:
    with TokenWriter(folder, "tokens", TOKENIZER) as writer:
        for name, split in splits.items():
            writer.write(TOKENIZER.encode(f"the text {name}"))
            writer.end_document(name, len(f"the text {name}".encode()), split)
    counts = {"tokens": writer.counts}
    finish_folder(folder, TOKENIZER, {"tokens": writer.summary()}, params={}, counts=counts)
    return TokenFolder(folder, "")


def test_predefined_keeps_the_splits_of_the_corpus(tmp_path: Path) -> None:
    given: dict[str, str | None] = {"a": "train", "b": "val", "c": "train", "d": "test"}
    tokens = write_splits(tmp_path, given)
    assert {part.name: part.split for part in predefined(tokens).parts(tokens)} == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"a": "train", "b": None, "c": "val", "d": None},
            r"b, d are not in .*found: train 1, val 1, test 0 documents",
        ),
        ({"a": "train", "d": "test"}, r"no document is in the split val \(found: train 1, val 0, test 1"),
        ({"a": "val"}, "no document is in the split train"),
    ],
)
def test_predefined_says_what_was_found_when_a_split_is_missing(
    tmp_path: Path, given: dict[str, str | None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        predefined(write_splits(tmp_path, given))


def test_folders_and_files_named_after_splits_are_assigned_to_them(project: Project) -> None:
    raw = project.root / "data" / "raw"
    for number, path in enumerate(sorted(raw.glob("*.txt"))):
        split = ("train", "train", "train", "Validation")[number % 4]
        (raw / split).mkdir(exist_ok=True)
        path.rename(raw / split / path.name)
    (raw / "test.md").write_text(made_up_text(99, 300))
    project.succeed("tokenize")
    project.succeed("split", "--set", "split.by=predefined")
    splits = TokenFolder(project.root / "artifacts" / "splits", "")
    names = {split: {entry.name.split("/")[0] for entry in splits.documents(split)} for split in splits.names}
    assert names == {"train": {"train"}, "val": {"Validation"}, "test": {"test.md"}}
    (raw / "test.md").unlink()
    project.succeed("tokenize")
    project.succeed("split", "--set", "split.by=predefined")
    assert TokenFolder(project.root / "artifacts" / "splits", "").names == ["train", "val"]


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────


def found(*placed: tuple[str, str, str | None]) -> tuple[list[str], list[bool]]:
    """The duplicates among documents of (split, name, digest), as they are listed, and as flags."""
    with tempfile.TemporaryDirectory() as folder:
        with TokenWriter(Path(folder), "tokens", TOKENIZER) as writer:
            for split, name, digest in placed:
                writer.write(np.array([1, 2]))
                writer.end_document(name, 2, split, digest and digest * 32)
        finish_folder(Path(folder), TOKENIZER, {"tokens": writer.summary()}, params={})
        places = np.array([SPLITS.index(split) for split, *_ in placed], np.uint8)
        duplicates = find_duplicates(TokenFolder(Path(folder), ""), places)
    assert len(duplicates) == sum(duplicates.found)
    return [str(each) for each in duplicates.listed], duplicates.found.tolist()


def test_the_more_strictly_held_out_split_keeps_a_duplicate() -> None:
    listed, _ = found(
        ("train", "a", "1"), ("train", "b", "2"), ("val", "c", "1"), ("val", "d", "3"), ("test", "e", "3"),
        ("test", "f", "1"), ("train", "g", "2"), ("train", "h", None), ("val", "i", None), ("test", "j", None),
        ("test", "k", "1"), ("val", "l", "4"), ("train", "m", "4"), ("val", "n", "4"),
    )  # fmt: skip
    assert listed == ["a (train) = f (test)", "c (val) = f (test)", "d (val) = e (test)", "m (train) = l (val)"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from("12345")), min_size=1, max_size=30))
def test_without_its_duplicates_no_text_is_on_two_splits(placed: list[tuple[str, str]]) -> None:
    _, twins = found(*((split, str(number), digest) for number, (split, digest) in enumerate(placed)))
    left = [each for each, twin in zip(placed, twins, strict=True) if not twin]
    assert {digest for _, digest in left} == {digest for _, digest in placed}
    for one, other in itertools.combinations(SPLITS, 2):
        texts = [{digest for place, digest in left if place == split} for split in (one, other)]
        assert not texts[0] & texts[1]


def test_only_the_first_of_many_duplicates_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.split.duplicates.MOST_LISTED", 2)
    monkeypatch.setattr("pipeline.data.index._RECORDS", 3)
    texts = [("train", str(number), "1") for number in range(7)]
    listed, twins = found(*texts, ("test", "kept", "1"))
    assert listed == ["0 (train) = kept (test)", "1 (train) = kept (test)"]
    assert sum(twins) == 7


def test_a_split_that_gets_far_less_than_its_share_is_reported(project: Project) -> None:
    raw = project.root / "data" / "raw"
    settings = ("--set", "split.seed=1", "--set", "split.val=0.2", "--set", "split.test=0.2")
    for path in sorted(raw.glob("*.txt")):
        held_out = split_of(path.name, 1, 0.2, 0.2)
        path.write_text("A short one." if held_out == "val" else "A much longer text, word by word by word. " * 20)
    project.succeed("tokenize")
    said = project.succeed("split", *settings).out
    (note,) = [line for line in said.splitlines() if line.startswith("note: val")]
    assert "split.val" in note
    assert "note: test" not in said


def test_a_planted_duplicate_is_reported_and_removed_when_asked(project: Project) -> None:
    raw = project.root / "data" / "raw"
    for split in ("train", "val"):
        (raw / split).mkdir()
    for path in sorted(raw.glob("*.txt")):
        path.rename(raw / ("val" if path.name < "text-03" else "train") / path.name)
    text = (raw / "val" / "text-01.txt").read_text()
    (raw / "train" / "copy.txt").write_text(
        "\r\n" + text.replace(" ", "  ", 3) + "\n"
    )  # white space does not count
    project.succeed("tokenize")
    said = project.succeed("split", "--set", "split.by=predefined")
    assert "train/copy.txt (train) = val/text-01.txt (val)" in said.out
    meta = TokenFolder(project.root / "artifacts" / "splits", "").meta
    assert [(twin["name"], twin["kept_name"]) for twin in meta["duplicates"]] == [
        ("train/copy.txt", "val/text-01.txt")
    ]
    said = project.succeed("split", "--set", "split.by=predefined", "--set", "split.duplicates=remove")
    assert "removed" in said.out
    splits = TokenFolder(project.root / "artifacts" / "splits", "")
    assert "train/copy.txt" not in {entry.name for entry in splits.documents("train")}
    assert "val/text-01.txt" in {entry.name for entry in splits.documents("val")}


# ── as other trainers read them ───────────────────────────────────────────────────────────────────


def test_nanogpts_loader_reads_the_split_files(trained: Path) -> None:
    """A transcription of what it needs: np.memmap of raw uint16, and windows at any place."""
    folder = trained / "artifacts" / "splits"
    splits = TokenFolder(folder, "")
    for split in ("train", "val"):
        data = np.memmap(folder / f"{split}.bin", dtype=np.uint16, mode="r")
        assert np.array_equal(data, splits.ids(split))
        block_size, generator = 16, np.random.default_rng(0)
        order = generator.integers(len(data) - block_size, size=4)
        x = np.stack([data[place : place + block_size].astype(np.int64) for place in order])
        y = np.stack([data[place + 1 : place + 1 + block_size].astype(np.int64) for place in order])
        assert np.array_equal(x[:, 1:], y[:, :-1])
        assert x.max() < splits.tokenizer.vocab_size
    text = "".join(
        (trained / "data" / "raw" / entry.name).read_text() for entry in splits.documents("train")
    )  # fmt: skip
    data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
    assert splits.tokenizer.decode(data[data != splits.tokenizer.end_of_text]) == text
