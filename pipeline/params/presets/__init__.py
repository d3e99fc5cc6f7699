"""Presets: complete sets of params, written into params.yaml so that DVC sees every value."""

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
from pipeline.core.params_diff import shown
from pipeline.core.yaml import yaml_values
from pipeline.params.reader import read_sections

_FOLDER = Path(__file__).parent
_BASE = "tiny"

PRESETS = {
    _BASE: "the default: a small GPT on Python's documentation, about six minutes on two cores",
    "book": "a textbook's run: GPT-2 small with the gpt2 encoding, 10 epochs of a short story, half an hour",
    "shakespeare-char": "nanoGPT's run on a CPU: characters, 0.8 million parameters, 2000 steps, a few minutes",
    "shakespeare-fast": "the loss of nanoGPT's run in a tenth of its processor time: ten seconds",
    "shakespeare-best": "a much lower loss than nanoGPT's run in the same time: characters, 0.8 million parameters",
    "chat-tiny": "conversations: the default run's model learns to answer questions, three minutes on two cores",
    "gpt2-124m": "GPT-2 small from scratch, context 1024, 2.5 billion tokens: for a GPU and gigabytes of text",
}
"""The presets and their descriptions."""
BEGIN_WITH_BASE = frozenset({"chat-tiny"})
"""The presets whose run begins with the default run's checkpoint, kept in data/weights/base."""


def write_preset(name: str, path: Path) -> list[str]:
    """Writes a preset into a params file: all values except `runtime`. Comments and options of other components
    stay.

    Returns:
        The changes, each as `key: old → new`; old is None if the key was missing.

    Raises:
        ParamsError: the preset is unknown, or the file is not valid YAML.
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
    changes = list(_merge(params, values, "", align=True))
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
    """Encodes `text` with the byte order mark, the line endings and the final newline of the `old` file."""
    if old and not old.endswith((b"\n", b"\r")):
        text = text.rstrip("\n")
    if b"\r\n" in old:
        text = text.replace("\n", "\r\n")
    return (BOM_UTF8 if old.startswith(BOM_UTF8) else b"") + text.encode()


def _text(name: str) -> str:
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def _merge(target: CommentedMap, source: CommentedMap, where: str, align: bool = False) -> Iterator[str]:
    """Copies every value of `source` to `target`, section by section; yields the differences. `align` puts the
    comments after changed values where they are in `source`."""
    for key, new in source.items():
        dotted = f"{where}{key}"
        old = target.get(key)
        if isinstance(new, CommentedMap) and isinstance(old, CommentedMap):
            yield from _merge(old, new, f"{dotted}.", align)
        elif key not in target or old != new or isinstance(old, bool) != isinstance(new, bool):
            target[key] = new
            if align:
                _align(target, source, key)
            yield f"{dotted}: {shown(old)} → {shown(new)}"


def _align(target: CommentedMap, source: CommentedMap, key: str) -> None:
    """Puts the comment after a value where `source` has it: a long value has moved it to the right."""
    comments = [each.ca.items[key][2] for each in (target, source) if key in each.ca.items]
    if len(comments) == 2 and all(comments):
        comments[0].start_mark.column = comments[1].start_mark.column
