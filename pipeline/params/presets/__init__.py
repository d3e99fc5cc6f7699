"""Presets: whole runs as explicit values, written into params.yaml so that DVC sees every one of them."""

from __future__ import annotations

import io
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.core.errors import ParamsError
from pipeline.core.files import write_atomically
from pipeline.core.yaml import yaml_values
from pipeline.params.reader import read_sections

_FOLDER = Path(__file__).parent
_BASE = "tiny"

PRESETS = {
    _BASE: "the default: a small GPT on the documentation that every Python carries, five minutes on two cores",
    "book": "a textbook's run: GPT-2 small with the gpt2 encoding, 10 epochs over a short story, half an hour",
    "shakespeare-char": "nanoGPT's run on a CPU: characters, 0.8 million parameters, 2000 steps, a few minutes",
    "shakespeare-fast": "as good as nanoGPT's run in a tenth of its processor time: ten seconds",
    "shakespeare-best": "as long as nanoGPT's run and far better: characters, 0.8 million parameters",
    "gpt2-124m": "GPT-2 small from scratch, context 1024, 2.5 billion tokens: for a GPU and gigabytes of text",
}
"""Each preset's name and what it is; all but the first read every file under data/raw."""


def write_preset(name: str, path: Path) -> list[str]:
    """Sets every value but those of `runtime`, and keeps comments and the options of components of your own.

    Returns:
        What was changed, each as `key: old → new`; old is None where the key was missing.

    Raises:
        ParamsError: there is no such preset, or the file cannot be read as YAML.
    """
    if name not in PRESETS:
        raise ParamsError(f"there is no preset {name!r} (there are: {', '.join(PRESETS)})")
    values = _yaml().load(_text(_BASE))
    if name != _BASE:
        list(_merge(values, _yaml().load(_text(name)), ""))
    values.pop("runtime")
    return _write(values, path)


def write_values(values: Mapping[str, Any], path: Path, write: bool = True) -> list[str]:
    """Sets the values of dotted keys, and keeps everything else; with `write` False, it only says what would
    change.

    Returns, Raises:
        As `write_preset`.
    """
    nested = CommentedMap()
    for key, value in values.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, CommentedMap())
        place[last] = value
    return _write(nested, path, write)


def _write(values: CommentedMap, path: Path, write: bool = True) -> list[str]:
    params: Any = read_sections(path, _yaml().load) if path.exists() else _yaml().load(_text(_BASE))
    changes = list(_merge(params, values, ""))
    if write and (changes or not path.exists()):
        buffer = io.StringIO()
        _yaml().dump(params, buffer)
        write_atomically(path, _formed_as(path.read_bytes() if path.exists() else b"", buffer.getvalue()))
    return changes


def _yaml() -> YAML:
    yaml = YAML()  # keeps comments
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml


def default_values() -> dict[str, Any]:
    """The values of the shipped params.yaml."""
    values: dict[str, Any] = yaml_values(_text(_BASE))
    return values


def _formed_as(old: bytes, text: str) -> bytes:
    """`text` with the byte order mark, the line endings and the end of an older file."""
    if old and not old.endswith((b"\n", b"\r")):
        text = text.rstrip("\n")
    if b"\r\n" in old:
        text = text.replace("\n", "\r\n")
    return (BOM_UTF8 if old.startswith(BOM_UTF8) else b"") + text.encode()


def _text(name: str) -> str:
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def _merge(target: CommentedMap, source: CommentedMap, where: str) -> Iterator[str]:
    """Sets every value of `source` in `target`, section by section; yields what differed."""
    for key, new in source.items():
        dotted = f"{where}{key}"
        old = target.get(key)
        if isinstance(new, CommentedMap) and isinstance(old, CommentedMap):
            yield from _merge(old, new, f"{dotted}.")
        elif key not in target or old != new or isinstance(old, bool) != isinstance(new, bool):
            target[key] = new
            yield f"{dotted}: {old} → {new}"
