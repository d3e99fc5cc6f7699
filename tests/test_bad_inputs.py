"""Bad inputs: what a person can get wrong, and the one line that says so.

The first table holds what must fail, each case with how it breaks a trained project, what is run, and what the
error says; after each, every file of the project is as it was. The second holds odd inputs that must work.
"""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY, Project, Result

from pipeline.core.files import write_manifest
from pipeline.data.tokens import TokenFolder
from pipeline.tokenize.vocabulary import train_bpe

Break = Callable[[Path], Any]

TRAIN, SPLIT, TOKENIZE = "`pipeline train`", "pipeline split", "pipeline tokenize"
CHECKPOINT, SPLITS, TOKENS = "artifacts/checkpoint", "artifacts/splits", "artifacts/tokens"
BEST, RECORD = f"{CHECKPOINT}/best.pth", f"{CHECKPOINT}/run.json"
TOKEN_FILES = (
    "tokenize --set tokenize.corpus.name=token_files --set tokenize.corpus.token_files.end_of_text=256 "
    "--set tokenize.tokenizer.name=bytes"
)
UNCHANGED = ("artifacts", "metrics", "reports", "data", "params.yaml")


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong: how the project is broken, what is run, and what the error must say."""

    id: str
    command: str
    says: tuple[str, ...]
    breaks: Break = lambda root: None
    code: int = 1


# ── ways to break a project ───────────────────────────────────────────────────────────────────────


def write(path: str, content: str | bytes) -> Break:
    return lambda root: (root / path).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: str) -> Break:
    def breaks(root: Path) -> None:
        rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()

    return breaks


def file_at(path: str) -> Break:
    """Puts a file where a folder (or nothing) was."""
    return both(lambda root: rmtree(root / path, ignore_errors=True), write(path, "in the way"))


def folder_at(path: str) -> Break:
    """Puts a folder where a file (or nothing) was."""
    return both(lambda root: (root / path).unlink(missing_ok=True), lambda root: (root / path).mkdir())


def both(*every: Break) -> Break:
    return lambda root: [breaks(root) for breaks in every]


def corpus(*texts: bytes) -> Break:
    """Makes these the only texts under data/raw."""

    def breaks(root: Path) -> None:
        raw = root / "data" / "raw"
        rmtree(raw)
        raw.mkdir()
        for number, text in enumerate(texts):
            (raw / f"{number}.txt").write_bytes(text)

    return breaks


def truncate(path: str) -> Break:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-7])


def flip_a_bit(path: str) -> Break:
    def breaks(root: Path) -> None:
        content = bytearray((root / path).read_bytes())
        content[len(content) // 2] ^= 1
        (root / path).write_bytes(content)

    return breaks


def signed(folder: str, *breaks: Break) -> Break:
    """Breaks a file and makes the manifest agree with it, as someone who means harm would."""
    return both(*breaks, lambda root: write_manifest(root / folder))


def params(old: str, new: str, path: str = "params.yaml") -> Break:
    """Replaces a part of params.yaml, or of another file."""

    def breaks(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text
        (root / path).write_text(text.replace(old, new, 1), encoding="utf-8")

    return breaks


def seed(value: str) -> Break:
    """Writes a value for split.seed into params.yaml."""
    return params("\n  seed: 2", f"\n  seed: {value}")


def line(section: str, below: int) -> str:
    """How a message names the place `below` lines under a section's head."""
    lines = (REPOSITORY / "params.yaml").read_text(encoding="utf-8").splitlines()
    return f"params.yaml line {lines.index(section) + 1 + below}"


def other_tokenizer(path: str) -> Break:
    return lambda root: train_bpe(["some other text"] * 9, 270).save(root / path)


def large_id(split: str) -> Break:
    def breaks(root: Path) -> None:
        ids = np.fromfile(root / SPLITS / f"{split}.bin", dtype="<u2")
        ids[5] = 60_000
        ids.tofile(root / SPLITS / f"{split}.bin")

    return breaks


def tensors(value: Any) -> Break:
    return lambda root: torch.save(value, root / BEST)


class Malicious:
    """Would make a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def surrogate_name(root: Path) -> None:
    with open(os.fsencode(root / "data" / "raw") + b"/\xff.txt", "wb") as file:
        file.write(b"text")


def parquet_without_text(root: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": [1], "body": ["the sea"]}), root / "data/raw/x.parquet")


def tokenized_again(root: Path) -> None:
    from pipeline.core.paths import Paths
    from pipeline.params.reader import load_params
    from pipeline.split import stage as split
    from pipeline.tokenize import stage as tokenize

    settings = load_params(root / "params.yaml", [*TINY, "tokenize.tokenizer.bpe.vocab_size=270"])
    for stage in (tokenize, split):
        stage.run(settings, Paths(root))


RAW = "data/raw/x.txt"
FILE = "--set tokenize.tokenizer.name=file"
EVERY_BYTE = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))

# ── what must fail ────────────────────────────────────────────────────────────────────────────────

TOKENIZE_CASES = [
    Case("corpus missing", "tokenize", ("data/raw is missing", "make the folder"), remove("data/raw")),
    Case("corpus empty", "tokenize", ("data/raw", "no file that matches"), corpus()),
    Case("corpus is a file", "tokenize", ("data/raw is a file", "must be a folder"), file_at("data/raw")),
    Case("zero bytes", "tokenize", ("holds no text", "put texts into data/raw"), corpus(b"")),
    Case("only white space", "tokenize", ("holds no text", "put texts into data/raw"), corpus(b" \n\t\r\n ")),
    Case("only a BOM", "tokenize", ("holds no text",), corpus(b"\xef\xbb\xbf")),
    *(
        Case(
            f"a FIFO as {key}",
            f"tokenize {settings} --set tokenize.tokenizer.{key}=data/fifo",
            ("data/fifo", "FIFO"),
            lambda root: os.mkfifo(root / "data/fifo"),
        )
        for key, settings in [("file.path", FILE), ("chat_template", "")]
    ),
    Case("a folder", "tokenize", (RAW, "is a folder", "rename or remove"), folder_at(RAW)),
    Case("a FIFO", "tokenize", (RAW, "no regular file"), lambda root: os.mkfifo(root / RAW)),
    Case(
        "a dangling link",
        "tokenize",
        (RAW, "leads nowhere", "fix or remove"),
        lambda root: (root / RAW).symlink_to("nowhere"),
    ),
    Case("a link to itself", "tokenize", (RAW, "nowhere"), lambda root: (root / RAW).symlink_to("x.txt")),
    Case("a name that is not UTF-8", "tokenize", ("udcff.txt", "not UTF-8", "rename it"), surrogate_name),
    Case(
        "an escape sequence in a name",
        "tokenize",
        ("\\x1b[31m.txt", "byte 0"),
        write("data/raw/\x1b[31m.txt", b"\xff"),
    ),
    Case("not UTF-8", "tokenize", (RAW, "byte 3 (0xe9)", "errors: replace"), write(RAW, b"caf\xe9 au lait")),
    Case("half a character at the end", "tokenize", (RAW, "byte 3 (0xc3)"), write(RAW, b"caf\xc3")),
    Case(
        "not UTF-8 in a later block",
        "tokenize",
        (RAW, "byte 1,200,000 (0xff)"),
        write(RAW, b"a b " * 300_000 + b"\xff"),
    ),
    Case(
        "a truncated document at the block's end",
        "tokenize",
        (RAW, "byte 1,048,575 (0xc3)"),
        write(RAW, b"a" * (2**20 - 1) + b"\xc3" + b"bc"),
    ),
    *(
        Case(f"{name} in {path}", "tokenize", (f"data/raw/{path}", *says), write(f"data/raw/{path}", content))
        for name, path, content, says in [
            ("plain text", "x.txt.gz", "the sea", ("no gzip file", "replace it")),
            ("a truncated text", "x.txt.gz", gzip.compress(b"the sea" * 99)[:-9], ("truncated", "replace it")),
            ("nothing", "x.md.gz", "", ("it is empty", "replace it")),
            ("Latin-1", "x.txt.gz", gzip.compress(b"caf\xe9"), ("byte 3 (0xe9)", "errors: replace")),
            ("plain text", "x.jsonl.zst", "the sea", ("no zstd file", "replace it")),
            ("plain text", "x.parquet", "the sea", ("no parquet file", "replace it")),
            ("a broken line", "x.jsonl", '{"text": "a"}\n{"text": "b', ("x.jsonl line 2 is not JSON",)),
            ("a list", "x.jsonl", "[]", ("line 1 holds a list", "an object")),
            ("another field", "x.jsonl", '{"body": "a", "id": 3}', ("line 1", "'text'", "body, id", "text_field")),
            ("a number", "x.jsonl", '{"text": 3}', ("line 1", "'text' holds a number")),
            ("half a pair", "x.jsonl", r'{"text": "\ud800"}', ("line 1", "surrogate")),
            ("an escape sequence", "x.jsonl", r'{"\u001b[31m": ""}', ("line 1", "\\x1b[31m")),
        ]
    ),
    Case("no such column", "tokenize", ("x.parquet", "'text'", "id, body", "text_field"), parquet_without_text),
    Case(
        "files in an unknown encoding",
        "tokenize --set tokenize.corpus.files.encoding=cp1253x",
        ("files.encoding", "'cp1253x'", "did you mean 'cp125", "latin-1"),
    ),
    Case(
        "UTF-16 without its mark",
        "tokenize --set tokenize.corpus.files.encoding=utf-16",
        ("text-00.txt", "UTF-16", "BOM"),
    ),
    Case(
        "a separator that cannot occur",
        r"""tokenize --set tokenize.corpus.files.newlines=lf --set 'tokenize.corpus.files.separator="\r\n"'""",
        ("newlines: lf", "separator"),
    ),
    Case(
        "include outside", "tokenize --set 'tokenize.corpus.files.include=[../*.md]'", ("include", "below data/raw")
    ),
    Case(
        "include absolute", "tokenize --set 'tokenize.corpus.files.include=[/etc]'", ("include", "below data/raw")
    ),
    Case("include the root", "tokenize --set 'tokenize.corpus.files.include=[.]'", ("include", "below data/raw")),
    Case(
        "include a bad glob", "tokenize --set 'tokenize.corpus.files.include=[\"**.txt\"]'", ("include", "**/*.txt")
    ),
    Case("include a text", "tokenize --set tokenize.corpus.files.include=a.txt", ("include", "should be a list")),
    Case("include nothing", "tokenize --set 'tokenize.corpus.files.include=[]'", ("include", "at least 1")),
    Case("include what is not there", "tokenize --set 'tokenize.corpus.files.include=[x.rst]'", ("matches x.rst",)),
    Case("no token file", TOKEN_FILES, ("data/raw", "no file that matches **/*.bin")),
    Case("half an id", TOKEN_FILES, ("data/raw/a.bin", "3 bytes", "uint16"), write("data/raw/a.bin", b"abc")),
    Case(
        "an id beyond the vocabulary",
        TOKEN_FILES,
        ("'a.bin#1'", "id 300 (token 1)", "'bytes'"),
        write("data/raw/a.bin", bytes([5, 0, 44, 1])),
    ),
    Case(
        "ids of another tokenizer",
        TOKEN_FILES,
        ("'bytes'", "'a.bin#1'", "at token 0", "tokenize.tokenizer"),
        write("data/raw/a.bin", bytes([200, 0, 65, 0] * 9)),
    ),
    Case(
        "a tokenizer to train on ids",
        "tokenize --set tokenize.corpus.name=token_files",
        ("'a.bin#1'", "token ids", "tokenize.tokenizer"),
        write("data/raw/a.bin", b"a\0b\0"),
    ),
    Case("unknown option", "tokenize --set tokenize.corpus.files.newline=lf", ("files.newline", "no such key")),
    Case("unknown corpus", "tokenize --set tokenize.corpus.name=file", ("'file'", "did you mean 'files'")),
    Case(
        "unknown encoding",
        "tokenize --set tokenize.tokenizer.name=tiktoken --set tokenize.tokenizer.tiktoken.encoding=gpt3",
        ("tiktoken.encoding", "'gpt3'", "gpt2", "o200k_base"),
    ),
    *(
        Case(f"a tokenizer file: {name}", f"tokenize {FILE}{settings}", says, write("data/tokenizer.json", content))
        for name, content, settings, says in [
            ("an HTML page", "<html>404</html>", "", ("data/tokenizer.json line 1", "tokenizer.json")),
            ("nothing", "", "", ("data/tokenizer.json", "no token for the byte 0x00")),
            ("half of it", '{"model": {"vocab"', "", ("data/tokenizer.json is not a tokenizer.json",)),
            ("an empty object", "{}", "", ("data/tokenizer.json is not a tokenizer.json",)),
            ("a WordPiece", '{"model": {"type": "WordPiece", "vocab": {}}}', "", ("WordPiece", "byte-level BPE")),
            ("a broken line", "AA== 0\nAQ==\n", "", ("data/tokenizer.json line 2",)),
            ("no number", "AA== zero\n", "", ("data/tokenizer.json line 1",)),
            ("one id twice", EVERY_BYTE + "AAA= 7\n", "", ("two tokens have the same id",)),
            (
                "a pattern that loses text",
                EVERY_BYTE,
                r" --set tokenize.tokenizer.file.pattern=\\w+",
                ("does not match all characters",),
            ),
            ("a broken pattern", EVERY_BYTE, " --set 'tokenize.tokenizer.file.pattern=\"(\"'", ("expression",)),
            ("elsewhere", EVERY_BYTE, " --set tokenize.tokenizer.file.path=/etc/passwd", ("must lie below data/",)),
            ("above", EVERY_BYTE, " --set tokenize.tokenizer.file.path=data/../x", ("must lie below data/",)),
            ("another name", EVERY_BYTE, " --set tokenize.tokenizer.file.path=data/x", ("data/x is missing",)),
        ]
    ),
    Case(
        "a tokenizer file that is a folder",
        f"tokenize {FILE}",
        ("tokenizer.json",),
        folder_at("data/tokenizer.json"),
    ),
    Case("vocabulary too small", "tokenize --set tokenize.tokenizer.bpe.vocab_size=256", ("bpe.vocab_size", "257")),
    Case(
        "vocabulary huge",
        "tokenize --set tokenize.tokenizer.bpe.vocab_size=2147483647",
        ("bpe.vocab_size", "1048576"),
    ),
    Case("artifacts is a file", "tokenize", ("artifacts", "move it away"), file_at("artifacts")),
    Case("tokens is a file", "tokenize", (TOKENS, "a file", "move it away"), file_at(TOKENS)),
    Case(
        "tokens is a dangling link",
        "tokenize",
        (TOKENS, "move it away"),
        both(remove(TOKENS), lambda root: (root / TOKENS).symlink_to("nowhere")),
    ),
]

SPLIT_CASES = [
    Case("before tokenize", "split", (TOKENS, "is missing", TOKENIZE), remove(TOKENS)),
    Case("no manifest", "split", ("manifest.json is missing", TOKENIZE), remove(f"{TOKENS}/manifest.json")),
    *(
        Case(
            f"manifest {content[:20]}",
            "split",
            ("manifest.json is damaged", TOKENIZE),
            write(f"{TOKENS}/manifest.json", content),
        )
        for content in (
            "",
            "<html>",
            "{}",
            "[]",
            "null",
            '{"files": {}}',
            '{"files": {"tokens.bin": 3}}',
            "[" * 99_999,
        )
    ),
    Case("manifest a folder", "split", ("manifest.json", "move it away"), folder_at(f"{TOKENS}/manifest.json")),
    Case(
        "tokens truncated",
        "split",
        ("tokens-00000-of-00001.bin has", "bytes instead of", TOKENIZE),
        truncate(f"{TOKENS}/tokens-00000-of-00001.bin"),
    ),
    Case(
        "a flipped bit",
        "split",
        ("tokens-00000-of-00001.bin is damaged", TOKENIZE),
        flip_a_bit(f"{TOKENS}/tokens-00000-of-00001.bin"),
    ),
    Case(
        "index missing",
        "split",
        ("idx.npy is missing", TOKENIZE),
        remove(f"{TOKENS}/tokens-00000-of-00001.idx.npy"),
    ),
    Case(
        "another tokenizer",
        "split",
        (TOKENS, "another tokenizer", TOKENIZE),
        signed(TOKENS, other_tokenizer(f"{TOKENS}/tokenizer.json")),
    ),
    Case("meta.json empty", "split", ("meta.json", TOKENIZE), signed(TOKENS, write(f"{TOKENS}/meta.json", "{}"))),
    Case(
        "tokenizer.json a list",
        "split",
        ("tokenizer.json is damaged", TOKENIZE),
        signed(TOKENS, write(f"{TOKENS}/tokenizer.json", "[]")),
    ),
    *(
        Case(f"{key} {value}", f"split --set split.{key}={value}", (f"split.{key}", says))
        for key, value, says in [
            ("val", "1", "less than 1"),
            ("val", "1.5", "less than 1"),
            ("val", "-0.1", "greater than or equal to 0"),
            ("val", ".nan", "finite"),
            ("val", ".inf", "finite"),
            ("test", ".nan", "finite"),
            ("test", "1", "less than 1"),
            ("val", "abc", "number"),
            ("val", "'\"0.1\"'", "number"),
            ("val", "true", "number"),
            ("val", "''", "null"),
            ("seed", "-1", "greater than or equal to 0"),
            ("seed", "2.5", "whole number"),
            ("seed", str(2**63), "less than"),
            ("by", "documents", "'document', 'position' or 'predefined'"),
            ("by", "5", "'document', 'position' or 'predefined'"),
        ]
    ),
    Case("val 0", "split --set split.val=0", ("split", "val must be above 0")),
    Case(
        "nothing left to train on", "split --set split.val=0.5 --set split.test=0.5", ("0.5", "lower one of them")
    ),
    Case("an empty val", "split --set split.val=0.000001", ("val gets 0 of 12 documents", "split.seed")),
    Case("an empty test", "split --set split.test=0.000001", ("test gets 0 of 12 documents", "split.test")),
    Case("an empty train", "split --set split.val=0.999999 --set split.test=0", ("train gets 0 of 12 documents",)),
    Case(
        "an empty val by position",
        "split --set split.by=position --set split.val=0.000001 --set split.test=0",
        ("val gets 1 tokens",),
    ),
    Case(
        "predefined without sides",
        "split --set split.by=predefined",
        ("text-00.txt", "7 more", "named train, val", "found: train 0, val 0, test 0"),
    ),
    Case("another way for duplicates", "split --set split.duplicates=drop", ("split.duplicates", "'report'")),
    Case("splits is a file", "split", (SPLITS, "a file", "move it away"), file_at(SPLITS)),
]

PARAMS_CASES = [
    Case("missing", "split", ("params.yaml is missing", "project's folder"), remove("params.yaml")),
    Case("unknown section", "split --set train.buget.amount=5", ("--set: train.buget", "budget")),
    Case("another file missing", "split --params nope.yaml", ("nope.yaml is missing", "--params")),
    Case("a folder", "split", ("params.yaml", "folder", "move it away"), folder_at("params.yaml")),
    Case("a FIFO", "split --params a.yaml", ("a.yaml", "FIFO"), lambda root: os.mkfifo(root / "a.yaml")),
    Case("a deep key", f"split --set {'a.' * 5000}b=1", ("--set", "section.key=value")),
    Case("empty", "split", ("params.yaml is empty", "tokenize, split"), write("params.yaml", "")),
    Case(
        "only a comment", "split", ("params.yaml is empty", "tokenize, split"), write("params.yaml", "# nothing\n")
    ),
    Case(
        "a list at the top", "split", ("params.yaml holds a list", "tokenize, split"), write("params.yaml", "- a\n")
    ),
    Case("a text", "split", ("params.yaml holds the value 'hello'",), write("params.yaml", "hello")),
    Case("broken YAML", "split", (line("split:", 3), "YAML"), params("split:\n", "split:\n  by: [\n")),
    Case("a tab", "split", (line("split:", 1), r"'\t'"), params("split:\n", "split:\n\tby: x\n")),
    Case(
        "a duplicate key",
        "split",
        (line("split:", 4), 'duplicate key "val"'),
        params("split:\n", "split:\n  val: 0.1\n"),
    ),
    Case(
        "a duplicate section",
        "split",
        ("params.yaml line", 'duplicate key "split"'),
        params("runtime:", "split: {}\nruntime:"),
    ),
    Case(
        "a conflict's marks",
        "split",
        ("params.yaml line", "YAML"),
        params("tokenize:\n", "<<<<<<< HEAD\ntokenize:\n"),
    ),
    Case(
        "an HTML page",
        "split",
        ("params.yaml line 2", "YAML"),
        write("params.yaml", "<!DOCTYPE html>\n<p>404: no</p>"),
    ),
    Case("two documents", "split", ("params.yaml", "several documents"), params("runtime:", "---\nruntime:")),
    Case("an unknown alias", "split", ("line", "undefined alias"), seed("*nope")),
    Case(
        "a month 13",
        "split",
        ("params.yaml", "month must be in 1..12"),
        seed("2020-13-01"),
    ),
    Case("a date", "split", ("split.seed", "date"), seed("2020-12-01")),
    Case("no integer behind !!int", "split", ("params.yaml", "'abc'"), seed("!!int abc")),
    Case("no boolean behind !!bool", "split", ("params.yaml", "'abc'"), seed("!!bool abc")),
    Case(
        "a number of 5000 digits",
        "split",
        ("params.yaml", "4300 digits"),
        seed("9" * 5000),
    ),
    Case("a list in itself", "split", ("params.yaml", "&a"), seed("&a [*a]")),
    Case("a thousand brackets", "split", ("params.yaml", "nested"), seed("[" * 1000)),
    Case("a NUL byte", "split", ("params.yaml", "#x0000"), seed("\0")),
    Case(
        "Latin-1", "split", ("params.yaml is not UTF-8", "save it as UTF-8"), write("params.yaml", b"# caf\xe9\n")
    ),
    Case(
        "a Python object",
        "split",
        (line("split:", 5), "python/object"),
        seed("!!python/object/apply:os.system ['touch pwned']"),
    ),
    Case("a number as a key", "split", ("params.yaml", "key 1", "quotes"), params("runtime:", "1: 2\nruntime:")),
    Case("an unknown key", "split", ("split.vla", "did you mean 'val'"), params("\n  val: 0.05", "\n  vla: 0.05")),
    Case("a key in another place", "split --set train.lr=1e-3", ("train.lr", "there is train.optimizer.adamw.lr")),
    Case("an unknown section", "split", ("runtimes", "did you mean 'runtime'"), params("runtime:", "runtimes:")),
    Case("a missing key", "split", ("split.unit", "is missing"), params("  unit: tokens  ", "  # ")),
    Case("text for a number", "split --set train.batch_size=many", ("train.batch_size", "whole number", "'many'")),
    Case("a size of 0", "split --set model.n_layers=0", ("model.n_layers", "greater than 0")),
    Case("a negative size", "split --set model.emb_dim=-8", ("model.emb_dim", "greater than 0")),
    Case("a size beyond 64 bits", f"split --set model.emb_dim={10**20}", ("model.emb_dim", "64 bits")),
    Case("heads that do not divide", "split --set model.n_heads=3", ("emb_dim 16", "n_heads 3", "multiple")),
    Case(
        "modern heads of an odd size",
        "train --set model.name=modern --set model.n_heads=16",
        ("emb_dim 16", "n_heads 16", "even"),
    ),
    Case(
        "llama heads of an odd size",
        "train --set model.name=llama --set model.n_heads=16",
        ("emb_dim 16", "n_heads 16", "even", "llama"),
    ),
    Case(
        "weights that DVC does not see",
        "split --set train.init_from=data/../artifacts/checkpoint",
        ("train.init_from", "must lie below data/weights/, such as data/weights/gpt2"),
    ),
    Case(
        "keys that do not divide",
        "train --set model.name=llama --set model.llama.n_kv_heads=3",
        ("n_heads 2", "n_kv_heads 3", "multiple"),
    ),
    Case(
        "a document mask without ends",
        "split --set model.document_mask=true --set tokenize.end_of_text=false",
        ("model.document_mask", "tokenize.end_of_text: true"),
    ),
    Case(
        "packs of documents that see each other",
        "split --set train.pack_documents=true",
        ("train.pack_documents", "model.document_mask: true"),
    ),
    Case("a preset of another name", "preset books", ("no preset 'books'", "book, shakespeare-char")),
    Case("a preset over broken YAML", "preset book", ("params.yaml", "YAML"), write("params.yaml", "a: [\n")),
    Case(
        "a preset over a list",
        "preset book",
        ("params.yaml holds a list", "tokenize, split"),
        write("params.yaml", "- a\n"),
    ),
    Case(
        "a preset into a folder",
        "preset book",
        ("params.yaml", "folder"),
        folder_at("params.yaml"),
    ),
    Case("dropout 1.0", "split --set model.dropout=1.0", ("model.dropout", "less than 1")),
    Case("dropout 1.1", "split --set model.dropout=1.1", ("model.dropout", "less than 1")),
    Case("an infinite clip", "split --set train.grad_clip=.inf", ("train.grad_clip", "finite")),
    Case("yes for true", "train --set model.gpt2.tied_head=yes", ("model.gpt2.tied_head", "true or false")),
    Case("a million threads", "split --set runtime.threads=1000000", ("runtime.threads", "1024")),
    Case(
        "prompts that are numbers",
        "split --set 'evaluate.generation.prompts=[1, a]'",
        ("prompts.0", "text", "not 1"),
    ),
    Case("prompts that are a text", "split --set evaluate.generation.prompts=a", ("prompts", "should be a list")),
    Case(
        "a prompt that is no text",
        r"""split --set 'evaluate.generation.prompts=["\ud800"]'""",
        ("prompts.0", "surrogate"),
    ),
    Case("a section that is a number", "split --set split=5", ("split", "should be a section")),
    Case(
        "a compile mode that is not there",
        "split --set runtime.compile=foo",
        ("runtime.compile: input", "true", "'auto'", "'blocks'", "'model'", "not 'foo'"),
    ),
    Case(
        "a component that is a number",
        "split --set train.loss.cross_entropy=3",
        ("train.loss.cross_entropy: ", "not 3"),
    ),
    Case("--set without =", "split --set split.val", ("--set 'split.val'", "section.key=value")),
    Case("--set without a key", "split --set =3", ("--set '=3'", "section.key=value")),
    Case("--set with an empty part", "split --set split..val=3", ("--set", "section.key=value")),
    Case("--set broken YAML", "split --set 'split.val=['", ("--set 'split.val=['", "YAML")),
    Case("--set a month 13", "split --set split.val=2020-13-13", ("--set", "month must be in 1..12")),
    Case("--set on a list", "split --set evaluate.generation.prompts.0=a", ("prompts is a value, not a section",)),
    Case("--set below a number", "split --set split.val.x=1", ("split.val is a value, not a section",)),
    Case("--set an unknown key", "split --set split.vall=0.1", ("--set: split.vall", "did you mean 'val'")),
    Case(
        "--set a key, and another in the file is wrong",
        "split --set split.seed=3",
        ("params.yaml: split.vla",),
        params("\n  val: 0.05", "\n  vla: 0.05"),
    ),
    Case(
        "--set shell characters",
        "split --set 'split.by=$(touch pwned); `touch pwned`'",
        ("split.by", "$(touch pwned)"),
    ),
    Case("--set an escape sequence", "split --set 'split.by=\"\\e[31m\"'", ("split.by", "\\x1b[31m")),
]

USAGE_CASES = [
    Case("an unknown command", "trian", ("No such command 'trian'", "--help"), code=2),
    Case("an unknown option", "train --nope", ("--nope", "train --help"), code=2),
    Case("--set without a value", "train --set", ("--set", "--help"), code=2),
    Case("generate without a prompt", "generate", ("PROMPT", "--help"), code=2),
    Case("no tokens", "generate a --tokens 0", ("--tokens", "1<=x"), code=2),
    Case("a negative seed", "generate a --seed -1", ("--seed",), code=2),
    Case("a seed beyond 64 bits", f"generate a --seed {2**64}", ("--seed",), code=2),
    Case("a component that is not there", "plugins show focall", ("'focall'", "did you mean 'focal'")),
    Case("a kind that is not there", "plugins list lossy", ("'lossy'", "losses")),
    Case("a new component of no kind", "plugins new lossy mine", ("'lossy'", "losses")),
    Case("a new component of a bad name", "plugins new loss Mine", ("'Mine'",)),
    Case("a new component that is there", "plugins new loss focal", ("focal", "plugins/losses/focal.py")),
    Case("a plugin to check that is not there", "plugins check nope.py", ("nope.py", "--help"), code=2),
    Case("other weights", "generate a --weights good", ("--weights", "best"), code=2),
    Case("no samples", "generate a --num-samples 0", ("--num-samples", "1<=x"), code=2),
    Case("prompts that are not there", "generate --prompts nope.txt", ("nope.txt", "does not exist"), code=2),
    Case("nothing to score", "score", ("FILE", "--help"), code=2),
    Case("a text to score that is not there", "score nope.txt", ("nope.txt", "does not exist"), code=2),
    Case("a folder to score", "score data", ("'data' is a directory",), code=2),
]

NO_WARMUP = "train --set train.schedule.warmup_steps=0 --set train.optimizer.adamw.lr=1e30"
TRAIN_CASES = [
    Case("before split", "train", (SPLITS, "is missing", SPLIT), remove(SPLITS)),
    Case("a truncated split", "train", ("train.bin has", SPLIT), truncate(f"{SPLITS}/train.bin")),
    Case(
        "context longer than the text",
        "train --set model.context_length=99999",
        ("training split has 2,", "needs 100,000", "lower model.context_length"),
    ),
    Case(
        "an id beyond the vocabulary",
        "train",
        ("token id 60000", "vocabulary has", "pipeline split"),
        signed(SPLITS, large_id("train")),
    ),
    Case(
        "an id beyond the vocabulary to evaluate",
        "evaluate",
        ("token id 60000", "vocabulary has", "pipeline split"),
        signed(SPLITS, large_id("val")),
    ),
    Case(
        "another tokenizer",
        "train",
        (SPLITS, "another tokenizer", SPLIT),
        signed(SPLITS, other_tokenizer(f"{SPLITS}/tokenizer.json")),
    ),
    Case("unknown optimizer", "train --set train.optimizer.name=adam", ("'adam'", "did you mean 'adamw'", "muon")),
    Case("unknown loss", "train --set train.loss.name=mse", ("train.loss", "'mse'", "cross_entropy")),
    Case("unknown callback", "train --set 'train.eval_callbacks.use=[stop]'", ("'stop'", "early_stopping")),
    Case("text for a rate", "train --set train.optimizer.adamw.lr=fast", ("adamw.lr", "number", "'fast'")),
    Case("a rate of 0", "train --set train.optimizer.adamw.lr=0", ("adamw.lr", "greater than 0")),
    Case("unknown option", "train --set train.optimizer.adamw.rate=1", ("adamw.rate", "no such key")),
    Case(
        "options of one not chosen",
        "train --set train.optimizer.muon.ns_steps=0",
        ("muon.ns_steps", "greater than 0"),
    ),
    Case("a device that is none", "train --set runtime.device=tpu", ("runtime.device", "auto|cpu", "'tpu'")),
    Case("a GPU's number too long", f"train --set runtime.device=cuda:{10**20}", ("runtime.device",)),
    Case("a model that cannot fit", "train --set model.emb_dim=10000000", ("parameters needs", "lower", "emb_dim")),
    Case("a size that no tensor has", "train --set model.emb_dim=1000000000", ("model:", "lower model.emb_dim")),
    Case("NaN in the loss", NO_WARMUP, ("step 1", "windows at tokens", "lower the optimizer's lr")),
    Case(
        "NaN after the last step",
        f"{NO_WARMUP} --set train.budget.amount=1",
        ("step 1", "train.loss is nan", "lower the optimizer's lr"),
    ),
    Case("metrics is a file", "train", ("metrics", "move it away"), file_at("metrics")),
    Case("checkpoint is a file", "train", (CHECKPOINT, "a file", "move it away"), file_at(CHECKPOINT)),
    Case("the checkpoints' folder is a file", "train", (".resume", "move it away"), file_at(".resume")),
]

CODE = {"model_state_dict": Malicious(), "step": 1}
CHECKPOINT_CASES = [
    Case("missing", "evaluate", (CHECKPOINT, "is missing", TRAIN), remove(CHECKPOINT)),
    Case("missing for export", "export", (CHECKPOINT, "is missing", TRAIN), remove(CHECKPOINT)),
    Case("missing for generate", "generate a", (CHECKPOINT, "is missing", TRAIN), remove(CHECKPOINT)),
    Case("a file missing", "generate a", ("best.pth is missing", TRAIN), remove(BEST)),
    Case("empty", "evaluate", ("best.pth has 0 bytes", TRAIN), write(BEST, "")),
    Case("truncated", "evaluate", ("best.pth has", "bytes instead of", TRAIN), truncate(BEST)),
    Case("a flipped bit", "evaluate", ("best.pth is damaged", TRAIN), flip_a_bit(BEST)),
    Case("a flipped bit for export", "export", ("best.pth is damaged", TRAIN), flip_a_bit(BEST)),
    Case("an HTML page", "evaluate", ("best.pth has 15 bytes", TRAIN), write(BEST, "<!DOCTYPE html>")),
    *(
        Case(f"{name}, signed", "evaluate", ("best.pth", says, TRAIN), signed(CHECKPOINT, breaks))
        for name, says, breaks in [
            ("empty", "it is empty", write(BEST, "")),
            ("truncated", "not a checkpoint", truncate(BEST)),
            ("an HTML page", "not a checkpoint", write(BEST, "<!DOCTYPE html>")),
            (
                "a large-file pointer",
                "not a checkpoint",
                write(BEST, "version https://git-lfs.github.com/spec/v1\n"),
            ),
            ("a malicious pickle", "Unsupported operand", write(BEST, pickle.dumps(CODE))),
            ("a malicious checkpoint", "posix.system", tensors(CODE)),
            ("a list", "not a list", tensors([1])),
        ]
    ),
    *(
        Case(f"{name}, signed", "generate a", (CHECKPOINT, says), signed(CHECKPOINT, breaks))
        for name, says, breaks in [
            ("no weights", "does not fit", tensors({"step": 1})),
            ("weights that are none", "model_state_dict", tensors({"step": 1, "model_state_dict": 3})),
            ("other weights", "a does not fit", tensors({"step": 1, "model_state_dict": {"a": torch.ones(2)}})),
            ("no config", "shape: is missing", write(f"{CHECKPOINT}/config.json", "{}")),
            ("a tokenizer that is none", "ranks: is missing", write(f"{CHECKPOINT}/tokenizer.json", "{}")),
        ]
    ),
    Case(
        "a FIFO as manifest",
        "evaluate",
        (f"{SPLITS}/manifest.json", "not a regular file"),
        lambda root: ((root / SPLITS / "manifest.json").unlink(), os.mkfifo(root / SPLITS / "manifest.json")),
    ),
    Case("tokenized again", "evaluate", (SPLITS, "another tokenizer", "train again"), tokenized_again),
    Case("splits missing", "evaluate", (SPLITS, "is missing", SPLIT), remove(SPLITS)),
    *(
        Case(f"{path} {name}", "evaluate", (path, CHECKPOINT, "dvc checkout", "pipeline train"), breaks(path))
        for path in ("metrics/history.tsv", "metrics/train.json")
        for name, breaks in [("missing", remove), ("of another run", lambda path: write(path, "{}"))]
    ),
    Case("no record of the run", "evaluate", (RECORD, "is missing", TRAIN), signed(CHECKPOINT, remove(RECORD))),
    Case(
        "a damaged record",
        "export",
        (RECORD, "params.train", TRAIN),
        signed(CHECKPOINT, write(RECORD, '{"params": {"train": 1}}')),
    ),
    Case(
        "infinity in the record",
        "evaluate",
        (f"{RECORD} is damaged", "JSON"),
        signed(CHECKPOINT, params('"end_of_text": true', '"end_of_text": 1e999', RECORD)),
    ),
    Case("reports is a file", "evaluate", ("reports", "a file", "move it away"), file_at("reports")),
    Case(
        "evaluate.json is a folder",
        "evaluate",
        ("metrics/evaluate.json", "move it away"),
        folder_at("metrics/evaluate.json"),
    ),
    Case("unknown sampler", "evaluate --set 'evaluate.samplers.use=[topk]'", ("'topk'", "did you mean 'top_k'")),
    Case("unknown sampler to generate", "generate a --sampler best", ("'best'", "greedy", "temperature")),
    Case("k is 0", "evaluate --set evaluate.samplers.top_k.k=0", ("top_k.k", "greater than 0")),
    Case("p above 1", "generate a --set evaluate.samplers.top_p.p=1.5", ("top_p.p", "less than or equal to 1")),
    Case("unknown format", "export --set 'export.formats.use=[gptq]'", ("'gptq'", "huggingface")),
    Case("an empty stop string", "generate a --stop ''", ("--stop", "empty")),
    Case("an empty stop string in a chat", "chat --stop ''", ("--stop", "empty")),
    Case("no prompts in the file", "generate --prompts p.txt", ("p.txt", "prompt"), write("p.txt", " \n\n")),
    Case(
        "prompts not UTF-8",
        "generate --prompts p.txt",
        ("p.txt is not UTF-8 at byte 2",),
        write("p.txt", b"a \xff"),
    ),
    Case("unknown sampler to chat", "chat --sampler best", ("'best'", "greedy", "temperature")),
    Case("missing for chat", "chat", (CHECKPOINT, "is missing", TRAIN), remove(CHECKPOINT)),
    Case("missing for score", "score params.yaml", (CHECKPOINT, "is missing", TRAIN), remove(CHECKPOINT)),
    Case("an empty text to score", "score t.txt", ("t.txt is empty",), write("t.txt", "")),
    Case(
        "a text to score not UTF-8",
        "score t.txt",
        ("t.txt is not UTF-8 at byte 3",),
        write("t.txt", b"\xc3\xa9 \xff"),
    ),
    Case("cut inside a character", "score t.txt", ("t.txt is not UTF-8 at byte 1",), write("t.txt", b"a\xc3")),
    Case(
        "a single token to score",
        "score t.txt --set tokenize.end_of_text=false",
        ("t.txt", "single token"),
        write("t.txt", "a"),
    ),
    Case(
        "details of the evaluation that are a list",
        "export",
        ("reports/evaluation.json is damaged", "evaluate"),
        both(write("reports/evaluation.json", "[]"), write("metrics/evaluate.json", "{}")),
    ),
    Case("export is a file", "export", ("artifacts/export", "move it away"), file_at("artifacts/export")),
]

CASES = {
    f"{group}: {case.id}": case
    for group, cases in [
        ("tokenize", TOKENIZE_CASES),
        ("split", SPLIT_CASES),
        ("params", PARAMS_CASES),
        ("usage", USAGE_CASES),
        ("train", TRAIN_CASES),
        ("checkpoint", CHECKPOINT_CASES),
    ]
    for case in cases
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line_and_changes_nothing(
    name: str, trained_project: Project, record_property: Callable[[str, object], None]
) -> None:
    """With `-v`, the table of cases, exit codes and messages is printed at the end."""
    case, root = CASES[name], trained_project.root
    earlier_outputs(root)
    case.breaks(root)
    before = contents(root)
    result = trained_project.run(*shlex.split(case.command))
    record_property("bad input", (name, result.code, result.err.strip()))
    assert_error(result, case.code, case.says)
    assert contents(root) == before
    assert_nothing_half_written(root)
    assert not list(root.rglob("pwned"))


def earlier_outputs(root: Path) -> None:
    """What evaluate and export wrote before, so that one sees whether it stays."""
    for path in ("reports/report.html", "metrics/evaluate.json", "artifacts/export/config.json"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("an earlier one", encoding="utf-8")


def contents(root: Path) -> dict[str, object]:
    """Every path of the project but those of training checkpoints, with a file's bytes."""
    found: dict[str, object] = {}
    for folder in UNCHANGED:
        place = root / folder
        for path in [place, *place.rglob("*")]:
            name = path.relative_to(root).as_posix()
            found[name] = path.read_bytes() if path.is_file() else (path.is_dir(), path.is_symlink())
    return found


def assert_error(result: Result, code: int, says: tuple[str, ...]) -> None:
    """One line that starts with "error: ", says what it must, and is harmless on a terminal."""
    assert result.code == code, result
    assert re.fullmatch(r"error: [^\n]+\n", result.err), result.err
    for part in says:
        assert part in result.err
    assert "Traceback" not in result.out + result.err
    assert "\x1b" not in result.out + result.err


def assert_nothing_half_written(root: Path) -> None:
    assert not [path for path in root.rglob(".*") if ".partial-" in path.name or ".old-" in path.name]


# ── each way to damage a file, for each file that is read ─────────────────────────────────────────

RECORDS = {
    f"{TOKENS}/meta.json": "split",
    f"{TOKENS}/tokenizer.json": "split",
    f"{SPLITS}/meta.json": "train",
    f"{CHECKPOINT}/config.json": "generate a",
    f"{CHECKPOINT}/tokenizer.json": "score params.yaml",
    RECORD: "export",
}
"""Files that a stage writes, and a command that reads each."""
NO_RECORDS = {
    "nothing": b"", "half": b"{", "a list": b"[]", "null": b"null", "a text": b'"x"', "NaN": b"NaN",
    "infinity": b'{"x": 1e999}',
    "not UTF-8": b"\xff\xfe{}", "5,000 digits": b"9" * 5000, "100,000 brackets": b"[" * 100_000,
}  # fmt: skip
READ_SETTINGS = ("tokenize", "evaluate", "check", "fit", "chat", "preset book", "lock")
NO_SETTINGS = {
    "a list": b"- a\n", "a tab": b"a:\tb\n\tc: d\n", "NUL": b"a: \0\n", "not UTF-8": b"a: \xff\n",
    "two documents": b"a: 1\n---\na: 2\n",
    "a conflict": b"<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n", "itself": b"zzz: &z {q: *z}\n",
    "5,000 digits": b"a: " + b"9" * 5000, "5,000 brackets": b"a: " + b"[" * 5000,
    "aliases of aliases": b"a0: &a0 [x, x]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10)),
}  # fmt: skip


def damages(readers: list[tuple[str, str]], contents: dict[str, bytes]) -> list[Any]:
    """Each way for each file and command: a third of them in `make test`, the others with --long."""
    return [
        pytest.param(file, command, damage, marks=() if (row + column) % 3 == 0 else pytest.mark.long)
        for row, (file, command) in enumerate(readers)
        for column, damage in enumerate(contents)
    ]


@pytest.mark.parametrize(("file", "command", "damage"), damages(list(RECORDS.items()), NO_RECORDS))
def test_a_damaged_record_is_one_line_with_its_name(
    file: str, command: str, damage: str, trained_project: Project
) -> None:
    root = trained_project.root
    breaks = write(file, NO_RECORDS[damage])
    folder = str(Path(file).parent)
    (signed(folder, breaks) if (root / folder / "manifest.json").exists() else breaks)(root)
    before = contents(root)
    assert_error(trained_project.run(*shlex.split(command)), 1, (file,))
    assert contents(root) == before
    assert_nothing_half_written(root)


@pytest.mark.parametrize(
    ("file", "command", "damage"), damages([("params.yaml", each) for each in READ_SETTINGS], NO_SETTINGS)
)
def test_damaged_settings_are_one_line_with_their_file(
    file: str, command: str, damage: str, trained_project: Project
) -> None:
    root = trained_project.root
    (root / file).write_bytes(NO_SETTINGS[damage])
    before = contents(root)
    assert_error(trained_project.run(*shlex.split(command)), 1, (file,))
    assert contents(root) == before


# ── what must work ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Odd:
    """Odd texts that must become tokens, and the text that the ids must stand for."""

    id: str
    texts: tuple[bytes, ...]
    decoded: str
    settings: str = ""
    out: str = ""


LONG = "ein Ä, ein € und ein 𝄞 " * 60_000
"""More than a block of the reader's (1 MiB) and more than a piece of the encoder's, with wide characters."""

ODD = [
    Odd("a BOM is stripped", (b"\xef\xbb\xbfthe sea",), "the sea"),
    Odd("a BOM inside stays", (b"the \xef\xbb\xbfsea",), "the \ufeffsea"),
    Odd("CRLF is kept", (b"the\r\nsea\rand\n",), "the\r\nsea\rand\n"),
    Odd("CRLF becomes LF", (b"the\r\nsea\rand\n",), "the\nsea\nand\n", "--set tokenize.corpus.files.newlines=lf"),
    Odd("NUL bytes survive", (b"the\0sea\0\0",), "the\0sea\0\0"),
    Odd("end-of-text in the text", (b"the <|endoftext|> sea",), "the <|endoftext|> sea"),
    Odd("no final newline", (b"the sea", b"we"), "the seawe"),
    Odd("an empty file beside", (b"", b"the sea", b""), "the sea"),
    Odd("one letter", (b"x",), "x"),
    Odd(
        "replaced bytes",
        (b"caf\xe9 \xff!",),
        "caf\ufffd \ufffd!",
        "--set tokenize.corpus.files.errors=replace",
        "files: 2 ",
    ),
    Odd("a million a", (b"a" * 10**6,), "a" * 10**6),
    Odd("a million spaces", (b" " * 10**6 + b"\n", b"x"), " " * 10**6 + "\nx"),
    Odd("a million ^", (b"^" * 10**6,), "^" * 10**6),
    Odd("a million line breaks", (b"\n" * 10**6, b"x"), "\n" * 10**6 + "x"),
    Odd(
        "blocks end inside characters",
        (LONG.encode(), b"x" + LONG.encode(), b"xy" + LONG.encode()),
        f"{LONG}x{LONG}xy{LONG}",
    ),
    Odd(
        "a vocabulary larger than the corpus",
        (b"the sea",),
        "the sea",
        "--set tokenize.tokenizer.bpe.vocab_size=1048576",
    ),
    Odd("escape sequences", (b"\x1b[31m<script>",), "\x1b[31m<script>"),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.id)
def test_an_odd_text_is_tokenized_as_it_is(odd: Odd, project: Project) -> None:
    corpus(*odd.texts)(project.root)
    result = project.succeed("tokenize", *shlex.split(odd.settings))
    tokens = TokenFolder(project.root / TOKENS, "")
    ids = np.asarray(tokens.ids("tokens"))
    text = [token for token in ids.tolist() if token != tokens.tokenizer.end_of_text]
    assert tokens.tokenizer.decode(text) == odd.decoded
    assert len(ids) - len(text) == sum(1 for each in odd.texts if each)  # only the ones that end documents
    assert odd.out in result.out
    assert result.err == ""


def test_a_block_boundary_inside_a_character_changes_no_id(project: Project) -> None:
    corpus(b"x" + LONG.encode())(project.root)
    project.succeed("tokenize")
    tokens = TokenFolder(project.root / TOKENS, "")
    whole = tokens.tokenizer.encode("x" + LONG)
    assert np.array_equal(tokens.ids("tokens")[:-1], whole)


@dataclass(frozen=True)
class Fine:
    """What looks wrong and is not."""

    id: str
    command: str
    breaks: Break = lambda root: None


FINE = [
    Fine("no test split", "split --set split.test=0"),
    Fine("CRLF in params.yaml", "split", lambda root: rewrite(root, lambda text: text.replace(b"\n", b"\r\n"))),
    Fine("a BOM in params.yaml", "split", lambda root: rewrite(root, lambda text: b"\xef\xbb\xbf" + text)),
    Fine("no prompts", "evaluate --set 'evaluate.generation.prompts=[]'"),
    Fine("an empty prompt", "generate ''"),
    Fine("beyond the context", "generate a --tokens 40"),
    Fine("a prompt longer than the context", f"generate '{'the river ' * 50}' --tokens 1"),
    Fine("temperature 0", "generate a --set evaluate.samplers.temperature.value=0"),
    Fine("shell characters in a prompt", "generate 'the;$(touch pwned)`touch pwned`'"),
    Fine("shell characters in params", "train --set 'train.eval_callbacks.sample_text.prompt=$(touch pwned)'"),
    Fine("sizes that do not divide", "train --set train.batch_size=3 --set train.micro_batch_size=2"),
    Fine("nearly everything dropped", "train --set model.dropout=0.99"),
    Fine(
        "what a killed process with this very number left",
        "tokenize",
        lambda root: (root / f"artifacts/.tokens.partial-{os.getpid()}").mkdir(),
    ),
    Fine("what a killed process left", "tokenize", lambda root: (root / "artifacts/.tokens.old-99999999").mkdir()),
]


def rewrite(root: Path, change: Callable[[bytes], bytes]) -> None:
    (root / "params.yaml").write_bytes(change((root / "params.yaml").read_bytes()))


@pytest.mark.parametrize("fine", FINE, ids=lambda fine: fine.id)
def test_what_looks_wrong_and_is_not_works(fine: Fine, trained_project: Project) -> None:
    fine.breaks(trained_project.root)
    result = trained_project.succeed(*shlex.split(fine.command))
    assert result.err == ""
    assert_nothing_half_written(trained_project.root)
    assert not list(trained_project.root.rglob("pwned"))


def test_a_number_with_an_exponent_is_a_number(project: Project) -> None:
    from pipeline.params.reader import load_params

    path = project.root / "params.yaml"
    path.write_text(re.sub(r"(adamw:\n +lr:) \S+", r"\1 1e-3", path.read_text()))
    options = load_params(path).train.optimizer.options
    assert options["adamw"]["lr"] == 1e-3
    assert isinstance(options["adamw"]["lr"], float)


def test_a_test_split_of_0_leaves_none(trained_project: Project) -> None:
    trained_project.succeed("split", "--set", "split.test=0")
    assert TokenFolder(trained_project.root / SPLITS, "").names == ["train", "val"]
    trained_project.succeed("train")
    trained_project.succeed("evaluate")
    assert "test" not in json.loads((trained_project.root / "metrics/evaluate.json").read_text())


def test_a_prompt_is_inert_in_the_report_and_on_the_terminal(trained_project: Project) -> None:
    prompt = "<script>alert(1)</script>\x1b[31m\x9b\u202e</pre>"
    settings = ["--set", f"evaluate.generation.prompts={json.dumps([prompt])}"]
    result = trained_project.succeed("evaluate", *settings)
    page = (trained_project.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    for text in (result.out, page, trained_project.succeed("generate", prompt).out):
        assert not re.search("[\x1b\x9b\u202e]", text)
        assert "\\x1b[31m" in text


def test_a_corpus_of_scripts_and_escape_sequences_is_inert_in_the_report(project: Project) -> None:
    text = b"<script>\x1b[31m</script>\n" * 40
    corpus(*[text] * 12)(project.root)
    for stage in ("tokenize", "split", "train"):
        assert "\x1b" not in project.succeed(stage).out
    assert "\x1b" not in project.succeed("evaluate").out
    page = (project.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page


# ── training that is interrupted, damaged or run twice ────────────────────────────────────────────


def checkpoints(root: Path) -> list[Path]:
    return sorted((root / ".resume").glob("*/[0-9]*/state.pth"))


def saved_steps(root: Path) -> set[int]:
    return {json.loads(path.with_name("about.json").read_text())["step"] for path in checkpoints(root)}


OF_THE_CLOCK = {"performance.json", "timing.tsv", "manifest.json"}
"""Files of a checkpoint that differ when the same run is computed again; the manifest lists the others."""


def forget_outputs(root: Path, computed_again: bool = True) -> dict[str, bytes]:
    """Removes what training published; returns the checkpoint's files, those of the clock only where a run is not
    computed again."""
    files = [path for path in sorted((root / CHECKPOINT).rglob("*")) if path.is_file()]
    published = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in files
        if not computed_again or path.name not in OF_THE_CLOCK
    }
    rmtree(root / CHECKPOINT)
    rmtree(root / "metrics")
    return published


def test_a_complete_run_is_published_again(trained_project: Project) -> None:
    published = forget_outputs(trained_project.root, computed_again=False)
    result = trained_project.succeed("train")
    assert "already complete" in result.out
    assert forget_outputs(trained_project.root, computed_again=False) == published


SAVING = ["--set", "runtime.save_seconds=0"]
"""States after every step."""


@pytest.mark.parametrize(
    "damage",
    [
        "truncate",
        "manifest",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("flip", "empty", "html", "no manifest")),
    ],
)
def test_a_damaged_state_is_passed_over_for_the_one_before(damage: str, trained_project: Project) -> None:
    root = trained_project.root
    rmtree(root / ".resume")
    trained_project.succeed("train", *SAVING)
    published = forget_outputs(root)
    _, newest = (path.relative_to(root).as_posix() for path in checkpoints(root))
    manifest = newest.replace("state.pth", "manifest.json")
    {
        "flip": flip_a_bit(newest), "truncate": truncate(newest), "empty": write(newest, ""),
        "html": write(newest, "<html>"), "no manifest": remove(manifest), "manifest": write(manifest, "[]"),
    }[damage](root)  # fmt: skip
    result = trained_project.succeed("train", *SAVING)
    assert f"{Path(newest).parent.name} is corrupt" in result.out
    assert "resuming from step" in result.out
    assert forget_outputs(root) == published


def test_without_any_whole_state_training_starts_over_and_says_so(trained_project: Project) -> None:
    for path in checkpoints(trained_project.root):
        path.write_bytes(b"")
    published = forget_outputs(trained_project.root)
    result = trained_project.succeed("train")
    assert "every training checkpoint of this run is corrupt: training starts over" in result.out
    assert forget_outputs(trained_project.root) == published


def test_a_malicious_state_is_refused(trained_project: Project) -> None:
    (path,) = checkpoints(trained_project.root)
    torch.save({"run": Malicious()}, path)
    write_manifest(path.parent)
    result = trained_project.succeed("train")
    assert "not a checkpoint of plain tensors" in result.out
    assert not list(trained_project.root.rglob("pwned"))


def test_another_shape_or_tokenizer_is_another_run(trained_project: Project) -> None:
    result = trained_project.succeed("train", "--set", "model.n_layers=1")
    assert "going on" not in result.out
    assert "already complete" not in result.out
    assert len(checkpoints(trained_project.root)) == 2


def test_nan_keeps_the_last_good_state(trained_project: Project) -> None:
    result = trained_project.run(*shlex.split(NO_WARMUP), *SAVING)
    assert_error(result, 1, ("step 1",))
    assert 1 in saved_steps(trained_project.root)


@pytest.mark.parametrize("place", ["this run", "this folder"])
def test_two_runs_in_one_place(place: str, trained_project: Project) -> None:
    root = trained_project.root
    (state,) = checkpoints(root)
    before = contents(root)
    lock = state.parents[1] / "lock" if place == "this run" else root / ".resume" / "lock"
    with lock.open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_error(trained_project.run("train"), 1, (place, "already running as process 4711", "kill 4711"))
    assert contents(root) == before
    trained_project.succeed("train")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["train", "evaluate", "generate a"])
def test_a_gpu_that_is_not_there(command: str, trained_project: Project) -> None:
    result = trained_project.run(*shlex.split(command), "--set", "runtime.device=cuda")
    assert_error(result, 1, ("runtime.device", "sees no CUDA GPU", "set it to auto"))


# ── processes of their own ────────────────────────────────────────────────────────────────────────


def start(root: Path, *arguments: str, prefix: str = "", **options: Any) -> subprocess.Popen[str]:
    """Starts `python -m pipeline` in the project; `prefix` is shell code that runs before."""
    settings = [part for value in TINY for part in ("--set", value)] if arguments[0] != "plugins" else []
    command = [sys.executable, "-m", "pipeline", arguments[0], *settings, *arguments[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        ["bash", "-c", f"{prefix} exec {shlex.join(command)}"], cwd=root, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


LONGER = ["--set", "train.budget.amount=200", "--set", "train.evaluation.every=10", "--set", "model.dropout=0.1"]


@pytest.fixture
def longer(trained_project: Project) -> tuple[Project, dict[str, bytes]]:
    """A project with the outputs of a short run, and what a longer one publishes."""
    root = trained_project.root
    kept = root.with_name("kept")
    (root / CHECKPOINT).rename(kept)
    trained_project.succeed("train", *LONGER)
    published = forget_outputs(root)
    kept.rename(root / CHECKPOINT)
    (root / "metrics").mkdir()
    rmtree(root / ".resume")
    return trained_project, published


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_a_signal_saves_and_the_next_run_goes_on(
    number: signal.Signals, code: int, longer: tuple[Project, dict[str, bytes]]
) -> None:
    project, published = longer
    before = contents(project.root)
    process = start(project.root, "train", *LONGER)
    assert process.stdout is not None
    seen = ""
    while "step     10" not in seen:
        line = process.stdout.readline()
        assert line, f"training ended too early: {seen}"
        seen += line
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert re.fullmatch(r"training stopped at step \d+ of \d+; run it again to resume\n", err), err
    assert contents(project.root) == before
    assert "resuming from step" in project.succeed("train", *LONGER).out
    assert forget_outputs(project.root) == published


@pytest.mark.long  # tests/test_faults.py kills at random moments
def test_a_killed_process_leaves_whole_states(longer: tuple[Project, dict[str, bytes]]) -> None:
    project, published = longer
    process = start(project.root, "train", *LONGER, *SAVING)
    deadline = time.monotonic() + 60
    while len(checkpoints(project.root)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert "resuming from step" in project.succeed("train", *LONGER, *SAVING).out
    assert forget_outputs(project.root) == published
    assert_nothing_half_written(project.root)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_memory_that_runs_out_is_one_line(trained_project: Project) -> None:
    before = contents(trained_project.root)
    larger = ["--set", "model.emb_dim=2048", "--set", "model.n_layers=1"]
    process = start(trained_project.root, "train", *larger, prefix="ulimit -v 2000000;")
    out, err = process.communicate(timeout=60)
    assert_error(Result(process.returncode, out, err), 1, ("out of memory", "lower", "model.emb_dim"))
    assert contents(trained_project.root) == before


def test_nobody_reads_on(trained_project: Project) -> None:
    """`| head` ends: a stage goes on to its end in silence."""
    rmtree(trained_project.root / CHECKPOINT)
    process = start(trained_project.root, "train", "--set", "train.seed=3")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
    assert (trained_project.root / BEST).is_file()


def test_a_closed_output_is_no_error(trained_project: Project) -> None:
    process = start(trained_project.root, "split", prefix="exec >&-;")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("stage", ["tokenize", "train"])
def test_a_full_disk_keeps_the_earlier_outputs(stage: str, trained_project: Project) -> None:
    """A limit on file sizes stands for the disk: writing fails in the middle of a file."""
    root = trained_project.root
    before = contents(root)
    process = start(root, stage, "--set", "train.seed=3", prefix="trap '' XFSZ; ulimit -f 4;")
    out, err = process.communicate(timeout=60)
    assert_error(Result(process.returncode, out, err), 1, ("File too large",))
    assert contents(root) == before
    assert_nothing_half_written(root)


def test_a_folder_without_a_project(tmp_path: Path) -> None:
    process = start(tmp_path, "train")
    out, err = process.communicate(timeout=60)
    assert_error(Result(process.returncode, out, err), 1, ("params.yaml is missing", "project's folder"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    process = start(folder, "train", prefix=f"rmdir {shlex.quote(str(folder))};")
    out, err = process.communicate(timeout=60)
    assert_error(Result(process.returncode, out, err), 1, ("current folder was removed", "project's folder"))
