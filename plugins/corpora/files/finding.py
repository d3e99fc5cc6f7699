"""Which files below data/raw are texts, which are left out and why, and what is wrong with any of them."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from .reading import COMPRESSED, FORMS, PACKAGES, check, form, is_compressed

_SHOWN = 5
_PATTERNS = 3
"""More endings than these are proposed as one pattern."""
_NOT_INCLUDED = " (not in include)"


@dataclass
class Found:
    """What a walk through data/raw found.

    Attributes:
        texts: The files to read, in the order of their names.
        faults: What must be mended before anything is read.
        left_out: How many files are left out, by the reason and then by the ending or kind.
    """

    texts: list[Path] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, what: str) -> None:
        self.left_out.setdefault(reason, Counter())[what] += 1

    def told(self) -> str:
        """What was left out in one line, such as `3 .pdf, 1 .html (not in include), 2 hidden`."""
        reasons = sorted(self.left_out.items(), key=lambda item: not item[0])
        return ", ".join(f"{_counts(kinds)}{reason}" for reason, kinds in reasons)

    def remedy(self) -> str:
        """How those that no pattern finds, but that could be read, are read; empty if there are none."""
        endings = {form(Path(f"name{kind}")) for kind in self.left_out.get(_NOT_INCLUDED, ())}
        known = sorted(endings & PACKAGES.keys())
        if not known:
            return ""
        missing = any(find_spec(package) is None for ending in known for package in PACKAGES[ending])
        extra = ", after `pip install -c constraints.txt -e '.[documents]'`" if missing else ""
        each = ", ".join(f'"**/*{ending}"' for ending in known)
        patterns = each if len(known) <= _PATTERNS else '"**" (every known ending)'
        return f"to read {', '.join(known)}, add {patterns} to tokenize.corpus.files.include{extra}"


def find(root: Path, patterns: Sequence[str]) -> Found:
    """Every file below `root`, also behind links; a folder or file with several names is read under one.

    Raises:
        OSError: `root` is missing or no folder.
    """
    if root.is_symlink() and not root.exists():
        raise FileNotFoundError(f"{root} is a link that leads nowhere: fix it, or mount the disk that it leads to")
    if not root.exists():
        raise FileNotFoundError(f"{root} is missing: make the folder and put your texts into it")
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
        elif relative.name.startswith("."):
            found.leave_out("", "hidden")
        else:
            found.leave_out(_NOT_INCLUDED, _ending(path, status))
    seen = set[tuple[int, int]]()
    for linked, path, status in sorted(files, key=lambda each: each[:2]):  # a file's own name before those of links
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


def matching(path: Path, root: Path, patterns: Sequence[str]) -> str | None:
    """The first of the patterns that finds `path`."""
    parts = path.relative_to(root).parts
    return next((pattern for pattern in patterns if _Pattern(root, pattern).matches(parts)), None)


def may_find(pattern: str, ending: str) -> bool:
    """Whether a pattern could find files of an ending, whichever files there are."""
    suffix = PurePosixPath(pattern.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
    return suffix not in FORMS or suffix == ending


def all_of(faults: Sequence[Exception], more: str = "") -> Exception:
    """One error that says them all: the first few and how many there are."""
    if len(faults) == 1:
        return faults[0]
    shown = "; ".join(_said(fault) for fault in faults[:_SHOWN])
    rest = f"; and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
    return ValueError(f"{len(faults):,} things are wrong with the texts{more}: {shown}{rest}")


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _counts(kinds: Counter[str]) -> str:
    shown = [f"{count:,} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    rest = kinds.total() - sum(count for _, count in kinds.most_common(_SHOWN))
    return ", ".join(shown + [f"{rest:,} others"] * bool(rest))


def _ending(path: Path, status: os.stat_result) -> str:
    """How a file that no pattern finds is counted: by what its name ends in."""
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    endings = "".join(path.suffixes[-2:] if is_compressed(path) else path.suffixes[-1:])
    return endings.lower()[:20] or "without an ending"


def _check(path: Path, status: os.stat_result) -> None:
    """Says at once what would end a long run later."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no regular file, where a text file is meant: rename or remove it")
    if str(path) != str(path).encode(errors="ignore").decode():
        raise ValueError(f"the name {str(path)!r} is not UTF-8: rename it")
    path.open("rb").close()
    check(path)


def _walk(root: Path, include: "Sequence[_Pattern]", found: Found) -> Iterator[tuple[bool, Path]]:
    """Every file below `root` and whether a link led to it; each folder once, those behind links last."""
    real = root.resolve()
    seen = {_identity(folder) for folder in (real, *real.parents)}  # a link upwards leads back to data/raw
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
            if not os.path.isdir(path):  # also of a link that leads to itself
                if not (entry.name.startswith(".") and entry.name.endswith(".manifest.json")):  # `pipeline lock`'s
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
    """A glob, a name or a folder; in a folder that it finds, everything with an ending that is known here."""

    def __init__(self, root: Path, pattern: str) -> None:
        path = PurePosixPath(pattern)
        self.names_files = bool(path.suffix) and not (root / path).is_dir()
        endings = ("", *COMPRESSED) if self.names_files and "*" in path.name else ("",)
        self._parts = [(*path.parts[:-1], path.name + ending) for ending in endings]
        self._hidden = [part for part in path.parts if part.startswith(".")]

    def enters(self, parts: Sequence[str]) -> bool:
        """Whether a folder is not hidden, or hidden by a name that the pattern says."""
        hidden = (part for part in parts if part.startswith("."))
        return all(any(fnmatchcase(part, name) for name in self._hidden) for part in hidden)

    def matches(self, parts: Sequence[str]) -> bool:
        """Whether the pattern finds this file; endings are the same in upper and in lower case."""
        if not self.enters(parts):
            return False
        folded = (*parts[:-1], _folded(parts[-1]))
        for pattern in self._parts:
            if pattern[-1] != "**" and (
                _fits(parts, pattern) or _fits(folded, (*pattern[:-1], _folded(pattern[-1])))
            ):
                return True
        folders = () if self.names_files or form(Path(parts[-1])) not in FORMS else range(len(parts))
        return any(_fits(parts[:depth], self._parts[0]) for depth in folders)


def _folded(name: str) -> str:
    """A name whose ending, and that below a compression's, is in lower case."""
    path = PurePosixPath(name)
    endings = "".join(path.suffixes[-2:] if path.suffix.lower() in COMPRESSED else path.suffixes[-1:])
    return name.removesuffix(endings) + endings.lower()


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a glob's parts match a path's; ** is any number of folders."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
