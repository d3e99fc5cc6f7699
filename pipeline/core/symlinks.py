"""Symbolic links to folders below data/: DVC does not follow them, so a manifest records their files for it.

Beside each such link NAME is `.NAME.manifest.json` with the names, sizes and times of the files behind it.
`pipeline lock` writes it, DVC detects its changes, and the stages refuse an outdated one. Unreadable folders are
skipped here; the corpus reports them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.console import listed
from pipeline.core.errors import DataError
from pipeline.core.files import write_atomically

_ENDING = ".manifest.json"


def record_symlinks(data: Path) -> Iterator[str]:
    """Writes the manifest of each link to a folder below `data`, and removes those without a link; yields a message
    for each change."""
    for link, manifest, text in _links(data):
        name = manifest.relative_to(data.parent)
        if text is None:
            manifest.unlink()
            yield f"{name} removed: {link.name} is not a link to a folder"
        elif _read(manifest) != text:
            write_atomically(manifest, text)
            yield f"{name} written: the files behind the link {link.name}"


def check_symlinks(data: Path, unused: Path | None = None) -> None:
    """Checks that the manifests of links to folders below `data` are up to date; not of those in `unused`.

    Raises:
        DataError: a manifest is missing or outdated, or has no link.
    """
    for link, manifest, text in _links(data):
        if unused and link.is_relative_to(unused):
            continue
        name = link.relative_to(data.parent)
        if text is None:
            raise DataError(f"{name} is no longer a link to a folder: restore it, or run `pipeline lock`")
        if (recorded := _read(manifest)) != text:
            what = "are not recorded" if recorded is None else f"have changed ({_difference(recorded, text)})"
            raise DataError(f"{name} is a link to a folder, which DVC does not follow, and its files {what}: "
                            "run `pipeline lock` before `dvc repro`")  # fmt: skip


def _links(data: Path) -> Iterator[tuple[Path, Path, str | None]]:
    """Each link to a folder, its manifest, and the manifest's current content; None for a manifest without a
    link."""
    for folder, folders, files in os.walk(data):
        links = {name for name in folders if os.path.islink(os.path.join(folder, name))}
        recorded = {name[1 : -len(_ENDING)] for name in files if name[:1] == "." and name.endswith(_ENDING)}
        for name in sorted(links | recorded):
            link = Path(folder, name)
            yield link, link.with_name(f".{name}{_ENDING}"), _files_behind(link) if name in links else None


def _difference(before: str, now: str) -> str:
    """The first files that differ between two contents of a manifest."""
    lines = set(before.splitlines()) ^ set(now.splitlines())
    names = sorted({line.rpartition(": [")[0] for line in lines} - {""})
    return listed(names, 3)


def _read(manifest: Path) -> str | None:
    return manifest.read_text(encoding="utf-8", errors="replace") if manifest.is_file() else None


def _files_behind(link: Path) -> str:
    """The names, sizes and times (in ns) of all files behind a link, as JSON. Each folder is visited once."""
    files, seen = dict[str, tuple[int, int]](), set[tuple[int, int]]()
    for folder, names, found in os.walk(link, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names.sort()
        for path in (Path(folder, name) for name in found if os.path.lexists(os.path.join(folder, name))):
            status = path.stat() if os.path.exists(path) else path.lstat()
            files[path.relative_to(link).as_posix()] = status.st_size, status.st_mtime_ns
    lines = (f"{json.dumps(name)}: [{size}, {time}]" for name, (size, time) in sorted(files.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"
