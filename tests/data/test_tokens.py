"""Token folders: files of several shards, documents that go on from one shard to the next, and damage."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.files import write_manifest
from pipeline.data.index import RECORD, IndexEntry, index_path, name_hash
from pipeline.data.token_writer import TokenWriter, shard_stem
from pipeline.data.tokens import TokenFolder, finish_folder
from pipeline.tokenize.vocabulary import raw_bytes

TOKENIZER = raw_bytes()
V = TOKENIZER.vocab_size


def write(folder: Path, *shards: Sequence[tuple[str, str, bool]], split: str | None = None) -> TokenFolder:
    """Writes shards of (name, text, continues); a text that ends gets an end-of-text."""
    totals, counts = {"tokens": 0, "documents": 0, "bytes": 0}, np.zeros(V, np.int64)
    for number, documents in enumerate(shards):
        with TokenWriter(folder, shard_stem("tokens", number, len(shards)), TOKENIZER) as writer:
            for name, text, continues in documents:
                writer.write(TOKENIZER.encode(text))
                if not continues:
                    writer.write(np.array([TOKENIZER.end_of_text], np.uint32))
                writer.end_document(name, len(text), split, text.encode().hex().ljust(32, "0"), continues)
        totals = {key: totals[key] + value for key, value in writer.summary().items()}
        counts += writer.counts
    finish_folder(
        folder, TOKENIZER, {"tokens": totals | {"shards": len(shards)}}, params={}, counts={"tokens": counts}
    )
    return TokenFolder(folder, "make it again")


SHARDS = (
    [("a", "one", False), ("b", "tw", True)],
    [("b", "o th", True)],
    [("b", "ree", False), ("c", "four", False)],
    [("d", "five", False)],
)


def ids_of(text: str) -> list[int]:
    return [*text.encode(), TOKENIZER.end_of_text]


ALL = [*ids_of("one"), *ids_of("two three"), *ids_of("four"), *ids_of("five")]


def test_a_document_over_three_shards_is_one_document(tmp_path: Path) -> None:
    tokens = write(tmp_path, *SHARDS, split="val")
    entries = list(tokens.documents("tokens"))
    assert [(each.name, each.start, each.tokens, each.bytes, each.split) for each in entries] == [
        ("a", 0, 4, 3, "val"), ("b", 4, 10, 9, "val"), ("c", 14, 5, 4, "val"), ("d", 19, 5, 4, "val"),
    ]  # fmt: skip
    for entry, text in zip(entries, ("one", "two three", "four", "five"), strict=True):
        found = [int(each) for ids in tokens.blocks("tokens", entry.start, entry.end) for each in ids]
        assert found == ids_of(text)
    assert entries[0].digest == b"one".hex().ljust(32, "0")
    assert len({each.digest for each in entries}) == 4


def test_the_digest_of_a_document_in_parts_depends_on_every_part(tmp_path: Path) -> None:
    digests = set()
    for number, (one, two, three) in enumerate(
        [("a", "b", "c"), ("x", "b", "c"), ("a", "x", "c"), ("a", "b", "x")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        shards = [[("doc", one, True)], [("doc", two, True)], [("doc", three, False)]]
        [entry] = write(folder, *shards).documents("tokens")
        digests.add(entry.digest)
    assert len(digests) == 4
    assert None not in digests


def test_the_ids_of_several_shards_are_one_sequence(tmp_path: Path) -> None:
    tokens = write(tmp_path, *SHARDS)
    ids = tokens.ids("tokens")
    assert len(ids) == len(ALL)
    assert np.asarray(ids).tolist() == ALL
    for start in range(-1, len(ALL) + 1):
        for end in range(-1, len(ALL) + 2):
            assert ids[start:end].tolist() == ALL[start:end]
    assert [int(ids[number]) for number in (0, 5, -1)] == [ALL[0], ALL[5], ALL[-1]]
    assert ids[::-3].tolist() == ALL[::-3]
    with pytest.raises(IndexError):
        ids[len(ALL)]


def test_the_counts_are_those_of_all_ids(tmp_path: Path) -> None:
    assert write(tmp_path, *SHARDS).counts("tokens").tolist() == np.bincount(ALL, minlength=V).tolist()


def test_many_documents_in_small_blocks_are_read_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.index._RECORDS", 7)
    monkeypatch.setattr("pipeline.data.tokens._BLOCK", 5)
    names = [f"{number}\n\u2028\x00é\\" for number in range(50)]
    documents = [(name, name.encode().hex(), False) for name in names]
    tokens = write(tmp_path, documents[:20], [], documents[20:])
    assert [entry.name for entry in tokens.documents("tokens")] == names
    assert np.asarray(tokens.ids("tokens")).tolist() == [each for _, text, _ in documents for each in ids_of(text)]


def test_the_index_is_a_plain_npy_file(tmp_path: Path) -> None:
    write(tmp_path, [("a", "one", False), ("b", "two", False)])
    records = np.load(index_path(tmp_path, "tokens-00000-of-00001"))
    assert records.dtype == RECORD
    assert records["start"].tolist() == [0, 4]
    assert records["name_hash"].tolist() == [name_hash("a"), name_hash("b")]


def test_an_id_beyond_the_vocabulary_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=rf"tokens.bin holds token id {V + 3}, but the vocabulary has {V}"),
        TokenWriter(tmp_path, "tokens", TOKENIZER) as writer,
    ):
        writer.write(np.array([V + 3], np.uint32))


# ── damage ────────────────────────────────────────────────────────────────────────────────────────

FIRST, SECOND, LAST = (shard_stem("tokens", number, 4) for number in (0, 1, 3))


def record(stem: str, number: int, field: str, value: Any) -> Callable[[Path], None]:
    """Changes a field of a record."""

    def change(folder: Path) -> None:
        records = np.load(index_path(folder, stem))
        records[field][number] = value
        np.save(index_path(folder, stem), records)

    return change


def content(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the content of a file."""

    def changed(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return changed


def replaced(file: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    return content(file, lambda whole: whole.replace(old, new))


def saved(file: str, array: Any) -> Callable[[Path], None]:
    """Writes another array into a file."""
    return lambda folder: np.save(folder / file, array, allow_pickle=True)


def removed(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def meta(**changes: Any) -> Callable[[Path], None]:
    """Changes values of meta.json."""
    return content("meta.json", lambda old: json.dumps({**json.loads(old), **changes}).encode())


def files(**changes: Any) -> Callable[[Path], None]:
    """Changes what meta.json says about the tokens."""
    return meta(files={"tokens": {"tokens": 24, "documents": 4, "bytes": 20, "shards": 4} | changes})


TOTALS = {"tokens": 24, "documents": 4, "bytes": 20}
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no shard": (removed(f"{FIRST}.bin"), r"tokens-\*.bin has 36 bytes"),
    "truncated ids": (content(f"{LAST}.bin", lambda old: old[:-2]), "but meta.json says 24 tokens"),
    "no index": (removed(f"{SECOND}.idx.npy"), f"{SECOND}.idx.npy is missing"),
    "no names": (removed(f"{SECOND}.names.jsonl"), f"{SECOND}.names.jsonl is missing"),
    "no counts": (removed("tokens.counts.npy"), "tokens.counts.npy is missing"),
    "truncated index": (content(f"{FIRST}.idx.npy", lambda old: old[:-1]), f"{FIRST}.idx.npy is damaged"),
    "truncated header": (content(f"{FIRST}.idx.npy", lambda old: old[:20]), f"{FIRST}.idx.npy is damaged"),
    "empty index": (content(f"{FIRST}.idx.npy", lambda old: b""), f"{FIRST}.idx.npy is damaged"),
    "an open bracket": (replaced(f"{FIRST}.idx.npy", b"}", b" "), f"{FIRST}.idx.npy is damaged"),
    "a header of no types": (replaced(f"{FIRST}.idx.npy", b"'<u8'", b"'<q9'"), "is damaged"),
    "another format": (content(f"{FIRST}.idx.npy", lambda old: b"\x93NUMPY\x02\x00" + old[8:]), "another version"),
    "other fields": (saved(f"{FIRST}.idx.npy", np.zeros(2)), "other fields"),
    "a matrix": (saved(f"{FIRST}.idx.npy", np.zeros((1, 1), RECORD)), f"{FIRST}.idx.npy is damaged"),
    "objects": (saved(f"{FIRST}.idx.npy", np.array([{}, {}])), f"{FIRST}.idx.npy is damaged"),
    "fewer records": (saved(f"{FIRST}.idx.npy", np.zeros(0, RECORD)), "has 0 records with 0 tokens"),
    "a gap": (record(FIRST, 1, "start", 5), "record 1 starts at token 5"),
    "a wrapped start": (record(FIRST, 1, "start", 2**64 - 4), "record 1 starts"),
    "too few tokens": (record(LAST, 0, "tokens", 4), "with 4 tokens, but there are 5"),
    "no tokens": (record(FIRST, 0, "tokens", 0), "record 0 starts at token 0 and has 0 tokens"),
    "too many tokens": (record(FIRST, 0, "tokens", 2**63), "record 0 starts"),
    "another split": (record(FIRST, 0, "split", 4), "record 0"),
    "a document in the middle goes on": (record(FIRST, 0, "continues", 1), "before the last one continues"),
    "the last document goes on": (record(LAST, 0, "continues", 1), f"{LAST}.idx.npy is damaged"),
    "another document follows": (record(SECOND, 0, "name_hash", 3), f"{SECOND}.idx.npy is damaged"),
    "another name": (content(f"{LAST}.names.jsonl", lambda old: b'"x"\n'), "'x' is not the name of"),
    "fewer names": (content(f"{LAST}.names.jsonl", lambda old: b""), f"{LAST}.names.jsonl has 0 names"),
    "more names": (content(f"{LAST}.names.jsonl", lambda old: old * 2), f"{LAST}.names.jsonl has 2 names"),
    "a name that is no text": (content(f"{LAST}.names.jsonl", lambda old: b"3\n"), "line 1 is damaged"),
    "a name that is no JSON": (content(f"{LAST}.names.jsonl", lambda old: b"[" * 9999), "line 1 is damaged"),
    "a name that is not UTF-8": (content(f"{LAST}.names.jsonl", lambda old: b'"\xff"\n'), "line 1 is damaged"),
    "a lone surrogate": (content(f"{LAST}.names.jsonl", lambda old: b'"\\ud800"\n'), "line 1 is damaged"),
    "other counts": (saved("tokens.counts.npy", np.ones(V, np.int64)), "tokens.counts.npy is damaged"),
    "counts of another type": (saved("tokens.counts.npy", np.ones(V)), "tokens.counts.npy is damaged"),
    "counts of objects": (saved("tokens.counts.npy", np.array([{}])), "tokens.counts.npy is damaged"),
    "truncated counts": (content("tokens.counts.npy", lambda old: old[:-1]), "tokens.counts.npy is damaged"),
    "counts with an open bracket": (replaced("tokens.counts.npy", b"}", b" "), "is damaged"),
    "empty counts": (content("tokens.counts.npy", lambda old: b""), "tokens.counts.npy is damaged"),
    "more shards": (files(shards=5), "tokens-"),
    "a plain file": (files(shards=0), "tokens.bin has 0 bytes"),
    "more tokens": (files(tokens=25), "meta.json says 25 tokens"),
    "a huge number of tokens": (files(tokens=2**60), "but meta.json says"),
    "more documents": (files(documents=5), "has 4 documents, but meta.json says 5"),
    **{
        f"{key} {value!r}": (meta(**{key: value}), "meta.json")
        for key, value in (
            ("dtype", "float32"), ("dtype", "uint32"), ("dtype", 3), ("files", {}), ("files", []), ("files", None),
            ("tokenizer", "x"), ("params", []), ("vocab_size", "x"), ("params", None),
            ("files", {"../val": TOTALS}),
            ("files", {"tokens": TOTALS | {"tokens": -24}}), ("files", {"tokens": TOTALS | {"tokens": 24.5}}),
            ("files", {"tokens": TOTALS | {"shards": -1}}), ("files", {"val": {}}),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_with_what_and_where(damage: str, tmp_path: Path) -> None:
    write(tmp_path, *SHARDS)
    change, message = DAMAGE[damage]
    change(tmp_path)
    write_manifest(tmp_path)  # what changed is not found by its checksum
    with pytest.raises(DataError) as error:
        read_everything(TokenFolder(tmp_path, "make it again"))
    assert re.search(message, str(error.value)), error.value
    assert str(error.value).endswith("make it again")
    assert "\n" not in str(error.value)


def read_everything(tokens: TokenFolder) -> list[IndexEntry]:
    for name in tokens.names:
        tokens.counts(name)
    return [entry for name in tokens.names for entry in tokens.documents(name)]


def test_a_file_that_the_system_does_not_open_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, [("one", "text", False)])

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(PermissionError, match="counts"):
        folder.counts("tokens")
