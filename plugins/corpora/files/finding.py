"""Finds the text files below data/raw, the files that are left out, and problems with files."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

from .reading import COMPRESSED, FORMS, PACKAGES, check, form, is_compressed
from .remote import MANIFEST

P = TypeVar("P", tuple[str, ...], dict[str, str])

_SHOWN = 5
_PATTERNS = 3
"""If there are more endings than this, a single pattern is suggested for them."""
_NOT_INCLUDED = " (not in include)"
_IDS = (".bin", ".ds", ".npy")
_UNKNOWN = " (unknown format)"
_HIDDEN = (".", "~$")
"""The beginnings of hidden names: `~$` are the lock files of Word."""


@dataclass
class Found:
    """The result of a walk through data/raw.

    Attributes:
        texts: The files to read, sorted by name.
        faults: The problems that must be fixed before reading.
        left_out: The number of files left out, by reason, and then by ending or kind.
    """

    texts: list[Path] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, what: str) -> None:
        self.left_out.setdefault(reason, Counter())[what] += 1

    def told(self) -> str:
        """One line about the files left out, such as `3 .pdf, 1 .html (not in include), 2 hidden`."""
        reasons = sorted(self.left_out.items(), key=lambda item: not item[0])
        return ", ".join(f"{_counts(kinds)}{reason}" for reason, kinds in reasons)

    def remedy(self) -> str:
        """A hint how to include files that could be read but match no pattern; empty if there are none."""
        endings = {form(Path(f"name{kind}")) for kind in self.left_out.get(_NOT_INCLUDED, ())}
        known = sorted(endings & PACKAGES.keys())
        if not known and any(kind in _IDS for kind in self.left_out.get(_NOT_INCLUDED, ())):
            return "to read files of token ids, set tokenize.corpus.name: token_files"
        if not known:
            return ""
        missing = any(find_spec(package) is None for ending in known for package in PACKAGES[ending])
        extra = ", after `pip install -c constraints.txt -e '.[documents]'`" if missing else ""
        each = ", ".join(f'"**/*{ending}"' for ending in known)
        patterns = each if len(known) <= _PATTERNS else '"**" (every known ending)'
        return f"to read {', '.join(known)}, add {patterns} to tokenize.corpus.files.include{extra}"


def find(root: Path, patterns: Sequence[str]) -> Found:
    """Finds all files below `root`, following symbolic links. Files with several names are read once.

    Raises:
        OSError: `root` is missing or not a folder.
    """
    if root.is_symlink() and not root.exists():
        raise FileNotFoundError(f"{root} is a link that leads nowhere: fix it, or mount the disk that it leads to")
    if not root.exists():
        how = restoring(root) or "make the folder and put your texts into it"
        raise FileNotFoundError(f"{root} is missing: {how}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file: it must be a folder that holds your texts")
    found, include = Found(), [_Pattern(root, pattern) for pattern in patterns]
    files: list[tuple[bool, Path, os.stat_result]] = []
    for linked, path in _walk(root, include, found):
        relative = path.relative_to(root)
        try:
            status = path.stat()
        except OSError as error:
            nowhere = ValueError(f"{path} is a link that leads nowhere: fix or remove it")
            found.faults.append(error if isinstance(error, PermissionError) else nowhere)
            continue
        if any(pattern.matches(relative.parts) for pattern in include):
            files.append((linked or path.is_symlink(), path, status))
        elif relative.name.startswith(_HIDDEN):
            found.leave_out("", "hidden")
        elif any(pattern.covers(relative.parts) for pattern in include) and stat.S_ISREG(status.st_mode):
            found.leave_out(_UNKNOWN, _ending(path, status))
        else:
            found.leave_out(_NOT_INCLUDED, _ending(path, status))
    seen = set[tuple[int, int]]()
    for linked, path, status in sorted(files, key=lambda each: each[:2]):  # real names before those of links
        identity = status.st_dev, status.st_ino
        if linked and identity in seen:
            found.leave_out(" to what is read already", "link")
            continue
        seen.add(identity)
        try:
            _check(path, status)
        except (OSError, ValueError) as error:
            found.faults.append(error)
        if not status.st_size:
            found.leave_out("", "empty")
        found.texts.append(path)
    found.texts.sort()
    return found


def beside_folder(root: Path) -> list[str]:
    """The first texts that lie beside data/raw, perhaps by mistake, not in it."""
    known = {MANIFEST, "README.md"}  # the project's own
    files = (path for path in sorted(root.parent.iterdir()) if path.is_file() and path.name not in known)
    texts = (path for path in files if form(path) in FORMS and form(path) != ".json")  # tokenizer.json
    shown = (f"{root.parent.name}/{path.name}" for path in texts if not path.name.startswith(_HIDDEN))
    return list(islice(shown, _PATTERNS))


def check_patterns(patterns: P) -> P:
    """Returns the patterns.

    Raises:
        ValueError: one leads out of data/raw, or is none.
    """
    for pattern in patterns:
        parts = PurePosixPath(pattern).parts
        if not parts or PurePosixPath(pattern).is_absolute() or ".." in parts:
            raise ValueError(f"{pattern!r} must lie below data/raw: DVC sees changes only there")
        if any("**" in part and part != "**" for part in parts):
            raise ValueError(f"{pattern!r}: ** stands alone between slashes, as in **/*.txt")
    return patterns


def matching(path: Path, root: Path, patterns: Sequence[str]) -> str | None:
    """The first pattern that matches `path`, or None."""
    parts = path.relative_to(root).parts
    return next((pattern for pattern in patterns if _Pattern(root, pattern).matches(parts)), None)


def mismatch(pattern: str, root: Path, texts: Sequence[Path]) -> str:
    """A hint why `pattern` matches none of the files that are read; empty if no similar pattern matches one."""
    wider = f"**/{pattern}"
    for path in texts:
        if matching(path, root, [wider]):
            return f", but {wider!r} does: {path.relative_to(root)}"
    for path in find(root, [pattern, wider]).texts[:1]:
        return f" that include matches: {path.relative_to(root)} is left out"
    return ""


def restoring(root: Path) -> str:
    """How to get the texts of an empty folder back from DVC; empty if DVC does not track it."""
    tracked = f"data/{root.name}.dvc"
    there = root.with_name(f"{root.name}.dvc").is_file()
    return f"`git checkout {tracked} && dvc checkout {tracked}` restores what was committed" if there else ""


def may_find(pattern: str, ending: str) -> bool:
    """Whether a pattern can match files with this ending."""
    suffix = PurePosixPath(pattern.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
    return suffix not in FORMS or suffix == ending


def _counts(kinds: Counter[str]) -> str:
    shown = [f"{count:,} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    rest = kinds.total() - sum(count for _, count in kinds.most_common(_SHOWN))
    return ", ".join(shown + [f"{rest:,} others"] * bool(rest))


def _ending(path: Path, status: os.stat_result) -> str:
    """The ending or kind under which a file without a matching pattern is counted."""
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    endings = "".join(path.suffixes[-2:] if is_compressed(path) else path.suffixes[-1:])
    return endings.lower()[:20] or "without an ending"


def _check(path: Path, status: os.stat_result) -> None:
    """Raises now for problems that would otherwise stop a long run later."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no regular file, where a text file is meant: rename or remove it")
    if str(path) != str(path).encode(errors="ignore").decode():
        raise ValueError(f"the name {str(path)!r} is not UTF-8: rename it")
    path.open("rb").close()
    check(path)


def _walk(root: Path, include: "Sequence[_Pattern]", found: Found) -> Iterator[tuple[bool, Path]]:
    """Yields the files below `root`, with whether a link leads to them. Each folder is visited once, linked ones
    last."""
    real = root.resolve()
    seen = {_identity(folder) for folder in (real, *real.parents)}  # ignore links to parent folders
    folders, links = [(False, root)], list[Path]()
    while folders or links:
        if folders:
            linked, folder = folders.pop()
        else:
            linked, folder = True, links.pop(0)
            if _identity(folder) in seen:
                found.leave_out(" to what is read already", "link")
                continue
            seen.add(_identity(folder))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.faults.append(error)
            continue
        for entry in entries:
            path = folder / entry.name
            if not os.path.isdir(path):  # also True for a link to itself
                if not (
                    entry.name.startswith(".") and entry.name.endswith(".manifest.json")
                ):  # written by `pipeline lock`
                    yield linked, path
                continue
            parts = path.relative_to(root).parts
            if any(pattern.names_files and pattern.matches(parts) for pattern in include):
                found.faults.append(
                    ValueError(f"{path} is a folder, where a text file is meant: rename or remove it")
                )
            elif not any(pattern.enters(parts) for pattern in include):
                found.leave_out("", "hidden folder")
            elif entry.is_symlink():
                links.append(path)
            else:
                if linked and _identity(path) in seen:
                    continue
                seen.add(_identity(path))
                folders.append((linked, path))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


class _Pattern:
    """A glob, a name or a folder. A matching folder includes all its files with known endings."""

    def __init__(self, root: Path, pattern: str) -> None:
        path = PurePosixPath(pattern)
        self.names_files = bool(path.suffix) and not (root / path).is_dir()
        endings = ("", *COMPRESSED) if self.names_files and "*" in path.name else ("",)
        self._parts = [(*path.parts[:-1], path.name + ending) for ending in endings]
        self._hidden = [part for part in path.parts if part.startswith(_HIDDEN)]

    def enters(self, parts: Sequence[str]) -> bool:
        """Whether to enter a folder (or read a file): it is not hidden, or the pattern contains its hidden name."""
        hidden = (part for part in parts if part.startswith(_HIDDEN))
        return all(any(fnmatchcase(part, name) for name in self._hidden) for part in hidden)

    def matches(self, parts: Sequence[str]) -> bool:
        """Whether the pattern matches this file; the case of endings does not matter."""
        if not self.enters(parts):
            return False
        folded = (*parts[:-1], _folded(parts[-1]))
        for pattern in self._parts:
            if pattern[-1] != "**" and (
                _fits(parts, pattern) or _fits(folded, (*pattern[:-1], _folded(pattern[-1])))
            ):
                return True
        return form(Path(parts[-1])) in FORMS and self.covers(parts)

    def covers(self, parts: Sequence[str]) -> bool:
        """Whether the pattern is a folder with this file, of whatever format."""
        folders = () if self.names_files or not self.enters(parts) else range(len(parts))
        return any(_fits(parts[:depth], self._parts[0]) for depth in folders)


def _folded(name: str) -> str:
    """The name with its ending, and the one before a compression's ending, in lower case."""
    path = PurePosixPath(name)
    endings = "".join(path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else path.suffixes[-1:])
    return name.removesuffix(endings) + endings.lower()


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob; ** matches any number of folders."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
