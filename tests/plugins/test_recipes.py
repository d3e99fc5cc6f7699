"""The recipes of docs/large-data.md, with small files of the same layout; and its MinHash plugin."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import tiktoken
from conftest import REPOSITORY, Project, made_up_text
from pyarrow import parquet

from pipeline.authoring.testing import check_corpus
from pipeline.plugin.components import Corpus
from pipeline.plugin.registry import Registry

PAGE = (REPOSITORY / "docs" / "large-data.md").read_text()


def read(root: Path, plugins: Path = REPOSITORY / "plugins", name: str = "files", **options: Any) -> dict[str, str]:
    corpus: Corpus = Registry.load(plugins, ["corpora"]).build("corpora", name, {name: options}, "tokenize.corpus")
    check_corpus(corpus, root)
    return {each.name: "".join(each.text) for each in corpus.documents(root)}


def test_tinystories(tmp_path: Path) -> None:
    stories = ["Once upon a time, Tim had a kite.\nIt flew.\n", "Lily saw a dog.\n\nThe dog ran.\n"]
    (tmp_path / "TinyStories-train.txt").write_text("".join(f"{story}<|endoftext|>\n" for story in stories))
    (separator,) = re.findall(r'files\.separator: ("[^"]+")', PAGE)
    found = read(tmp_path, separator=json.loads(separator.replace("\\|", "|")))
    assert found == {f"TinyStories-train.txt#{number}": story for number, story in enumerate(stories, start=1)}


def test_fineweb(tmp_path: Path) -> None:
    texts = [made_up_text(seed, 30) for seed in range(7)]
    columns = {
        "text": texts,
        "id": [f"<urn:uuid:{number}>" for number in range(7)],
        "dump": ["CC-MAIN-2013-20"] * 7,
        "url": ["http://example.com"] * 7,
        "language_score": [0.91] * 7,
        "token_count": [30] * 7,
    }
    path = tmp_path / "sample" / "10BT" / "000_00000.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(arrow.table(columns), path, row_group_size=3, compression="zstd")
    found = read(tmp_path)
    assert found == {f"sample/10BT/000_00000.parquet#{number}": text for number, text in enumerate(texts, start=1)}


def test_nested_fields_and_null_rows(tmp_path: Path) -> None:
    records = [
        {"doc": {"text": "one", "meta": {}}},
        {"doc": None},
        {"doc": {"text": None}},
        {"doc": {"text": "two"}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    kind = arrow.struct([("text", arrow.string())])
    rows = [{"text": "one"}, None, {"text": None}, {"text": "two"}]
    parquet.write_table(arrow.table({"doc": arrow.array(rows, kind)}), tmp_path / "b.parquet")
    found = read(tmp_path, text_field="doc.text", null_text="skip")
    assert found == {"a.jsonl#1": "one", "a.jsonl#4": "two", "b.parquet#1": "one", "b.parquet#4": "two"}


@pytest.mark.parametrize("header", [b"", np.array([20240520, 1, 0] + [0] * 253, dtype="<i4").tobytes()])
def test_tokens_of_nanogpt_and_modded_nanogpt(
    header: bytes, project: Project, test_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The splits have the bytes of nanoGPT's files; modded-nanogpt's have end-of-text before each document."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken"))
    gpt2, raw = tiktoken.get_encoding("gpt2"), project.root / "data" / "raw"
    after = {}
    for split, seeds in (("train", range(6)), ("val", range(6, 8))):
        documents = [gpt2.encode_ordinary(made_up_text(seed, 50)) for seed in seeds]
        after[split] = np.array([each for ids in documents for each in [*ids, 50256]], dtype="<u2")
        before = np.array([each for ids in documents for each in [50256, *ids]], dtype="<u2")
        if header:
            start = np.frombuffer(header, "<i4").copy()
            start[2] = len(before)
            (raw / f"fineweb_{split}_000000.bin").write_bytes(start.tobytes() + before.tobytes())
        else:
            after[split].tofile(raw / f"{split}.bin")
    assert "`tokenize.corpus.name: token_files`, `tokenize.tokenizer.name: tiktoken`" in PAGE
    chosen = ("tokenize.corpus.name=token_files", "tokenize.tokenizer.name=tiktoken", "split.by=predefined")
    for stage in ("tokenize", "split"):
        project.succeed(stage, *(part for each in chosen for part in ("--set", each)))
    for split, ids in after.items():
        assert (project.root / "artifacts" / "splits" / f"{split}.bin").read_bytes() == ids.tobytes()


# ── near-duplicates ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def plugins(project: Project) -> Path:
    """The project's plugins with that of the page."""
    pytest.importorskip("datasketch", reason="the package datasketch is not installed")
    (code,) = [
        each for each in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "MinHash" in each
    ]
    folder = project.root / "plugins"
    (folder / "corpora" / "deduplicated.py").write_text(code)
    return folder


def variant(text: str, every: int) -> str:
    """The text with a word changed now and then."""
    words = text.split(" ")
    return " ".join("changed" if number % every == every - 1 else word for number, word in enumerate(words))


def test_near_duplicates_are_left_out(project: Project, plugins: Path) -> None:
    raw = project.root / "data" / "raw"
    for path in raw.iterdir():
        path.unlink()
    generator = random.Random(0)
    texts = [" ".join(f"w{generator.randrange(500)}" for _ in range(400)) for _ in range(6)]
    for number, text in enumerate(texts):
        (raw / f"a{number}.md").write_text(text)
    (raw / "b0.md").write_text(variant(texts[0], 100))  # nearly the same
    (raw / "b1.md").write_text(variant(texts[1], 4))  # no longer
    (raw / "c.txt").write_text("not included")
    found = read(raw, plugins, "deduplicated", files={"include": ["*.md"]})
    assert sorted(found) == [*(f"a{number}.md" for number in range(6)), "b1.md"]
    chosen = ["tokenize.corpus.name=deduplicated", "tokenize.corpus.deduplicated.similarity=0.5"]
    out = project.succeed("tokenize", *(part for each in chosen for part in ("--set", each))).out
    assert "1 documents nearly repeat" in out
    assert "(deduplicated)" in out
