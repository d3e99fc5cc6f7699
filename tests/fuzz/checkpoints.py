"""Broken checkpoints, token folders, Hugging Face folders and results: each with a manifest that agrees."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz import project
from tests.fuzz.case import (
    CHECKPOINT,
    RAW_DIGITS,
    SPLITS,
    TOKENS,
    WEIRD,
    Break,
    Case,
    both,
    case,
    damage_json,
    damaged,
    dump,
    edit,
    mutated,
    set_json,
    set_param,
    signed,
    with_set,
    write,
)  # fmt: skip
from tests.fuzz.training_checkpoints import change_tensors, filled

WEIGHT = 3
_USERS = ("evaluate", "generate the", "score data/raw/text-00.txt")
_CONFIG, _RECORD, _TOKENIZER = (f"{CHECKPOINT}/{name}" for name in ("config.json", "run.json", "tokenizer.json"))


def _config(**values: Any) -> Break:
    """Changes the checkpoint's config: sizes in its shape, the rest beside it."""

    def change(text: str) -> str:
        saved = json.loads(text)
        for key, value in values.items():
            (saved["shape"] if key in saved["shape"] else saved)[key] = value
        return dump(saved)

    return signed(CHECKPOINT, edit(_CONFIG, change))


def _weights(change: Callable[[dict[str, Any]], object], file: str = "best.pth") -> Break:
    return signed(CHECKPOINT, lambda root: change_tensors(file, change)(root / CHECKPOINT))


def fingerprinted(path: str, **values: Any) -> Break:
    """Changes a tokenizer.json of the project's own form, fingerprint and all."""

    def change(text: str) -> str:
        saved = json.loads(text) | values
        contents = {key: saved[key] for key in ("pattern", "special_tokens", "end", "ranks")}
        digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
        return dump(saved | {"fingerprint": digest})

    return edit(path, change)


def _ranks(change: Callable[[list[Any]], object]) -> Callable[[str], Break]:
    def of(path: str) -> Break:
        def breaks(root: Path) -> None:
            ranks = json.loads((root / path).read_text(encoding="utf-8"))["ranks"]
            change(ranks)
            fingerprinted(path, ranks=ranks)(root)

        return breaks

    return of


_TOKENIZERS: list[tuple[str, Callable[[str], Break]]] = [
    *(
        (f"pattern {pattern!r:.30}", lambda path, pattern=pattern: fingerprinted(path, pattern=pattern))
        for pattern in ("[a-z]+", "(", "", "(a+)+$", r"(?:\s*a*)*b|.", ".", "x", r"\w+", 3, None, "(?<=a", "[^ ]+")
    ),
    ("colliding ids", _ranks(lambda ranks: ranks[-1].__setitem__(1, ranks[-2][1]))),
    ("an id of 2^60", _ranks(lambda ranks: ranks[-1].__setitem__(1, 2**60))),
    ("an id of 2^31", _ranks(lambda ranks: ranks[-1].__setitem__(1, 2**31))),
    ("a negative id", _ranks(lambda ranks: ranks[-1].__setitem__(1, -1))),
    ("an id of text", _ranks(lambda ranks: ranks[-1].__setitem__(1, "7"))),
    ("an id 1.5", _ranks(lambda ranks: ranks[-1].__setitem__(1, 1.5))),
    ("a byte missing", _ranks(lambda ranks: ranks.pop(40))),
    ("a token twice", _ranks(lambda ranks: ranks.append(ranks[0]))),
    ("an empty token", _ranks(lambda ranks: ranks[-1].__setitem__(0, ""))),
    ("no base64", _ranks(lambda ranks: ranks[-1].__setitem__(0, "é%"))),
    ("no ranks", lambda path: fingerprinted(path, ranks=[])),
    ("no special tokens", lambda path: fingerprinted(path, special_tokens={})),
    ("an end that is none", lambda path: fingerprinted(path, end="<nope>")),
    ("the end's id is a word's", lambda path: fingerprinted(path, special_tokens={"<|endoftext|>": 5})),
    ("the end's id is 2^60", lambda path: fingerprinted(path, special_tokens={"<|endoftext|>": 2**60})),
    ("special tokens a list", lambda path: fingerprinted(path, special_tokens=["<|endoftext|>"])),
    ("a special token's id text", lambda path: fingerprinted(path, special_tokens={"<|endoftext|>": "x"})),
]
_SIZES = (0, -1, 10**9, 2**40, 2**63, 1.5, 16.5, "2", None, True, [], float("nan"), float("inf"), RAW_DIGITS)


def _own_tokenizer(change: Callable[[str], Break]) -> Break:
    return both(lambda root: shutil.copy(root / _TOKENIZER, root / "data" / "tokenizer.json"),
                change("data/tokenizer.json"))  # fmt: skip


def _meta(side: str, **values: Any) -> Break:
    return signed(side, set_json(f"{side}/meta.json", **values))


def _ids(path: str, value: int) -> Break:
    def breaks(root: Path) -> None:
        ids = np.fromfile(root / path, dtype="<u2")
        ids[3] = value
        (root / path).unlink()
        ids.tofile(root / path)

    return breaks


def _init(folder: str, breaks: Break) -> Break:
    return both(set_param("train.init_from", folder), breaks)


def _locked(change: Callable[[str], str]) -> Break:
    """A commit in which dvc.lock, or params.yaml, is broken."""
    return both(edit("dvc.lock", change), project.commit)


def _cached(content: bytes) -> Break:
    """A commit whose reports DVC's cache holds as something else."""

    def breaks(root: Path) -> None:
        for listing in (root / ".dvc/cache").rglob("*.dir"):
            listing.unlink()
            listing.write_bytes(content)

    return breaks


def _index(path: str, key: str, value: Any) -> Break:
    """Sets a field of the last document of an index."""

    def breaks(root: Path) -> None:
        records = np.load(root / path)
        records[key][-1] = value
        (root / path).unlink()
        np.save(root / path, records)

    return breaks


FIXED: list[Case] = [
    *(case(f"config.json {key} {value!r:.20}", "generate the", _config(**{key: value}), want="error")
      for key in ("n_layers", "n_heads", "emb_dim", "context_length", "vocab_size") for value in _SIZES),
    *(case(f"config.json {key} {value!r:.20}", "score data/raw/text-00.txt", _config(**{key: value}))
      for key, value in [
          ("name", "x"), ("name", None), ("name", []), ("dropout", "x"), ("dropout", 5), ("options", 3),
          ("pad_vocab_to", 0), ("pad_vocab_to", -8), ("pad_vocab_to", 10**12), ("options", {"mlp_dim": -1}),
          ("shape", None), ("options", {"init": float("nan")}), ("document_end", 10**9), ("document_end", "x"),
          ("options", {"tied_head": "no"}), ("options", {"qkv_bias": "x"}), ("future", 1)]),
    *(case(f"weights: {note}", command, _weights(change), want="error") for command in _USERS for note, change in [
        ("NaN", filled(float("nan"))),
        ("infinite", filled(float("inf"), "token_embedding.weight")),
        ("step NaN", lambda saved: saved.update(step=float("nan"))),
        ("step infinite", lambda saved: saved.update(step=float("inf"))),
        ("step text", lambda saved: saved.update(step="x")), ("step -1", lambda saved: saved.update(step=-1)),
        ("a list", lambda saved: [1]), ("model_state_dict a list",
            lambda saved: saved.update(model_state_dict=[1])),
        ("a weight of text", lambda saved: saved["model_state_dict"].update({"head.weight": "x"})),
    ]),
    case("weights: NaN", "export", _weights(
        filled(float("nan"))), want="error"),
    *(case(f"run.json {text[:20]!r}", command, signed(CHECKPOINT, write(_RECORD, text)), want="error")
      for text in ("[]", "3", "null", "{}", "7" * 5000, '{"params": []}', '{"params": {"train": 3}}', "[" * 99_999)
      for command in ("evaluate", "export")),
    *(case(f"checkpoint's tokenizer: {note}", "generate the", signed(CHECKPOINT, change(_TOKENIZER)), want="error")
      for note, change in _TOKENIZERS),
    *(with_set(case(f"a tokenizer file: {note}", "tokenize", _own_tokenizer(change), want="error"),
               "tokenize.tokenizer.name=file") for note, change in _TOKENIZERS if "pattern '.'" not in note),
    *(case(f"tokens' meta.json {key} {value!r:.20}", "split", _meta(TOKENS, **{key: value}), want="error")
      for key, value in [
          ("dtype", "float32"), ("dtype", "object"), ("dtype", "<u4"), ("dtype", 3), ("dtype", "x"), ("dtype",
              None),
          ("files", {}), ("files", []), ("files", {"tokens": {"tokens": 10**12, "documents": 1, "bytes": 1}}),
          ("files", {"tokens": {"tokens": -1, "documents": 1, "bytes": 1}}), ("files", {"tokens": {"tokens": "x"}}),
          ("files", {"tokens": {"tokens": 1.5}}), ("vocab_size", -1), ("vocab_size", "x"), ("tokenizer",
              {"fingerprint": 3}),
          ("params", 3), ("files", {"../x": {"tokens": 1}}),
      ]),
    *(case(f"splits' meta.json {key} {value!r:.40}", command, _meta(SPLITS, **{key: value}), want="error")
      for command in ("train", "evaluate") for key, value in [
          ("dtype", "float32"), ("dtype", "<i2"), ("dtype", "S2"), ("files", {"train": {"tokens": 5}}),
          ("files", {side: {"tokens": 0, "documents": 0, "bytes": 0} for side in ("train", "val", "test")}),
          ("files", {side: {"tokens": 10**12, "documents": 1, "bytes": 1} for side in ("train", "val", "test")}),
          ("files", {side: {"tokens": float("inf")} for side in ("train", "val", "test")}),
          ("params", {"tokenize": 3}), ("params", {"split": [], "tokenize": None}),
      ]),
    *(case(f"{path}: an id beyond the vocabulary", command, signed(folder, _ids(f"{folder}/{path}", 60_000)),
        want="error")
      for command, folder, path in [("split", TOKENS, "tokens-00000-of-00001.bin"), ("train", SPLITS, "val.bin"),
                                    ("train", SPLITS, "train.bin"), ("evaluate", SPLITS, "test.bin")]),
    *(case(f"an index whose {key} is {value!r:.20}", command, signed(folder, _index(path, key, value)),
        want="error")
      for command, folder, path in [("split", TOKENS, f"{TOKENS}/tokens-00000-of-00001.idx.npy"),
                                    ("evaluate", SPLITS, f"{SPLITS}/val.idx.npy")]
      for key, value in [("start", 7), ("start", 10**12), ("tokens", 0), ("tokens", 2**60), ("name_hash", 0),
                         ("split", 9), ("continues", 1), ("continues", 9)]),
    *(case(f"Hugging Face config.json {key} {value!r:.20}", "train", _init("data/weights/hf", set_json(
        "data/weights/hf/config.json", **{key: value})), want="error")
      for key in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions") for value in _SIZES),
    *(case(f"Hugging Face config.json {key} {value!r:.20}", "train", _init("data/weights/hf", set_json(
        "data/weights/hf/config.json", **{key: value})))
      for key, value in [("model_type", 3), ("model_type", []), ("architectures", 3), ("n_inner", "x"),
                         ("tie_word_embeddings", "x"), ("rope_scaling", 3), ("quantization_config", {}),
                         ("activation_function", []), ("layer_norm_epsilon", "x"), ("layer_norm_epsilon", {})]),
    *(case(f"Hugging Face config.json: {text[:20]!r}", "train", _init("data/weights/hf", write(
        "data/weights/hf/config.json", text)), want="error") for text in ("[]", "3", "null", "7" * 5000,
        "[" * 99_999)),
    *(case(f"dvc.lock under compare: {note}", "compare HEAD .", _locked(change), want="error", names="dvc.lock")
      for note, change in [
          ("conflict markers", lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> b\n"),
          ("tabs", lambda text: text.replace("  ", "\t")), ("NUL", lambda text: text + "\0"),
          ("a list", lambda text: "- a\n"), ("a self-reference", lambda text: "stages: &z {evaluate: *z}\n"),
          ("deep nesting", lambda text: "[" * 5000), ("a number", lambda text: "3\n"),
          ("outs of text", lambda text: "stages: {evaluate: {outs: [x]}}\n"),
          ("md5 a list", lambda text: "stages: {evaluate: {outs: [{path: reports, md5: []}]}}\n"),
          ("md5 with slashes", lambda text: "stages: {evaluate: {outs: [{path: reports, md5: ../../x}]}}\n"),
          ("md5 with NUL", lambda text: 'stages: {evaluate: {outs: [{path: reports, md5: "a\\0b"}]}}\n'),
      ]),
    *(case(f"a cache object {content[:12]!r}", "compare HEAD .", _cached(content), want="error") for content in (
        b"\xff\xfe\x00", b"[]", b"{}", b"3", b"", b"7" * 5000, b'[{"relpath": 3}]', b"[" * 99_999,
        b'[{"relpath": "../../x", "md5": "ab"}]', b'[{"relpath": "a\\u0000", "md5": "\\u0000"}]', b"[1]")),
    *(case(f"{path} {text[:20]!r}", "compare HEAD .", write(path, text), want="error")
      for path in ("metrics/evaluate.json", "reports/evaluation.json", "reports/documents.tsv",
          "reports/blocks.tsv")
      for text in ("[]", "3", "null", "", "7" * 5000, "[" * 99_999, "\x00", '{"a": NaN}')),
]  # fmt: skip

_FILES = [  # file, the folder of its manifest, the commands that read it
    (_CONFIG, CHECKPOINT, _USERS), (_RECORD, CHECKPOINT, ("evaluate", "export", "check")),
    (_TOKENIZER, CHECKPOINT, _USERS), (f"{CHECKPOINT}/weights.json", CHECKPOINT, _USERS),
    (f"{TOKENS}/meta.json", TOKENS, ("split", "check")),
    (f"{SPLITS}/meta.json", SPLITS, ("train", "evaluate")), (f"{CHECKPOINT}/manifest.json", "", _USERS),
    (f"{TOKENS}/manifest.json", "", ("split",)), (f"{SPLITS}/manifest.json", "", ("train", "check")),
    ("metrics/evaluate.json", "", ("compare HEAD .", "export")), ("metrics/train.json", "", ("evaluate",)),
    ("reports/evaluation.json", "", ("compare HEAD .", "export")),
    ("data/weights/hf/config.json", "", ("train",)), ("data/weights/hf/tokenizer.json", "", ("train",)),
    ("data/weights/own/config.json", "data/weights/own", ("train",)),
]  # fmt: skip
_TABLES = [
    (f"{TOKENS}/tokens-00000-of-00001.idx.npy", TOKENS, ("split",)), (f"{SPLITS}/train.idx.npy", SPLITS,
        ("train",)), (f"{TOKENS}/tokens-00000-of-00001.names.jsonl", TOKENS, ("split",)), 
    (f"{SPLITS}/val.names.jsonl", SPLITS, ("evaluate",)), (f"{SPLITS}/train.counts.npy", SPLITS, ("evaluate",)),
    (f"{SPLITS}/val.idx.npy", SPLITS, ("evaluate",)), ("reports/documents.tsv", "", ("compare HEAD .",)),
    ("reports/blocks.tsv", "", ("compare HEAD .",)), (f"{TOKENS}/tokens-00000-of-00001.bin", TOKENS, ("split",)),
    (f"{SPLITS}/val.bin", SPLITS, ("train", "evaluate")), ("dvc.lock", "", ("compare HEAD .",)),
    (f"{CHECKPOINT}/best.pth", CHECKPOINT, _USERS), (f"{CHECKPOINT}/samples.jsonl", CHECKPOINT, ("evaluate",
        "export")),
    (f"{CHECKPOINT}/metrics/history.tsv", CHECKPOINT, ("evaluate",)), ("metrics/history.tsv", "", ("evaluate",)),
    ("data/weights/hf/model.safetensors", "", ("train",)), ("environment.yaml", "", ("lock",)),
]  # fmt: skip


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """One value, line or byte of one file changed, with the manifest beside it made anew."""
    kind, seed = draw.random(), draw.randrange(2**32)
    if kind < 0.12:
        odd = [value for value in WEIRD if value != RAW_DIGITS] + [torch.ones(2), torch.tensor(float("nan"))]
        return case(f"best.pth ({seed})", draw.choice(_USERS), _weights(lambda saved: mutated(
            saved, random.Random(seed), lambda: random.Random(seed).choice(odd))[0]))  # fmt: skip
    if kind < 0.25:
        path, folder, commands = draw.choice(_FILES[:1] + _FILES[2:3])
        change = fingerprinted if path == _TOKENIZER else set_json
        key = draw.choice(("pattern", "end", "special_tokens", "ranks", "name") if path == _TOKENIZER else
                          ("n_layers", "n_heads", "emb_dim", "context_length", "vocab_size", "pad_vocab_to",
                              "name"))  # fmt: skip
        value = draw.choice(WEIRD)
        return case(
            f"{path} {key} {value!r:.20}", draw.choice(commands), signed(folder, change(path, **{key: value}))
        )
    if kind < 0.7:
        path, folder, commands = draw.choice(_FILES)
        breaks, note = damage_json(path, draw)
    else:
        path, folder, commands = draw.choice(_TABLES)
        breaks, note = _damage(path, seed), f"({seed})"
    if "weights" in path:
        breaks = _init("data/weights/own" if "own" in path else "data/weights/hf", breaks)
    if folder:
        breaks = signed(folder, breaks)
    if "compare" in commands[0] and path == "dvc.lock":
        breaks = both(breaks, lambda root: project.git(root, "add", "-A"), project.commit)
    return case(f"{path}: {note}", draw.choice(commands), breaks)


def _damage(path: str, seed: int) -> Break:
    """Breaks a file's bytes, or a field of one of its lines."""

    def breaks(root: Path) -> None:
        draw, content = random.Random(seed), (root / path).read_bytes()
        if draw.random() < 0.4 or path.endswith((".bin", ".npy", ".pth", ".safetensors")):
            return write(path, damaged(content, draw))(root)  # type: ignore[return-value]
        lines = content.decode().splitlines()
        at = draw.randrange(len(lines))
        value = draw.choice(WEIRD)
        if path.endswith(".jsonl"):
            lines[at] = dump(mutated(json.loads(lines[at]), draw, lambda: value)[0])
        else:
            cells = lines[at].split("\t")
            cells[draw.randrange(len(cells))] = str(value if value != RAW_DIGITS else "7" * 5000)
            lines[at] = "\t".join(cells)
        return write(path, "\n".join(lines) + "\n")(root)  # type: ignore[return-value]

    return breaks
