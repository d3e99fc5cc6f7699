"""A state as shares: under FSDP2 each rank writes what it holds, and any number of ranks reads it again.

torch.distributed.checkpoint lays the shares down in a folder: a file of tensors for each rank, and `.metadata`,
which says where in them each part of each tensor is. The state beside that folder has a tensor without content
("meta") in the place of each one that was shared out.

Only what writes or reads shares imports this file: torch.distributed.checkpoint takes half a second to import.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as records
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Shard, empty

from pipeline.core.errors import CheckpointError, PipelineError, out_of_memory
from pipeline.train.distributed.parallel import Parallel, mapped
from pipeline.train.distributed.ranks import Ranks

_METADATA = ".metadata"


def write_shares(captured: dict[str, Any], folder: Path, writers: Ranks) -> dict[str, Any]:
    """Writes this rank's shares of every tensor that is shared out; all writers must call it.

    Args:
        captured: The state; its DTensors lie on the CPU.
        folder: Where to; the folder around it is there.
        writers: The processes, over connections that nothing else uses meanwhile.

    Returns:
        The state without the shares' content, which is to be written beside `folder`.

    Raises:
        OSError: one of the ranks cannot write, such as on a full disk.
        PipelineError: a rank does not see the folder.
    """
    shares = {name: tensor for name, tensor in _tensors(captured) if isinstance(tensor, DTensor)}
    writers.each(lambda: _check_seen(folder.parent, writers))
    with _plain_errors():
        save(shares, storage_writer=_Writer(folder), process_group=writers.group)
    rest: dict[str, Any] = _without_content(captured)
    return rest


def read_shares(saved: dict[str, Any], parallel: Parallel) -> dict[str, Any]:
    """A state with the content of its shares; all ranks must call it.

    Args:
        saved: What lies beside the shares, with their folder as "shares".
        parallel: Says what each rank reads: under FSDP2 its shares, otherwise the first rank everything.

    Raises:
        CheckpointError: a rank cannot read it.
    """
    ranks, folder = parallel.ranks, Path(saved["shares"])
    rest = {name: value for name, value in saved.items() if name != "shares"}
    reads = parallel.sharded or ranks.first
    return ranks.each(lambda: _filled(rest, folder, parallel) if reads else rest)


def check_shares(folder: Path) -> str:
    """The folder's path, once its metadata proved to be nothing but metadata.

    Raises:
        CheckpointError: it is damaged, or holds what no metadata needs.
    """
    _Reader(folder).read_metadata()
    return str(folder)


# ── a state and its shares ────────────────────────────────────────────────────────────────────────


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts and lists, with its path there as its name."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(each, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _tensors(each, f"{name}/{number}")


def _without_content(value: Any) -> Any:
    if isinstance(value, DTensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return mapped(_without_content, value)


def _filled(rest: dict[str, Any], folder: Path, parallel: Parallel) -> dict[str, Any]:
    """A state with this rank's share of each tensor that was shared out, or the whole of it."""

    def room(tensor: torch.Tensor) -> torch.Tensor:
        if parallel.cpus is None:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        return empty(tensor.shape, dtype=tensor.dtype, device_mesh=parallel.cpus, placements=[Shard(0)])

    reader = _Reader(folder)
    shared = reader.read_metadata().state_dict_metadata
    read = {name: room(tensor) for name, tensor in _tensors(rest) if name in shared}
    try:
        with _plain_errors(), warnings.catch_warnings(action="ignore"):
            # Each rank by itself: what it is to read follows from its place, and nobody else need know.
            load(read, storage_reader=reader, no_dist=True)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise CheckpointError(f"{folder} cannot be read ({_reason(error)})") from None

    def put(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: put(each, f"{name}/{key}") for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(put(each, f"{name}/{number}") for number, each in enumerate(value))
        return read.get(name, value) if isinstance(value, torch.Tensor) else value

    filled: dict[str, Any] = put(rest)
    return filled


def _check_seen(folder: Path, writers: Ranks) -> None:
    """On several machines, a share on a disk that the first rank does not see would be missing from the state."""
    if not folder.is_dir():
        raise PipelineError(
            f"rank {writers.rank} does not see {folder}, in which all ranks write: under runtime.strategy: fsdp "
            "the machines need the project on a disk that they share"
        )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raises the first rank's error itself, not torch's collection of what went wrong on each."""
    try:
        yield
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from None


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


class _Writer(FileSystemWriter):
    """Writes a rank's file and, on the first rank, the metadata."""

    def storage_meta(self) -> records.StorageMeta:
        return records.StorageMeta()  # without the path, which is another one soon

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:  # torch's own complaint hides the system's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


# ── metadata that cannot run code ─────────────────────────────────────────────────────────────────


class _Reader(FileSystemReader):
    """Reads shares; tensors with torch's safe loading, the metadata with `_Unpickler`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> records.Metadata:
        path = Path(self.path) / _METADATA
        try:
            with path.open("rb") as file:
                found = _Unpickler(file).load()
            if not isinstance(found, records.Metadata):
                raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
            for entry in found.storage_data.values():
                if Path(entry.relative_path).name != entry.relative_path:
                    raise pickle.UnpicklingError(f"it leads to {entry.relative_path}")
        except Exception as error:  # there is no end to what pickle raises on bytes that are none
            raise CheckpointError(f"{path} is no metadata of a saved state ({_reason(error)})") from None
        found.storage_meta = records.StorageMeta()
        return found


class _Unpickler(pickle.Unpickler):
    """Knows the few classes that metadata consists of, and no function that does anything."""

    _CLASSES = {
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
                "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
            )
        ),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if is_dtype or (module, name) in self._CLASSES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
