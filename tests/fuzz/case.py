"""A case: what is broken in a tiny project, and which command meets it. And the values that break things."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.files import write_manifest

Break = Callable[[Path], object]
CHECKPOINT, SPLITS, TOKENS = "artifacts/checkpoint", "artifacts/splits", "artifacts/tokens"


@dataclass(frozen=True)
class Case:
    """One broken input.

    Attributes:
        note: What is broken, in a few words.
        command: The arguments of `pipeline`.
        breaks: Breaks the project, whose root it is given.
        want: "error": the exit code must not be 0; "ok": it must be; "": either will do.
        names: What an error must name.
        after: What is wrong after exit code 0, from the project's root and the standard output; empty for nothing.
        then: A further command, judged by the same rules, that meets what the first one left.
        killed: Whether the command may be killed by what is planted, which is then no crash.
        plant: Runs in the process of the command, just before it.
        unprivileged: Whether permissions must count, which they do not for root.
        left: A pattern of what may be left after exit code 0, and the next command removes.
        folder: The name of the project's folder, if that is what is odd.
    """

    note: str
    command: tuple[str, ...]
    breaks: Break = lambda root: None
    want: str = ""
    names: str = ""
    after: Callable[[Path, str], str] = lambda root, out: ""
    then: tuple[str, ...] = ()
    killed: bool = False
    plant: Callable[[], object] = lambda: None
    unprivileged: bool = False
    folder: str = ""
    left: str = "(?!)"


def case(note: str, command: str, breaks: Break = lambda root: None, **more: Any) -> Case:
    """A case whose command is one text without quotes."""
    return Case(note, tuple(command.split()), breaks, **more)


def with_set(base: Case, *settings: str) -> Case:
    """The case with settings of `--set`."""
    return replace(base, command=base.command + tuple(part for each in settings for part in ("--set", each)))


# ── ways to break a project ───────────────────────────────────────────────────────────────────────


def write(path: str, content: str | bytes) -> Break:
    def breaks(root: Path) -> None:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be a link to the file of all cases
        target.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)

    return breaks


def edit(path: str, change: Callable[[str], str]) -> Break:
    return lambda root: write(path, change((root / path).read_text(encoding="utf-8")))(root)


def both(*every: Break) -> Break:
    return lambda root: [breaks(root) for breaks in every]


def signed(folder: str, *every: Break) -> Break:
    """Breaks files and makes the manifest agree, as whoever changed them would."""
    return both(*every, lambda root: write_manifest(root / folder))


def set_json(path: str, **values: Any) -> Break:
    return edit(path, lambda text: dump(json.loads(text) | values))


def set_param(key: str, value: str) -> Break:
    """Puts a piece of YAML in the place of a key's value in params.yaml, which has a key on each line."""

    def change(text: str) -> str:
        lines, stack, inside = [], [], False
        for line in text.splitlines():
            depth = (len(line) - len(line.lstrip())) // 2
            if inside and depth > len(key.split(".")) - 1:
                continue  # what the replaced value held
            inside = False
            stack[depth:] = [line.split(":")[0].strip()]
            if ".".join(stack) == key:
                inside, line = True, f"{line.split(':')[0]}: {value}"
            lines.append(line)
        return "\n".join(lines) + "\n"

    return edit("params.yaml", change)


# ── values ────────────────────────────────────────────────────────────────────────────────────────

RAW_DIGITS = "@digits@"
WEIRD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 2**31,
    2**53,
    2**60, 2**63 - 1, 2**63, -(2**63), 10**400, RAW_DIGITS, "", " ", "abc", "0", "1", "nan", "\x00", "\x1b[31mred",
    "a\nb", "\u202e", "\ud800", "é" * 50, "x" * 100_000, [], [1], [[]], {}, {"a": 1}, [None] * 3, "../..",
    "/etc/passwd",
]  # fmt: skip
"""What JSON can hold in the place of any value; `RAW_DIGITS` is written as a number of 5,000 digits."""

YAML_VALUES = [
    "null", "true", "-1", "0", "1", "2", "0.5", "-0.5", "1e-300", "1e308", "1e400", ".nan", ".inf", "-.inf", "1e-3",
    "9223372036854775807", "9223372036854775808", "2147483647", "2147483648", "1" + "0" * 400, "9" * 5000, "''",
    "abc",
    "[]", "{}", "[1, 2]", "[a, a]", "{a: 1}", "[[]]", "&a [*a]", "&z {q: *z}", "!!python/object:os.system x",
    "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!timestamp x", "!!bool maybe", "!!float x", "!x y",
    "2020-13-01",
    "2020-01-01", "0x10", "0o17", "1_000", "'1'", "'1.5'", '"\\ud800"', '"\\0"', '"\\e[31m"', "*nope", "..",
    "/etc/passwd", "data/weights/x", "'$(touch x)'", "cuda", "auto", "'" + "x" * 100_000 + "'", "\u202ex", "é",
    "[" * 2000, "[nan]", "{1: 2}", "{[1]: 2}", "{null: 1}", "? a", "'a\tb'", "1:30", "+1", "01", "-0", "=", "<<",
        "|",
]  # fmt: skip
"""Pieces of YAML in the place of any value."""


def bomb(levels: int = 9, width: int = 9, name: str = "zzz") -> str:
    """YAML of a few hundred bytes whose aliases stand for width ** levels values."""
    lines = [f"{name}0: &{name}0 [x]"]
    lines += [f"{name}{n}: &{name}{n} [{', '.join([f'*{name}{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def dump(value: Any) -> str:
    """JSON in which NaN, infinity, half a surrogate pair and very long numbers may stand."""
    return json.dumps(value).replace(f'"{RAW_DIGITS}"', "7" * 5000)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested dicts and lists, the outermost included."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(children)[:40]:
        yield from places(each, (*path, key))


def mutated(value: Any, draw: random.Random, new: Callable[[], Any]) -> tuple[Any, str]:
    """The value with one place in it set, removed or doubled; and what was done."""
    path = draw.choice(list(places(value)))
    if not path:
        changed = new()
        return changed, f"all := {changed!r:.60}"
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    where = ".".join(map(str, path))
    action = draw.choice(["set"] * 6 + ["remove", "add"])
    if action == "remove":
        del parent[path[-1]]
        return value, f"{where} removed"
    changed = new()
    if action == "add" and isinstance(parent, dict):
        parent["further"] = changed
        return value, f"{where}: a further key {changed!r:.60}"
    parent[path[-1]] = changed
    return value, f"{where} := {changed!r:.60}"


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The bytes cut, with bits flipped, a piece zeroed, doubled or replaced."""
    place = draw.randrange(len(content) + 1)
    how = draw.randrange(6)
    if how == 0:
        return content[:place]
    if how == 1:
        flipped = bytearray(content or b"x")
        flipped[place % len(flipped)] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if how == 2:
        return content[:place] + bytes(64) + content[place + 64 :]
    if how == 3:
        return content[:place] * 2 + content[place:]
    if how == 4:
        return content[:place] + draw.randbytes(9) + content[place:]
    return draw.choice([b"", b"<html>404</html>", b"\xff\xfe", b"{}", b"[]", b"null", b"[" * 99_999, b"7" * 5000])


def damage_json(path: str, draw: random.Random) -> tuple[Break, str]:
    """Breaks a JSON file at one place, or its bytes; and says how."""
    seed = draw.randrange(2**32)
    if draw.random() < 0.15:
        return lambda root: write(path, damaged((root / path).read_bytes(), random.Random(seed)))(root), "bytes"

    def breaks(root: Path) -> None:
        again = random.Random(seed)
        value, _ = mutated(
            json.loads((root / path).read_text(encoding="utf-8")), again, lambda: again.choice(WEIRD)
        )
        write(path, dump(value))(root)

    return breaks, f"a value ({seed})"


def closed_pipe() -> None:
    """Makes standard output a pipe that nobody reads, as `| head` leaves it."""
    read, write_end = os.pipe()
    os.close(read)
    os.dup2(write_end, 1)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process
