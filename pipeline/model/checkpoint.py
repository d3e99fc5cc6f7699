"""The published checkpoint: model and optimizer, best weights, config and tokenizer, with sha256 checksums.

To use a model, its weights are mapped into memory and checked tensor by tensor: the optimizer's state, which is two
thirds of a checkpoint, is not read, and there is no second copy of the weights in memory.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.serialization import config as serialization

from pipeline.core.errors import CheckpointError, DataError, PipelineError
from pipeline.core.files import MANIFEST, FileEntry, sha256, verify_manifest, write_json, write_manifest
from pipeline.core.paths import RECORD
from pipeline.core.values import read_values
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TOKENIZER, TokenFolder
from pipeline.model.architecture import Architecture, LanguageModel, ModelConfig
from pipeline.plugin.registry import Registry

LAST = "model_and_optimizer.pth"
BEST = "best.pth"
CONFIG = "config.json"
SAMPLES = "samples.jsonl"
DIGESTS = "weights.json"
_FIX = "run `dvc checkout` or `dvc pull` to restore a committed one, or `pipeline train` or `dvc repro` to make one"


def write_checkpoint(
    folder: Path,
    architecture: Architecture,
    tokenizer: Tokenizer,
    record: dict[str, Any],
    last: dict[str, Any],
    best: dict[str, Any],
) -> None:
    """Writes a checkpoint into an empty folder.

    Args:
        folder, architecture, tokenizer: Where, of which model, and the tokenizer of its training data.
        record: The fields of `RunRecord`.
        last: `model_state_dict` and `optimizer_state_dict` of the last step, and `step`.
        best: `model_state_dict` of the best evaluation, and `step`.
    """
    written = {LAST: save_tensors(last, folder / LAST), BEST: save_tensors(best, folder / BEST)}
    write_json(folder / CONFIG, asdict(architecture.config))
    write_json(folder / DIGESTS, {name: _digests(saved) for name, saved in ((BEST, best), (LAST, last))})
    write_json(folder / RECORD, record)
    tokenizer.save(folder / TOKENIZER)
    write_manifest(folder, written)


def weights_file(folder: Path, weights: str) -> Path:
    """The checkpoint's file with the "best" or the "last" weights."""
    return folder / (BEST if weights == "best" else LAST)


class _HashedFile:
    """A file that is written from start to end, and the sha256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest, self._bytes = hashlib.sha256(), 0
        self.flush = file.flush

    def write(self, content: bytes | memoryview) -> int:
        self._digest.update(content)
        written = self._file.write(content)
        self._bytes += written
        return written

    @property
    def entry(self) -> FileEntry:
        return FileEntry(self._bytes, self._digest.hexdigest())


def save_tensors(value: dict[str, Any], path: Path, crc: bool = True) -> FileEntry:
    """Writes tensors and plain values for `load_tensors`, and syncs them to disk. Returns the file's size and
    sha256, computed while it is written.

    `crc` adds zip checksums. They take most of the time; torch does not check them, other programs do.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    crc = crc and serialization.save.compute_crc32
    with serialization.patch("save.compute_crc32", crc), path.open("wb") as file:  # type: ignore[attr-defined]
        hashed = _HashedFile(file)
        try:
            torch.save(_with_shared_keys(value), hashed)  # type: ignore[arg-type]
        except RuntimeError as error:  # torch's message hides the system's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return hashed.entry


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists; of a DTensor, this rank's shard."""
    return sum(_local(each).nbytes for each in _tensors(value))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _tensors(each)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a DTensor; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _with_shared_keys(value: Any) -> Any:
    """Interns the keys: pickle writes equal but distinct strings twice, and a resumed run must write the same
    bytes."""
    if isinstance(value, dict):
        return {
            sys.intern(key) if type(key) is str else key: _with_shared_keys(each) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_with_shared_keys(each) for each in value)
    return value


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, ready to use: in eval mode, on its device."""

    model: LanguageModel
    tokenizer: Tokenizer
    step: int
    weights: str


def load_checkpoint(folder: Path, weights: str, device: torch.device, registry: Registry) -> Checkpoint:
    """Loads the "best" or the "last" weights of a checkpoint; `registry` provides its architecture.

    Of the file with the weights, only these are read and checked. On a CPU the model's tensors are the file, mapped
    into memory (copy on write).

    Raises:
        CheckpointError: a file is missing or corrupt, or no plugin provides the architecture.
    """
    path = weights_file(folder, weights)
    try:
        verify_files(path)
        config = ModelConfig.from_file(folder / CONFIG, _FIX)
        tokenizer = Tokenizer.load(folder / TOKENIZER, _FIX)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    architecture = config.architecture(registry, folder / CONFIG)
    saved = load_tensors(path, mmap=True)
    weights_by_name, step = saved.get("model_state_dict", {}), saved.get("step")
    check_weights(weights_by_name, architecture, str(path))
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path}: step must be a number of steps, not {step!r}: {_FIX}")
    if tokenizer.vocab_size != config.shape.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} ids, but {CONFIG} says "
            f"{config.shape.vocab_size:,}: {_FIX}"
        )
    verify_weights(path, saved)
    return Checkpoint(model_of(architecture, weights_by_name).to(device).eval(), tokenizer, step, weights)


def _digests(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What weights.json says of a file: the step, and the sha256 of each of its weights, by name."""
    names, tensors = zip(*saved["model_state_dict"].items(), strict=True)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing releases the GIL
        return {"step": saved["step"], "sha256": dict(zip(names, pool.map(_digest, tensors), strict=True))}


def _digest(tensor: torch.Tensor) -> str:
    """The sha256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().flatten().view(torch.uint8).numpy().data).hexdigest()


def verify_files(path: Path) -> None:
    """Checks the files of a checkpoint, except for the content of its weights: `verify_weights` checks what is used
    of them. `path` is the file of the weights that are used.

    Raises:
        DataError: a file is missing or corrupt.
    """
    files = verify_manifest(path.parent, _FIX, unread=(BEST, LAST))
    if DIGESTS not in files:  # written by an earlier version
        verify_manifest(path.parent, _FIX, unread={BEST, LAST} - {path.name})


def verify_weights(path: Path, saved: Mapping[str, Any]) -> None:
    """Checks weights and step, loaded from `path`, against weights.json; `verify_files` must have passed.

    Raises:
        CheckpointError: they differ.
    """
    if not (path.parent / DIGESTS).is_file():
        return
    recorded = read_values(path.parent / DIGESTS, dict[str, _Digests], _FIX, CheckpointError).get(path.name)
    found = _digests(saved)
    if recorded is None or recorded.step != found["step"]:
        raise CheckpointError(f"{path} is damaged (not the step in {DIGESTS}): {_FIX}")
    if different := {name for name, _ in recorded.sha256.items() ^ found["sha256"].items()}:
        raise CheckpointError(f"{path} is damaged (wrong sha256 of {min(different)}): {_FIX}")


@dataclass(frozen=True)
class _Digests:
    """The entry of a file in weights.json."""

    step: int
    sha256: dict[str, str]


def model_of(architecture: Architecture, weights: dict[str, torch.Tensor]) -> LanguageModel:
    """A model whose parameters and buffers are the tensors `weights` themselves, without a copy."""
    model = architecture.on_meta()
    model.load_state_dict(weights, assign=True)
    same_parameters = dict(model.named_parameters()).keys() == architecture.parameters.keys()
    if same_parameters and not any(each.is_meta for module in model.modules() for each in _tensors(vars(module))):
        return model
    model = architecture.make()  # it has tensors outside of its state dict, or one parameter under two names
    model.load_state_dict(weights)
    return model


def check_same_tokenizer(checkpoint: Checkpoint, splits: TokenFolder) -> None:
    """Raises DataError if the tokenizer of the splits is not the checkpoint's."""
    trained, split = checkpoint.tokenizer.fingerprint, splits.tokenizer.fingerprint
    if trained != split:
        raise DataError(
            f"{splits.folder} has another tokenizer ({split[:12]}) than the model ({trained[:12]}): train again"
        )


def held_out_text(checkpoint: Checkpoint, splits: TokenFolder, tokens: int) -> str:
    """The text of the first `tokens` tokens of val, without special tokens.

    Raises:
        DataError: the tokenizer of the splits is not the checkpoint's.
    """
    check_same_tokenizer(checkpoint, splits)
    ids = splits.ids("val")[:tokens]
    return checkpoint.tokenizer.decode(ids[checkpoint.tokenizer.byte_lengths[ids] > 0])


def manifest_digest(folder: Path) -> str:
    """The sha256 of a checkpoint's manifest, which changes with any of its files; empty if there is none."""
    path = folder / MANIFEST
    return sha256(path) if path.is_file() else ""


def check_not_replaced(folder: Path, shown: str, digest: str, stage: str) -> None:
    """Checks that `manifest_digest` is still `digest`; a stage calls it last, before it publishes.

    Raises:
        CheckpointError: another process, such as `pipeline train`, has replaced the checkpoint.
    """
    if manifest_digest(folder) != digest:
        raise CheckpointError(
            f"{shown} was replaced while {stage} read it, so nothing was published: run {stage} again"
        )


def used_model(folder: Path, registry: Registry) -> list[tuple[str, str]]:
    """The kind and name of the plugin that provides a checkpoint's model; empty if it cannot be loaded."""
    with suppress(PipelineError):
        name = ModelConfig.from_file(folder / CONFIG, _FIX).name
        registry.check_there("models", name, "")
        return [("models", name)]
    return []


def check_weights(weights: Any, architecture: Architecture, what: str) -> None:
    """Checks weights, tensors by name from an untrusted file, against an architecture before a model is built;
    `what` begins the message.

    Raises:
        CheckpointError: a weight is missing, unknown, of another shape or dtype, or not finite.
    """
    if problem := _weights_problem(weights, architecture):
        raise CheckpointError(f"{what}: {problem}: {_FIX}")


def _weights_problem(weights: Any, architecture: Architecture) -> str:
    if not isinstance(weights, dict) or not all(_plain(each) for each in weights.values()):
        return "model_state_dict must be a dict of tensors"
    tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if different := {str(name) for name, _ in tensors.items() ^ architecture.tensor_specs.items()}:
        return f"{min(different)} does not fit {CONFIG}"
    name = first_not_finite({name: weights[name] for name in architecture.parameters})
    return f"{name} is not finite" if name else ""


def _plain(value: Any) -> bool:
    """Whether it is a contiguous tensor on the CPU."""
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return plain and value.is_contiguous() and value.device.type == "cpu"


def first_not_finite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first weight with NaN or infinity; of DTensors, this rank's shards are checked."""
    for name, tensor in weights.items():
        local = _local(tensor)
        # A sum is ten times as fast. If it is finite, all weights are; if not, it may have overflowed.
        if not bool(local.sum().isfinite()) and not bool(local.isfinite().all()):
            return name
    return None


def load_tensors(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a file of tensors and plain values; refuses everything that could run code.

    With `mmap`, the tensors are the file, mapped into memory: only what is used is read; what is written to them
    does not change the file.

    Raises:
        CheckpointError: the file is missing, is corrupt, or holds more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            mmap = mmap and zipfile.is_zipfile(path)  # torch can map no other format
            loaded = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {_FIX}") from None
    except Exception as error:  # on corrupt bytes, torch raises many types
        text, refused, _ = str(error).partition("Check the documentation of torch.load")
        lines = text.strip().splitlines() or ["it is empty"]
        reason = (lines[-1] if refused else lines[0])[:160]
        raise CheckpointError(f"{path} is not a checkpoint of plain tensors ({reason}): {_FIX}") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} must hold a dict, not a {type(loaded).__name__}: {_FIX}")
    return loaded
