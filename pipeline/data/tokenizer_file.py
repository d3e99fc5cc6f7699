"""Tokenizers from files: a tiktoken file, a tokenizer.json, or a checkpoint's; tried on many texts before use."""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import signal
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import category

from pipeline.core.errors import DataError, check_not_endless
from pipeline.data.patterns import GPT2_PATTERN, cut
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugin.bytelevel import awkward_texts, byte_characters

SECONDS = 15
"""The limit of processor time for the proof of a tokenizer."""

_MEMORY = 1 << 33
_REFUSED = 3
_VARIABLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_BEGINNING = 1000
"""The number of bytes that identify a checkpoint's tokenizer."""


def from_file(path: Path, pattern: str, end_of_text: str, proven: bool = True) -> Tokenizer:
    """Reads a tokenizer: a byte-level BPE from a tiktoken file (lines of a base64 token and its rank) or a
    tokenizer.json, or any tokenizer of a checkpoint of this project.

    Args:
        path: The file.
        pattern: The split pattern for a tiktoken file, which does not contain it: "gpt2" or a regular expression.
        end_of_text: The special token that ends a document; it is added if the file lacks it. A checkpoint's
            tokenizer has its own.
        proven: Whether to try the tokenizer on many texts and compare it with the tokenizers library. This runs in
            a separate process, because a regular expression may not terminate or may crash.

    Raises:
        DataError: the file is missing or corrupt, or tiktoken gives other ids.
    """
    check_not_endless(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: copy the tokenizer's file there, or change tokenize.tokenizer.file.path"
        ) from None
    kind = _kind(content)
    if kind == "checkpoint":
        tokenizer = Tokenizer.load(path, "copy the complete file again")
    elif kind == "tokenizer.json":
        tokenizer = _from_tokenizer_json(path, content, end_of_text)
    else:
        tokenizer = _from_tiktoken(path, content, GPT2_PATTERN if pattern == "gpt2" else pattern, end_of_text)
    try:
        tokenizer.check()
    except ValueError as error:
        raise DataError(f"{path}: {error}: copy the complete file again, or choose another tokenizer") from None
    if proven:
        _prove_in_a_process(tokenizer, path, pattern, end_of_text)
    return tokenizer


def _kind(content: bytes) -> str:
    """What a file is: "checkpoint" for a tokenizer of this project, "tokenizer.json" or "tiktoken"."""
    if not content.lstrip().startswith(b"{"):
        return "tiktoken"
    return "checkpoint" if b'"fingerprint":' in content[:_BEGINNING] else "tokenizer.json"


def byte_ranks(vocab: Mapping[str, int]) -> dict[bytes, int]:
    """The ranks of a byte-level BPE whose tokens are written with gpt2's characters for bytes.

    Raises:
        KeyError: a character stands for no byte.
    """
    to_byte = {character: byte for byte, character in byte_characters().items()}
    return {bytes(to_byte[character] for character in token): rank for token, rank in vocab.items()}


def _from_tiktoken(path: Path, content: bytes, pattern: str, end_of_text: str) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise DataError(
                f"{path} line {number}: neither a base64 token with its rank (tiktoken file) nor JSON "
                "(tokenizer.json): copy the complete file again"
            ) from None
    special = {end_of_text: max(ranks.values(), default=0) + 1}
    return Tokenizer(path.name, pattern, ranks, special, end_of_text)


def _from_tokenizer_json(path: Path, content: bytes, end_of_text: str) -> Tokenizer:
    try:
        saved = json.loads(content)
        vocab = {str(token): int(rank) for token, rank in saved["model"]["vocab"].items()}
        special = _added_tokens(saved)
        pattern = _pattern(path, saved)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a tokenizer.json ({type(error).__name__}: {error})") from None
    try:
        ranks = byte_ranks({token: rank for token, rank in vocab.items() if token not in special})
    except KeyError as error:
        raise DataError(
            f"{path}: a token contains {error}, which byte-level BPEs do not use: choose another tokenizer"
        ) from None
    special.setdefault(end_of_text, max([*ranks.values(), *special.values()], default=0) + 1)
    template, variables = _template_beside(path)
    return Tokenizer(path.name, pattern, ranks, special, end_of_text, template, variables)


def _added_tokens(saved: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens of a tokenizer.json. Those with `"special": false`, such as `<think>`, are among them:
    transformers finds these in any text, but here no text may give a token that a template writes."""
    return {str(token["content"]): int(token["id"]) for token in saved.get("added_tokens") or []}


def special_tokens_in(path: Path) -> dict[str, int]:
    """The special tokens in a JSON file that `from_file` has read, without an end of documents that it adds."""
    saved = json.loads(path.read_bytes())
    return saved["special_tokens"] if "fingerprint" in saved else _added_tokens(saved)


def _template_beside(path: Path) -> tuple[str, dict[str, str]]:
    """The chat template of a Hugging Face folder and its variables; empty if there is none.

    Raises:
        DataError: a file is damaged.
    """
    config, jinja = path.parent / "tokenizer_config.json", path.parent / "chat_template.jinja"
    try:
        template, variables = template_of_config(config.read_text("utf-8")) if config.is_file() else ("", {})
    except ValueError as error:
        raise DataError(f"{config} {error}: copy the complete file again, or remove it") from None
    if jinja.is_file():
        try:
            template = jinja.read_text("utf-8")
        except ValueError as error:
            raise DataError(f"{jinja} is not UTF-8 text ({error}): copy the complete file again") from None
    return template, variables if template else {}


def template_of_config(text: str) -> tuple[str, dict[str, str]]:
    """The chat template in a tokenizer_config.json, empty if it has none, and the variables of templates there.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        config = json.loads(text)
        found = config.get("chat_template") or ""
        if isinstance(found, list):  # several, by name
            found = {each["name"]: each["template"] for each in found}.get("default", "")
        if not isinstance(found, str):
            raise TypeError(f"chat_template is {str(found)[:40]}, not a text")
        tokens = {name: config.get(name) for name in _VARIABLES}
        contents = {name: each["content"] if isinstance(each, dict) else each for name, each in tokens.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is not a tokenizer_config.json ({type(error).__name__}: {error})") from None
    return found, {name: str(content) for name, content in contents.items() if content is not None}


def _prove_in_a_process(tokenizer: Tokenizer, path: Path, *arguments: str) -> None:
    command = [sys.executable, "-c", f"import {__name__} as this; this.main()", str(SECONDS), str(path), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode == _REFUSED:
        raise DataError(done.stdout.decode())
    if done.returncode:
        why = f"takes over {SECONDS} s" if done.returncode == -signal.SIGXCPU else "crashes"
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"code {done.returncode}"
        raise DataError(f"{path}: the split pattern {tokenizer.pattern!r} {why} ({last}): choose another tokenizer")


def main() -> None:
    """Entry point of the separate process: proves a tokenizer within the time limit; prints what is wrong."""
    for kind, limit in ((resource.RLIMIT_CPU, int(sys.argv[1])), (resource.RLIMIT_AS, _MEMORY)):
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    path, pattern, end_of_text = Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    tokenizer = from_file(path, pattern, end_of_text, proven=False)
    texts = _proof_texts(tokenizer)
    try:
        _check_pattern(tokenizer, texts, path)
        content = path.read_bytes()
        if _kind(content) == "tokenizer.json":
            _check_same_ids(tokenizer, texts, path, content)
    except DataError as error:
        sys.stdout.buffer.write(str(error).encode())
        sys.exit(_REFUSED)


def _check_same_ids(tokenizer: Tokenizer, texts: Sequence[str], path: Path, content: bytes) -> None:
    """Compares the ids with those of the tokenizers library: it merges by a list of merges, tiktoken by rank."""
    from tokenizers import Tokenizer as Reader

    try:
        reader = Reader.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: the tokenizers library cannot read it: {' '.join(str(error).split())}") from None
    reader.encode_special_tokens = True
    for text in texts:
        if any(name in text for name in tokenizer.special_tokens):
            continue  # the library may encode them as added tokens
        if reader.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
            raise DataError(
                f"{path}: tiktoken and the tokenizers library give different ids for {text[:30]!r}: choose another "
                "tokenizer"
            )


def _pattern(path: Path, saved: Mapping[str, Any]) -> str:
    """The split pattern of a byte-level BPE; raises DataError for other kinds of tokenizers."""
    model, before, normalizer = saved["model"], saved.get("pre_tokenizer") or {}, saved.get("normalizer")
    *first, last = before.get("pretokenizers") or [before]
    found = ", ".join(str(step.get("type")) for step in [*first, last])
    if model.get("type") != "BPE" or model.get("byte_fallback") or last.get("type") != "ByteLevel":
        problem = f"is a {model.get('type')} tokenizer with {found}: choose a byte-level BPE"
    elif normalizer:
        problem = f"has a normalizer ({normalizer.get('type')}), which changes the text: choose another tokenizer"
    elif last.get("add_prefix_space"):
        problem = "adds a space before each text (add_prefix_space): choose a tokenizer that does not"
    elif not first and last.get("use_regex", True):
        return GPT2_PATTERN
    else:
        match first:
            case [{"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", **others}] if (
                regex and not others.get("invert") and not last.get("use_regex", True)
            ):
                return regex
        problem = (
            f"cuts text into words with {found}: choose a tokenizer with ByteLevel alone, or one Split by a "
            "regular expression (Isolated) and ByteLevel"
        )
    raise DataError(f"{path} {problem}")


def _check_pattern(tokenizer: Tokenizer, texts: Sequence[str], path: Path) -> None:
    """Checks that encoding loses no text, and that texts may be cut where `data.encode` cuts them."""
    nothing = tokenizer.vocab_size  # without a rank for empty matches, tiktoken panics
    probe = replace(tokenizer, ranks={**tokenizer.ranks, b"": nothing})
    what = f"{path}: the split pattern {tokenizer.pattern!r}"
    for text in texts:
        try:
            ids = probe.encode(text).tolist()
        except ValueError as error:
            raise DataError(f"{what} cannot be used: {' '.join(str(error).split())}") from None
        if nothing in ids or probe.decode(ids) != text:
            raise DataError(
                f"{what} loses a part of {text[:30]!r}: it must match every character, and no empty string"
            )
        text = "".join(each for each in text if category(each) != "Cn")  # never cut beside these
        parts = cut(text, probe.pattern, max(8, len(text) // 8))
        if [token for part in parts for token in probe.encode(part).tolist()] != probe.encode(text).tolist():
            raise DataError(
                f"{what} looks behind or far ahead, so that long texts cannot be cut between words: choose "
                "another tokenizer"
            )


def _proof_texts(tokenizer: Tokenizer) -> list[str]:
    """Texts for the proof: long runs, awkward texts, and all tokens in random order; only characters that the
    tokenizer has."""
    tokens = [text for text in (token.decode("utf-8", "ignore") for token in tokenizer.ranks) if text]
    random.Random(0).shuffle(tokens)
    texts = [run * length for length in (20, 40, 400) for run in ("a", "1", " ", "\n", "-", "é", "語", "ab ", "1a")]
    texts += [string.printable + text + string.printable for text in texts]
    texts += awkward_texts() + ["".join(tokens[start : start + 50]) for start in range(0, len(tokens), 50)]
    known = tokenizer.alphabet
    return texts if known is None else ["".join(filter(known.__contains__, text)) for text in texts]
