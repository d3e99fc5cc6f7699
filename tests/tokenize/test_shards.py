"""A large corpus in shards: the tokens are those of one process, and what is kept changes nothing."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project
from sharding import SHARD, contents, made_up, run_inline, with_low_limits

from pipeline.data.tokens import TokenFolder
from pipeline.plugin.components import CorpusSource
from pipeline.tokenize import sharded, shards
from pipeline.tokenize.tokenizers import sample_of

BYTES = ("--set", "tokenize.tokenizer.name=bytes")
PLAN = re.compile(r"tokenize: (\d+) of (\d+) shards are kept, (\d+) to make")


def plan(out: str) -> tuple[int, int, int]:
    """The numbers of shards: kept, all, to make."""
    found = PLAN.search(out)
    assert found, out
    kept, count, to_make = map(int, found.groups())
    return kept, count, to_make


def write_corpus(raw: Path, generator: random.Random) -> None:
    """Small files, a text and JSON lines of several ranges, and what has no tokens."""
    for path in raw.iterdir():
        path.unlink()
    for number in range(40):
        (raw / f"a{number:02}.txt").write_text(made_up(generator, generator.randrange(1, 60)))
    (raw / "b.txt").write_text(made_up(generator, 2500))
    lines = [json.dumps({"text": made_up(generator, generator.randrange(30))}) for _ in range(150)]
    (raw / "c.jsonl").write_text("\n".join(lines) + "\n")
    (raw / "d-empty.txt").write_text("")


def documents(project: Project, *arguments: str) -> list[Any]:
    """The documents of the tokens and their ids, after tokenizing."""
    project.succeed("tokenize", *arguments)
    return read_documents(project)


def read_documents(project: Project) -> list[Any]:
    """The documents of the tokens and their ids."""
    folder = TokenFolder(project.root / "artifacts" / "tokens", "")
    ids = folder.ids("tokens")
    return [
        (each.name, each.split, each.bytes, each.digest is None, ids[each.start : each.end].tolist())
        for each in folder.documents("tokens")
    ]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "characters"])
def test_tokens_in_shards_are_those_of_one_process(
    project: Project, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    write_corpus(project.root / "data" / "raw", random.Random(tokenizer))
    chosen = ("--set", f"tokenize.tokenizer.name={tokenizer}")
    whole = documents(project, *chosen)
    tokens = project.root / "artifacts" / "tokens"
    files = contents(tokens)
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    assert documents(project, *chosen) == whole
    assert (tokens / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    assert (tokens / "tokens.counts.npy").read_bytes() == files["tokens.counts.npy"]
    assert len(list(tokens.glob("tokens-*.bin"))) > 10


def write_ids(raw: Path, generator: random.Random, ends: int = 0) -> None:
    """Files of ids of the tokenizer `bytes`; `ends` moves where documents end."""
    for path in raw.iterdir():
        path.unlink()
    texts = [made_up(generator, generator.randrange(60)).encode() for _ in range(40)]
    np.array([each for text in texts for each in [*text, 256]], dtype="<u2").tofile(raw / "a.bin")
    np.frombuffer(b"".join(texts), dtype=np.uint8).astype("<u2").tofile(raw / "b.ds")
    (np.cumsum([len(text) for text in texts])[ends:]).astype("<u8").tofile(raw / "b.ds.index")


def test_ids_in_shards_are_those_of_one_process(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = project.root / "data" / "raw"
    chosen = (
        *BYTES, "--set", "tokenize.corpus.name=token_files", "--set", "tokenize.corpus.token_files.end_of_text=256"
    )  # fmt: skip
    whole = []
    for ends in (0, 1):
        write_ids(raw, random.Random(0), ends)
        whole.append(documents(project, *chosen))
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    write_ids(raw, random.Random(0), 0)
    assert plan(project.succeed("tokenize", *chosen).out)[2] > 5
    assert read_documents(project) == whole[0]
    write_ids(raw, random.Random(0), 1)  # another index, the same ids
    assert plan(project.succeed("tokenize", *chosen).out)[0] > 2
    assert read_documents(project) == whole[1] != whole[0]


def test_a_tokenizer_with_any_pattern_cuts_no_document(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tokenize.sharded.ends_after_words", lambda pattern: False)
    write_corpus(project.root / "data" / "raw", random.Random(1))
    whole = documents(project, *BYTES)
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    assert documents(project, *BYTES) == whole
    largest = max(
        (project.root / "artifacts" / "tokens").glob("tokens-*.bin"), key=lambda path: path.stat().st_size
    )
    assert largest.stat().st_size > 4 * SHARD


@pytest.mark.parametrize("steps", [3, pytest.param(40, marks=pytest.mark.long)])
def test_after_any_change_or_interruption_the_tokens_are_those_of_a_fresh_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: int
) -> None:
    generator = random.Random(steps)
    raw, tokens = project.root / "data" / "raw", project.root / "artifacts" / "tokens"
    write_corpus(raw, generator)
    with_low_limits(monkeypatch)
    kept_in_all = 0
    for step in range(steps):
        files = sorted(raw.glob("a*.txt"))
        chosen = generator.choice(files)
        change = generator.choice(["add", "change", "remove", "append", "rename", "nothing"])
        if change == "add":
            (raw / f"a{generator.randrange(40):02}-{step}.txt").write_text(made_up(generator, 30))
        elif change == "change":
            chosen.write_text(made_up(generator, 40))
        elif change == "remove":
            chosen.unlink()
        elif change == "rename":
            chosen.rename(chosen.with_name(f"a{step:02}-renamed.txt"))
        elif change == "append":
            for name, text in (("b.txt", "the end"), ("c.jsonl", '{"text": "the end"}\n')):
                with (raw / name).open("a") as file:
                    file.write(text)

        def interrupt(number: int, last: int = generator.randrange(1, 30)) -> None:
            if number > last:
                raise KeyboardInterrupt

        monkeypatch.delenv("DVC_ROOT", raising=False)
        run_inline(monkeypatch, interrupt)
        interrupted = project.run("tokenize", *BYTES)
        assert interrupted.code in (0, 130)
        run_inline(monkeypatch)
        result = project.succeed("tokenize", *BYTES)
        kept, count, to_make = plan(result.out)
        kept_in_all += kept
        assert kept + to_make == count
        continued = contents(tokens)
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / f"fresh-{step}"))
        fresh = project.succeed("tokenize", *BYTES)
        assert plan(fresh.out) == (0, count, count)
        assert contents(tokens) == continued, change
    assert kept_in_all > 10 * steps


def test_a_changed_file_makes_its_shard_and_nothing_else(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = project.root / "data" / "raw"
    write_corpus(raw, random.Random(5))
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    kept, count, _ = plan(project.succeed("tokenize", *BYTES).out)
    assert kept == 0
    assert plan(project.succeed("tokenize", *BYTES).out) == (count, count, 0)
    path = raw / "a07.txt"
    path.write_text(path.read_text().replace("e", "i"))
    assert plan(project.succeed("tokenize", *BYTES).out) == (count - 1, count, 1)
    with (raw / "c.jsonl").open("a") as file:
        file.write('{"text": "the end"}\n')
    assert plan(project.succeed("tokenize", *BYTES).out) == (count - 1, count, 1)
    (raw / "b.txt").rename(raw / "z.txt")  # its names are others
    assert plan(project.succeed("tokenize", *BYTES).out)[2] >= 3


def source(name: str, size: int) -> CorpusSource:
    return CorpusSource(name, f"/{name}", size, 0, size)


def test_a_source_more_moves_no_shard_far_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 16)
    generator = random.Random(3)
    sources = [source(f"{number:05}", generator.randrange(1, 4000)) for number in range(3000)]
    before = list(shards.grouped(sources))
    assert 1 << 14 < sum(each.bytes for each in before) / len(before) < 1 << 17
    assert max(each.bytes for each in before) < 1 << 18
    changed = []
    for _ in range(100):
        place = generator.randrange(len(sources))
        more = [*sources[:place], source(f"{place:05}-new", generator.randrange(1, 4000)), *sources[place:]]
        changed.append(len(set(shards.grouped(more)) - set(before)))
    assert sum(changed) < 200
    assert max(changed) < 10


def test_the_sample_is_everything_or_the_sources_with_the_smallest_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tokenize.tokenizers.SAMPLE_BYTES", 1000)
    sources = [source(f"{number:02}", 100) for number in range(10)]
    assert sample_of(sources) == sources
    more = [source(f"{number:02}", 100) for number in range(40)]
    sample = sample_of(more)
    assert len(sample) == 10
    assert sample == [each for each in more if each in sample]
    without = [each for each in more if each != sample[3]]
    assert {*sample} - {*sample_of(without)} == {sample[3]}
    assert len(sample_of([source("large", 5000), source("huge", 90000)])) == 1


def test_a_bpe_of_a_large_corpus_learns_from_a_sample_and_is_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, meta = project.root / "data" / "raw", project.root / "artifacts" / "tokens" / "meta.json"
    write_corpus(raw, random.Random(9))
    with_low_limits(monkeypatch, sample=8 * SHARD)
    run_inline(monkeypatch)
    first = project.succeed("tokenize").out
    assert "note: bpe is trained on" in first
    sample = json.loads(meta.read_text())["trained_on"]
    assert 0 < sample["bytes"] <= 8 * SHARD
    monkeypatch.setattr("pipeline.tokenize.sharded.trained_tokenizer", None)  # it must not be trained again
    kept, count, to_make = plan(project.succeed("tokenize").out)
    assert (kept, to_make) == (count, 0)
    monkeypatch.undo()
    monkeypatch.chdir(project.root)
    with_low_limits(monkeypatch, sample=8 * SHARD)
    run_inline(monkeypatch)
    for path in raw.glob("*.txt"):
        path.write_text(path.read_text().upper())
    changed = project.succeed("tokenize").out
    assert "tokenize: the text that bpe learns from has changed" in changed
    assert len(list((project.root / ".resume" / "tokens").glob("*/tokenizer-*.json"))) == 1


def test_a_bpe_is_trained_again_when_the_code_that_trains_it_changed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(project.root / "data" / "raw", random.Random(9))
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    project.succeed("tokenize")
    identity = sharded.code_identity

    def other(module: str, *arguments: Any) -> dict[str, dict[str, str]]:
        found = identity(module, *arguments)
        return {**found, "code": {**found["code"], "pipeline/tokenize/vocabulary.py": "0"}}

    monkeypatch.setattr(sharded, "code_identity", other)
    trained: list[str] = []
    train = sharded.trained_tokenizer
    monkeypatch.setattr(
        sharded, "trained_tokenizer", lambda params, *texts: [trained.append(params.name), train(params, *texts)][1]
    )
    project.succeed("tokenize")
    assert trained == ["bpe"]


@pytest.mark.parametrize("change", [lambda text: text + "more", lambda text: text[:-1]])
def test_a_file_that_changes_after_it_was_listed_is_an_error(
    change: Callable[[str], str], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = project.root / "data" / "raw"
    write_corpus(raw, random.Random(2))
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    before = project.root / "data" / "raw" / "a03.txt"
    divide = sharded.divided

    def then_changed(*arguments: Any) -> Any:
        yield from divide(*arguments)
        before.write_text(change(before.read_text()))

    monkeypatch.setattr(sharded, "divided", then_changed)
    result = project.run("tokenize", *BYTES)
    assert result.code == 1
    assert "data/raw/a03.txt changed while it was read: run `pipeline tokenize` again" in result.err


def test_all_faults_of_the_texts_are_one_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = project.root / "data" / "raw"
    write_corpus(raw, random.Random(2))
    for number in (3, 5, 20):
        (raw / f"a{number:02}.txt").write_bytes(b"abc\xff")
    lines = (raw / "c.jsonl").read_text().splitlines()
    lines[140] = '{"text": 7}'
    (raw / "c.jsonl").write_text("\n".join(lines))
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    result = project.run("tokenize", *BYTES)
    assert result.code == 1
    assert result.err.startswith(
        "error: the corpus files: 4 things are wrong with the texts: data/raw/a03.txt is not"
    )
    for part in (
        "data/raw/a05.txt",
        "data/raw/a20.txt",
        "at byte 3 (0xff)",
        "data/raw/c.jsonl line 141: the field",
    ):
        assert part in result.err
    assert result.err.count("\n") == 1
    assert not (project.root / "artifacts" / "tokens").exists()


def test_notes_come_also_from_shards_that_are_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = project.root / "data" / "raw"
    write_corpus(raw, random.Random(4))
    (raw / "a00.txt").write_bytes("déjà vu, là-bas, où ça".encode("cp1252"))
    with (raw / "c.jsonl").open("a") as file:
        file.write('{"text": null}\n' * 3)
    options = ("--set", "tokenize.corpus.files.null_text=skip", "--set", "tokenize.corpus.files.encoding=auto")
    monkeypatch.setattr("pipeline.tokenize.shards.SHARD_BYTES", SHARD)
    small = project.succeed("tokenize", *BYTES, *options).out
    notes = [line for line in small.splitlines() if line.startswith("note: files: ")]
    assert len(notes) == 3
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    for _ in range(2):
        out = project.succeed("tokenize", *BYTES, *options).out
        assert [line for line in out.splitlines() if line.startswith("note: files: ")] == notes


def test_two_documents_of_a_name_in_different_shards_are_an_error(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = project.root / "data" / "raw"
    write_corpus(raw, random.Random(4))
    (raw / "c.jsonl#7").write_text("as a record is called")
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    include = "tokenize.corpus.files.include=['**/*.txt', c.jsonl, 'c.jsonl#7']"
    result = project.run("tokenize", *BYTES, "--set", include)
    assert result.code == 1
    assert "two documents named 'c.jsonl#7'" in result.err


def test_a_corpus_without_text_is_an_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (project.root / "data" / "raw").iterdir():
        path.write_text("\n")
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    assert "holds no text: put texts into data/raw" in project.run("tokenize", *BYTES).err
