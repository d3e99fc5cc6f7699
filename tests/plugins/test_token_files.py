"""The corpus token_files: the ids that other programs made are those of the texts; and what can be wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from conftest import REPOSITORY, Project, made_up_text
from pyarrow import parquet

from pipeline.authoring.testing import check_corpus
from pipeline.core.files import MANIFEST
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugin.components import Corpus
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import raw_bytes, train_bpe

REGISTRY = Registry.load(REPOSITORY / "plugins", ["corpora"])
FORMATS = sys.modules["plugins.corpora.token_files.formats"]
TEXTS = [made_up_text(seed, 40 + 10 * seed) for seed in range(8)]
TOKENIZER = train_bpe(TEXTS, 320)
END = TOKENIZER.end_of_text
IDS = [TOKENIZER.encode(text).tolist() for text in TEXTS]

Write = Callable[[Path, Sequence[Sequence[int]]], None]


def token_files(**options: Any) -> Corpus:
    options = {"end_of_text": END, **options}
    corpus: Corpus = REGISTRY.build("corpora", "token_files", {"token_files": options}, "tokenize.corpus")
    return corpus


def read(root: Path, **options: Any) -> list[list[int]]:
    """The ids of each document."""
    corpus = token_files(**options)
    return [[int(each) for block in document.ids or () for each in block] for document in corpus.documents(root)]


# ── formats ───────────────────────────────────────────────────────────────────────────────────────


def header(ids: np.ndarray[Any, Any], magic: int = 20240520, version: int = 1) -> bytes:
    """The header of llm.c and modded-nanogpt."""
    return np.array([magic, version, len(ids)] + [0] * 253, dtype="<i4").tobytes()


def after_each(documents: Sequence[Sequence[int]], dtype: str) -> np.ndarray[Any, Any]:
    return np.array([each for ids in documents for each in [*ids, END]], dtype=dtype)


def before_each(documents: Sequence[Sequence[int]], dtype: str) -> np.ndarray[Any, Any]:
    return np.array([each for ids in documents for each in [END, *ids]], dtype=dtype)


def nanogpt(root: Path, documents: Sequence[Sequence[int]]) -> None:
    after_each(documents, "<u2").tofile(root / "corpus.bin")


def modded_nanogpt(root: Path, documents: Sequence[Sequence[int]]) -> None:
    for name, part in (("val_000000", documents[:2]), ("train_000001", documents[2:])):
        ids = before_each(part, "<u2")
        (root / f"fineweb_{name}.bin").write_bytes(header(ids) + ids.tobytes())


def llm_c(root: Path, documents: Sequence[Sequence[int]]) -> None:
    ids = before_each(documents, "<u4")
    (root / "corpus.bin").write_bytes(header(ids, 20240801, 7) + ids.tobytes())


def array(root: Path, documents: Sequence[Sequence[int]]) -> None:
    np.save(root / "corpus.npy", after_each(documents, ">i8"))


def olmo(root: Path, documents: Sequence[Sequence[int]]) -> None:
    after_each(documents, "<u2").tofile(root / "corpus.npy")


def datatrove(root: Path, documents: Sequence[Sequence[int]]) -> None:
    """As with `eos_token`: the index says where documents end, the metadata who made them."""
    ids = after_each(documents, "<u2")
    ids.tofile(root / "00000.ds")
    np.cumsum([len(each) + 1 for each in documents]).astype("<u8").tofile(root / "00000.ds.index")
    (root / "00000.ds.metadata").write_text(f"someone/made.json|2\n{len(ids)}\n{len(ids)} T")


def datatrove_without_end(root: Path, documents: Sequence[Sequence[int]]) -> None:
    """Without `eos_token`, and without metadata: the index says where documents end, and their type."""
    np.array([each for ids in documents for each in ids], dtype="<u4").tofile(root / "00000.ds")
    np.cumsum([len(each) for each in documents]).astype("<u8").tofile(root / "00000.ds.index")


def rows(root: Path, documents: Sequence[Sequence[int]]) -> None:
    table = arrow.table({"input_ids": [*documents, []], "n": range(len(documents) + 1)})
    parquet.write_table(table, root / "corpus.parquet", row_group_size=3)


def packed_rows(root: Path, documents: Sequence[Sequence[int]]) -> None:
    """Two documents in each row."""
    pairs = [after_each(documents[first : first + 2], "<i4").tolist() for first in range(0, len(documents), 2)]
    parquet.write_table(arrow.table({"input_ids": pairs}), root / "corpus.parquet")


EVERY = [nanogpt, modded_nanogpt, llm_c, array, olmo, datatrove, datatrove_without_end, rows, packed_rows]


@pytest.mark.parametrize("write", EVERY, ids=lambda write: write.__name__)
def test_the_documents_of_each_format_are_those_that_were_encoded(write: Write, tmp_path: Path) -> None:
    write(tmp_path, IDS)
    found = read(tmp_path)
    assert sorted(found) == sorted(IDS)
    check_corpus(token_files(), tmp_path)


def test_documents_longer_than_a_block_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nanogpt(tmp_path, IDS)
    monkeypatch.setattr(FORMATS, "_IDS", 7)
    assert read(tmp_path) == IDS


@pytest.mark.parametrize("write", [nanogpt, llm_c, array, datatrove, datatrove_without_end])
@pytest.mark.parametrize("block", [5, 1 << 18])
def test_the_ranges_of_a_file_give_its_documents(
    write: Write, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FORMATS, "_IDS", block)
    write(tmp_path, IDS)
    corpus = token_files()
    (source,) = corpus.sources(tmp_path) or ()
    ranges = list(corpus.divide(tmp_path, source, source.bytes // 4))
    assert len(ranges) > 2
    assert ranges[0].start == 0
    assert [part.end for part in ranges] == [*(part.start for part in ranges[1:]), source.size]
    found, number = [], 0
    for part in ranges:
        documents = list(corpus.read(tmp_path, replace(part, first_record=number)))
        assert corpus.count_records(tmp_path, part) == len(documents)
        number += len(documents)
        found += [(each.name, [int(value) for ids in each.ids or () for value in ids]) for each in documents]
    name = source.name
    assert found == [(f"{name}#{number}", ids) for number, ids in enumerate(IDS, start=1)]


def test_a_file_without_an_end_of_text_is_one_range(tmp_path: Path) -> None:
    np.arange(10, 90, dtype="<u2").tofile(tmp_path / "a.bin")
    corpus = token_files()
    (source,) = corpus.sources(tmp_path) or ()
    assert list(corpus.divide(tmp_path, source, 20)) == [source]


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    np.array([END, END, 1, 2, END, END, 3], dtype="<u2").tofile(tmp_path / "a.bin")
    assert read(tmp_path) == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.bin", "train"), ("val.bin", "val"), ("fineweb_val_000000.bin", "val"), ("test/00000.bin", "test"),
        ("fineweb_train_000001.bin", "train"), ("edufineweb_validation-2.bin", "val"), ("interval_7.bin", None),
    ],
)  # fmt: skip
def test_the_name_of_a_file_says_its_split(file: str, split: str | None, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    after_each(IDS, "<u2").tofile(tmp_path / file)
    assert {document.split for document in token_files().documents(tmp_path)} == {split}


def test_the_index_of_a_file_belongs_to_its_source(tmp_path: Path) -> None:
    datatrove(tmp_path, IDS)
    (source,) = token_files().sources(tmp_path) or ()
    assert [Path(path).name for path in source.beside] == ["00000.ds.index", "00000.ds.metadata"]


# ── the stages ────────────────────────────────────────────────────────────────────────────────────

BYTES = raw_bytes()
OF_TOKENS = ("tokenize.corpus.name=token_files", "tokenize.corpus.token_files.include=[train,val,test]")
OF_TEXTS = (
    "tokenize.corpus.name=files", "tokenize.corpus.files.include=[train,val,test]",
    "tokenize.corpus.files.separator=<|endoftext|>",
)  # fmt: skip


def run(project: Project, command: str, *settings: str) -> Any:
    """Runs a command whose texts or ids are read with the tokenizer `bytes`, unless `settings` say otherwise."""
    common = ("tokenize.tokenizer.name=bytes", f"tokenize.corpus.token_files.end_of_text={BYTES.end_of_text}")
    return project.run(command, *(part for value in (*common, *settings) for part in ("--set", value)))


def succeed(project: Project, command: str, *settings: str) -> str:
    result = run(project, command, *settings)
    assert result.code == 0, result.err
    return str(result.out)


def write_both(root: Path, tokenizer: Tokenizer = BYTES) -> tuple[Path, Path]:
    """The same documents as texts and as nanoGPT's ids, in files of the same names in two folders."""
    folders = root / "texts", root / "tokens"
    for name, texts in (("train", TEXTS[:4]), ("val", TEXTS[4:6]), ("test", TEXTS[6:])):
        for folder in folders:
            folder.mkdir(exist_ok=True)
        (folders[0] / name).write_text("<|endoftext|>".join(texts))
        ids = [each for text in texts for each in [*tokenizer.encode(text), tokenizer.end_of_text]]
        np.array(ids, dtype="<u2").tofile(folders[1] / name)
    return folders


def use(folder: Path, project: Project) -> None:
    """Makes a folder's files those of data/raw."""
    for path in (project.root / "data/raw").iterdir():
        path.unlink()
    for path in folder.iterdir():
        (project.root / "data/raw" / path.name).write_bytes(path.read_bytes())


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of a folder of tokens, but for those that name the corpus."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("meta.json", MANIFEST)}


SPLITS = [
    ("split.by=document", "split.seed=5"),
    ("split.by=position",),
    ("split.by=position", "split.unit=characters"),
    ("split.by=predefined",),
]


def test_tokens_and_splits_are_those_of_the_texts(project: Project, tmp_path: Path) -> None:
    texts, ids = write_both(tmp_path)
    found = []
    for folder, settings in ((texts, OF_TEXTS), (ids, OF_TOKENS)):
        use(folder, project)
        succeed(project, "tokenize", *settings)
        found.append([outputs(project.root / "artifacts/tokens")])
        for split in SPLITS:
            succeed(project, "split", *settings, *split)
            found[-1].append(outputs(project.root / "artifacts/splits"))
    assert found[0] == found[1]


def test_the_tokens_of_a_tokenizer_from_a_file_are_those_of_the_texts(project: Project, tmp_path: Path) -> None:
    TOKENIZER.save(project.root / "data/made.json")
    made = ("tokenize.tokenizer.name=file", "tokenize.tokenizer.file.path=data/made.json")
    texts, ids = write_both(tmp_path, TOKENIZER)
    found = []
    for folder, settings in ((texts, OF_TEXTS), (ids, OF_TOKENS)):
        use(folder, project)
        succeed(project, "tokenize", *settings, *made, f"tokenize.corpus.token_files.end_of_text={END}")
        found.append(outputs(project.root / "artifacts/tokens"))
    assert found[0] == found[1]


def test_duplicates_of_ids_are_found(project: Project, tmp_path: Path) -> None:
    _, ids = write_both(tmp_path)
    use(ids, project)
    copy = [BYTES.end_of_text, *BYTES.encode(f"  {TEXTS[0]}\n")]
    np.array(copy, dtype="<u2").tofile(project.root / "data/raw/val")
    succeed(project, "tokenize", *OF_TOKENS)
    assert "train#1 (train) = val#1 (val)" in succeed(project, "split", *OF_TOKENS, "split.by=predefined")


def test_check_train_and_score_work(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.check._measure", lambda *arguments: None)  # no trial steps
    texts, ids = write_both(tmp_path)
    use(ids, project)
    settings = (*OF_TOKENS, "split.by=predefined")
    assert "nothing found" in succeed(project, "check", *settings)
    for stage in ("tokenize", "split", "train"):
        succeed(project, stage, *settings)
    scored = project.run("score", str(texts / "test"), *(part for each in settings for part in ("--set", each)))
    assert scored.code == 0, scored.err
    assert "bits per byte" in scored.out


def test_score_says_that_a_token_file_is_no_text(trained_project: Project) -> None:
    nanogpt(trained_project.root, IDS)
    result = trained_project.run("score", "corpus.bin", "--set", "tokenize.corpus.name=token_files")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "corpus.bin has token ids" in result.err


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
def test_no_tokenizer_is_trained_on_ids(tokenizer: str, project: Project, tmp_path: Path) -> None:
    use(write_both(tmp_path)[1], project)
    result = run(project, "tokenize", *OF_TOKENS, f"tokenize.tokenizer.name={tokenizer}")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "'test#1'" in result.err
    assert "tokenize.tokenizer" in result.err


# ── what can be wrong ─────────────────────────────────────────────────────────────────────────────


def some_bytes(name: str, content: bytes) -> Write:
    return lambda root, documents: (root / name).write_bytes(content)


def beside(write: Write, name: str, content: bytes) -> Write:
    def both(root: Path, documents: Sequence[Sequence[int]]) -> None:
        write(root, documents)
        (root / name).write_bytes(content)

    return both


def shortened(write: Write, name: str, count: int = 1) -> Write:
    def cut(root: Path, documents: Sequence[Sequence[int]]) -> None:
        write(root, documents)
        (root / name).write_bytes((root / name).read_bytes()[:-count])

    return cut


def saved(array: Any) -> Write:
    return lambda root, documents: np.save(root / "a.npy", array)


def table(**columns: Any) -> Write:
    return lambda root, documents: parquet.write_table(arrow.table(columns), root / "a.parquet")


ENDS = np.array([5, 3, 9], dtype="<u8").tobytes()
BAD: dict[str, tuple[Write, tuple[str, ...]]] = {
    "odd length": (shortened(nanogpt, "corpus.bin"), ("corpus.bin", "whole number of uint16")),
    "uint32 as uint16": (
        lambda root, documents: after_each(documents, "<u4").tofile(root / "a.bin"),
        ("a.bin", "dtype: uint32"),
    ),
    "a header that says more": (shortened(llm_c, "corpus.bin", 4), ("corpus.bin", "header says")),
    "only a part of a header": (some_bytes("a.bin", header(np.zeros(9))[:100]), ("a.bin", "100 bytes")),
    "a header of another version": (some_bytes("a.bin", header(np.zeros(0), version=3)), ("a.bin", "version 3")),
    "a header in big-endian": (
        some_bytes("a.bin", np.frombuffer(header(np.zeros(0)), "<i4").astype(">i4").tobytes()),
        ("a.bin", "big-endian"),
    ),
    "a model of llm.c": (some_bytes("a.bin", header(np.zeros(0), 20240326)), ("a.bin", "a model of llm.c")),
    "an array of two dimensions": (saved(np.zeros((2, 3), dtype=int)), ("a.npy", "2×3 int64")),
    "an array of fractions": (saved(np.zeros(3)), ("a.npy", "float64")),
    "an array of objects": (saved(np.array([None], dtype=object)), ("a.npy", "damaged")),
    "a truncated array": (shortened(array, "corpus.npy"), ("corpus.npy", "damaged")),
    "several arrays": (some_bytes("a.npy", b"PK\x03\x04"), ("a.npy", "several arrays")),
    "an index of other tokens": (beside(datatrove, "00000.ds.index", ENDS[16:]), ("00000.ds", "token 9")),
    "an index that descends": (beside(datatrove, "00000.ds.index", ENDS), ("00000.ds.index", "ascend")),
    "a truncated index": (shortened(datatrove, "00000.ds.index"), ("00000.ds.index", "uint64")),
    "metadata of other tokens": (beside(datatrove, "00000.ds.metadata", b"x|2\n5\n5 T"), ("00000.ds", "says 5")),
    "metadata of nobody": (beside(datatrove, "00000.ds.metadata", b"\xff"), ("00000.ds.metadata", "datatrove")),
    "truncated tokens of datatrove": (shortened(datatrove, "00000.ds", 2), ("00000.ds", "bytes")),
    "no column of ids": (table(text=["x"]), ("a.parquet", "'input_ids'", "'text' string")),
    "a column of texts": (table(input_ids=["x"]), ("a.parquet", "string", "no lists of integers")),
    "a row without ids": (table(input_ids=[[1], None]), ("a.parquet row 2", "null")),
    "a null among the ids": (table(input_ids=[[1, None]]), ("a.parquet row 1", "null")),
    "no parquet": (some_bytes("a.parquet", b"PAR1 and more"), ("a.parquet", "damaged")),
    "nothing": (lambda root, documents: None, ("no file that matches **/*.bin",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    write, says = BAD[case]
    write(tmp_path, IDS)
    with pytest.raises((ValueError, OSError), match=r"^\S[^\n]*$") as caught:
        read(tmp_path)
    assert type(caught.value) in (ValueError, FileNotFoundError)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("tokenize.corpus.token_files.include=[../x]", ("include", "below data/raw")),
        ("tokenize.corpus.token_files.dtype=int32", ("dtype", "uint16")),
        ("tokenize.corpus.token_files.end_of_text=7", ("end_of_text is 7", "'bytes'", "set it to 256")),
        ("tokenize.corpus.token_files.end_of_text=70000", ("end_of_text is 70000", "set it to 256")),
    ],
)
def test_a_bad_option_is_one_line(command: str, says: tuple[str, ...], project: Project, tmp_path: Path) -> None:
    use(write_both(tmp_path)[1], project)
    result = run(project, "tokenize", *OF_TOKENS, command)
    assert (result.code, result.err.count("\n")) == (1, 1)
    for part in says:
        assert part in result.err
    assert not (project.root / "artifacts/tokens").exists()


def test_an_end_of_text_beyond_uint16_needs_uint32(tmp_path: Path) -> None:
    nanogpt(tmp_path, IDS)
    with pytest.raises(ValueError, match=r"100257: set .*dtype: uint32"):
        read(tmp_path, end_of_text=100257)


@pytest.mark.parametrize(
    ("made_by", "name", "error", "notes"),
    [
        ("gpt2", "gpt2", "", 0),
        ("openai-community/gpt2", "r50k_base", "", 0),
        ("openai-community/gpt2", "cl100k_base", "encoding: gpt2", 0),
        ("someone/llama", "tokenizer.json", "", 1),
        ("Unknown Tokenizer|2", "gpt2", "", 0),
    ],
)
def test_the_metadata_names_the_tokenizer(made_by: str, name: str, error: str, notes: int, tmp_path: Path) -> None:
    datatrove(tmp_path, IDS)
    (tmp_path / "00000.ds.metadata").write_text(f"{made_by}|2\n{sum(map(len, IDS)) + len(IDS)}\n1 kT")
    corpus = token_files()
    if error:
        with pytest.raises(ValueError, match=error):
            list(corpus.check_tokenizer(tmp_path, name, END))
    else:
        told = list(corpus.check_tokenizer(tmp_path, name, END))
        assert [made_by in line and name in line for line in told] == [True] * notes


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    datatrove(tmp_path, IDS)
    nanogpt(tmp_path, IDS)
    for name in ("00000.ds.loss", "corpus.idx", "README.md"):
        (tmp_path / name).write_text("x")
    told = " ".join(token_files().notes(tmp_path))
    assert "00000.ds.loss is not read" in told
    assert "corpus.idx" in told
    assert "2 files" in told
