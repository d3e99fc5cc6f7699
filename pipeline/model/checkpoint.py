"""The published checkpoint: model and optimizer, best weights, config and tokenizer, checked by sha256."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.serialization import config as serialization

from pipeline.core.errors import CheckpointError, DataError, PipelineError
from pipeline.core.files import verify_manifest, write_json, write_manifest
from pipeline.core.paths import RECORD
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TOKENIZER
from pipeline.model.architecture import Architecture, LanguageModel, ModelConfig
from pipeline.plugin.registry import Registry

LAST = "model_and_optimizer.pth"
BEST = "best.pth"
CONFIG = "config.json"
SAMPLES = "samples.jsonl"
_FIX = "run `python -m pipeline train`, or `dvc repro`"


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
        folder: Where to.
        architecture: The model's.
        tokenizer: The tokenizer that made its ids.
        record: What made it: params, data, versions and the identity of the run.
        last: `model_state_dict` and `optimizer_state_dict` of the last step, and `step`.
        best: `model_state_dict` of the best evaluation, and `step`.
    """
    save_tensors(last, folder / LAST)
    save_tensors(best, folder / BEST)
    write_json(folder / CONFIG, asdict(architecture.config))
    write_json(folder / RECORD, record)
    tokenizer.save(folder / TOKENIZER)
    write_manifest(folder)


def weights_file(folder: Path, weights: str) -> Path:
    """The file of a checkpoint that holds the "best" weights, or the "last" ones."""
    return folder / (BEST if weights == "best" else LAST)


def save_tensors(value: dict[str, Any], path: Path, crc: bool = True) -> None:
    """Writes plain tensors and plain values, which `load_tensors` reads; they are on the disk when this returns.

    Args:
        value: What to write.
        path: Where to.
        crc: Whether the file also has zip's checksums, which other programs check and torch does not. They take
            most of the time.

    Raises:
        OSError: the file cannot be written, such as on a full disk.
    """
    crc = crc and serialization.save.compute_crc32
    with serialization.patch("save.compute_crc32", crc), path.open("wb") as file:  # type: ignore[attr-defined]
        try:
            torch.save(_with_shared_keys(value), file)
        except RuntimeError as error:  # torch's own message hides the system's
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists; of one that is shared out, this rank's share."""
    if isinstance(value, torch.Tensor):
        local: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
        return local.numel() * local.element_size()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(tensor_bytes(each) for each in values)


def _with_shared_keys(value: Any) -> Any:
    """Makes equal keys one object, so that a resumed run is saved to the same bytes as an uninterrupted one."""
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
    """Loads the "best" or the "last" weights of a checkpoint, whose architecture is one of `registry`'s models.

    Raises:
        CheckpointError: a file is missing, truncated, altered or no checkpoint, or no plugin brings its model.
    """
    try:
        verify_manifest(folder, _FIX)
        config = ModelConfig.from_file(folder / CONFIG, _FIX)
        tokenizer = Tokenizer.load(folder / TOKENIZER, _FIX)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    architecture = config.architecture(registry, folder / CONFIG)
    path = weights_file(folder, weights)
    saved = load_tensors(path)
    weights_by_name, step = saved.get("model_state_dict", {}), saved.get("step")
    check_weights(weights_by_name, architecture, str(path))
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path}: step is {step!r}, and a count of steps is expected: {_FIX}")
    if tokenizer.vocab_size != config.shape.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} ids, and {CONFIG} "
            f"{config.shape.vocab_size:,}: {_FIX}"
        )
    model = architecture.make()
    model.load_state_dict(weights_by_name)
    return Checkpoint(model.to(device).eval(), tokenizer, step, weights)


def used_model(folder: Path, registry: Registry) -> list[tuple[str, str]]:
    """The kind and name of the plugin that brings a checkpoint's model; none where `load_checkpoint` fails."""
    with suppress(PipelineError):
        name = ModelConfig.from_file(folder / CONFIG, _FIX).name
        registry.check_there("models", name, "")
        return [("models", name)]
    return []


def check_weights(weights: Any, architecture: Architecture, what: str, finite: bool = True) -> None:
    """Whether `weights` are those of a model of this architecture, before any of it is made.

    Args:
        weights: Tensors by name, whatever they are.
        architecture: The model's.
        what: Begins the message.
        finite: Whether NaN and infinity are refused in parameters.

    Raises:
        CheckpointError: a weight is missing, of no place in the model, of another shape or dtype, or not finite.
    """
    problem = _weights_problem(weights, architecture)
    if not problem and finite:
        name = first_not_finite({name: weights[name] for name in architecture.parameters})
        problem = f"{name} is not finite, so the model would predict nothing" if name else ""
    if problem:
        raise CheckpointError(f"{what}: {problem}: {_FIX}")


def _weights_problem(weights: Any, architecture: Architecture) -> str:
    if not isinstance(weights, dict) or not all(_plain(each) for each in weights.values()):
        return "model_state_dict is no dict of tensors"
    tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    different = {str(name) for name, _ in tensors.items() ^ architecture.tensor_specs.items()}
    return f"{min(different)} does not fit {CONFIG}" if different else ""


def _plain(value: Any) -> bool:
    """Whether it is a tensor whose numbers all lie in the file."""
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return plain and value.is_contiguous() and value.device.type == "cpu"


def first_not_finite(weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first weight that holds NaN or infinity; of shards, this rank's."""
    for name, tensor in weights.items():
        local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        # A sum is ten times as fast, and finite only where every weight is; it may overflow where all are finite.
        if not bool(local.sum().isfinite()) and not bool(local.isfinite().all()):
            return name
    return None


def load_tensors(path: Path) -> dict[str, Any]:
    """Reads a file of plain tensors and plain Python values; anything that could run code is refused.

    Raises:
        CheckpointError: the file is missing, is no such file, or holds more than plain values.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {_FIX}") from None
    except Exception as error:  # there is no end to what torch raises on bytes that are no checkpoint
        text, refused, _ = str(error).partition("Check the documentation of torch.load")
        lines = text.strip().splitlines() or ["it is empty"]
        reason = (lines[-1] if refused else lines[0])[:160]
        raise CheckpointError(f"{path} is not a checkpoint of plain tensors ({reason}): {_FIX}") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__} where a dict is expected: {_FIX}")
    return loaded
