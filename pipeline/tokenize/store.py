"""The store of finished shards, `.resume/tokens/SETTINGS/KEY/`: it keeps what an earlier run has made.

A key is a hash of everything that decides the shard, so a shard in the store never changes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.files import FileEntry, manifest_entries, sha256, verify_manifest, write_json, write_manifest
from pipeline.core.publication import sync
from pipeline.core.values import STRICT, NonNegativeInt, read_values
from pipeline.data.token_writer import Counts, TokenWriter
from pipeline.data.tokenizer import Tokenizer

STEM = "tokens"
"""The STEM of the token files of each shard."""
_RECORD, _COUNTS, _LOCK = "shard.json", "counts.npy", "lock"
_FILES = {_RECORD, _COUNTS, f"{STEM}.bin", f"{STEM}.idx.npy", f"{STEM}.names.jsonl"}
_SETTINGS_KEPT = 3
_FIX = "run `pipeline tokenize` again"


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard.

    Attributes:
        tokens, documents, bytes, learnt: Its `TokenWriter.summary`.
        blank: Whether it has no text that is not blank.
        reports: What `Corpus.read` returned for each source.
    """

    __pydantic_config__ = STRICT

    tokens: NonNegativeInt
    documents: NonNegativeInt
    bytes: NonNegativeInt
    blank: bool
    reports: list[Any]
    learnt: NonNegativeInt | None = None


@dataclass(frozen=True)
class TokenStore:
    """The shards that were made with the same settings: params, code and versions.

    Attributes:
        root: The folder of all settings.
        settings: A hash of the settings.
    """

    root: Path
    settings: str

    @property
    def folder(self) -> Path:
        """The folder of these settings."""
        return self.root / self.settings

    @contextmanager
    def in_use(self) -> Iterator[IO[bytes]]:
        """Inside, no other process removes these shards. At the end, what killed processes have left is removed.

        Yields:
            The lock, for `prune`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder, fcntl.LOCK_SH) as lock:
            os.utime(lock.fileno())
            try:
                yield lock
            finally:
                with suppress(BlockingIOError):  # others use it, and write
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for partial in self.folder.glob(".*.partial-*"):
                        _remove(partial)

    def has(self, key: str) -> bool:
        """Whether there is such a shard, which may be damaged."""
        return all((self.folder / key / name).is_file() for name in _FILES)

    def find(self, key: str) -> ShardRecord | None:
        """The record of an intact shard, or None; a damaged one is removed."""
        folder = self.folder / key
        if not folder.is_dir():
            return None
        try:
            names = verify_manifest(folder, _FIX)
            if missing := _FILES - names:
                raise DataError(f"{folder} lacks {min(missing)}")
            return read_values(folder / _RECORD, ShardRecord, _FIX)
        except DataError:
            shutil.rmtree(folder, ignore_errors=True)
            return None

    @contextmanager
    def adding(self, key: str) -> Iterator[Path]:
        """Yields an empty folder that becomes the shard `key`, unless an error occurs."""
        with self.in_use():  # also in the worker of a cluster, which outlives an interrupted run
            # Machines that share the store may have processes of the same id.
            partial = self.folder / f".{key}.partial-{uuid4().hex}"
            partial.mkdir()
            try:
                yield partial
                sync(*partial.iterdir(), partial)
                try:
                    os.rename(partial, self.folder / key)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process has added it
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def link(self, key: str, folder: Path, stem: str, shown: str = "") -> dict[str, FileEntry]:
        """Puts the token files of a shard into `folder`, with another STEM: as hard links, or else as copies.

        Args:
            key: The key of the shard.
            folder: The folder.
            stem: The STEM there.
            shown: The root of the store, absolute or relative to the project, if ids stay in it; else empty.

        Returns:
            Their entries for the manifest of `folder`.
        """
        entries = {}
        for name, entry in manifest_entries(self.folder / key, _FIX).items():
            if name.startswith(f"{STEM}."):
                source, target = self.folder / key / name, folder / f"{stem}{name.removeprefix(STEM)}"
                if shown and target.suffix == ".bin":
                    entries[target.name] = replace(entry, path=f"{shown}/{self.settings}/{key}/{name}")
                    continue
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copyfile(source, target)
                    if sha256(target) != entry.sha256:
                        raise DataError(f"{source} is damaged (wrong sha256): {_FIX}") from None
                entries[target.name] = entry
        return entries

    def counts(self, key: str) -> Counts:
        """How often each id occurs in a shard [V]."""
        counts: Counts = np.load(self.folder / key / _COUNTS, allow_pickle=False).astype(np.int64)
        return counts

    def tokenizer_path(self, key: str) -> Path:
        """The file of a tokenizer."""
        return self.folder / f"tokenizer-{key}.json"

    def tokenizer(self, key: str) -> Tokenizer | None:
        """A tokenizer, or None if it is missing or damaged."""
        try:
            return Tokenizer.load(self.tokenizer_path(key), _FIX)
        except DataError:
            return None

    def has_tokenizers(self) -> bool:
        """Whether there is a tokenizer of an earlier run."""
        return any(self.folder.glob("tokenizer-*.json"))

    def prune(self, lock: IO[bytes], keys: Collection[str], tokenizer: str) -> None:
        """Removes all but the given shards and tokenizer, and all but the most recently used settings.

        What another process uses stays.

        Args:
            lock: The lock of `in_use`.
            keys: The keys of the shards to keep.
            tokenizer: The key of the tokenizer to keep.
        """
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in set(self.folder.iterdir()) - {self.folder / _LOCK, self.tokenizer_path(tokenizer)}:
                if path.name not in keys:
                    _remove(path)
        for folder in settings_folders(self.root)[_SETTINGS_KEPT:]:
            remove_settings(folder)


def write_record(folder: Path, writer: TokenWriter, reports: list[Any], blank: bool) -> ShardRecord:
    """Completes the folder of a shard whose token files `writer` wrote."""
    record = ShardRecord(**writer.summary(), blank=blank, reports=reports)
    np.save(folder / _COUNTS, writer.counts.astype(np.min_scalar_type(writer.counts.max())))
    write_json(folder / _RECORD, asdict(record))
    write_manifest(folder)
    return record


def settings_folders(root: Path) -> list[Path]:
    """The folders of all settings, the most recently used first."""
    used = list[tuple[float, Path]]()
    for path in root.glob(f"*/{_LOCK}"):
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            used.append((path.stat().st_mtime, path.parent))
    return [folder for _, folder in sorted(used, reverse=True)]


def folder_size(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_settings(folder: Path) -> bool:
    """Removes the shards of some settings, unless a process uses them; returns whether it did."""
    try:
        with _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _lock(folder: Path, how: int) -> Iterator[IO[bytes]]:
    """Holds a lock on a folder of settings."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("ab")
        try:
            fcntl.flock(file, how)
            current = os.path.samestat(os.fstat(file.fileno()), (folder / _LOCK).stat())
        except FileNotFoundError:  # another process has removed the folder meanwhile
            current = False
        except BaseException:
            file.close()
            raise
        if current:
            break
        file.close()
    with file:
        yield file


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
