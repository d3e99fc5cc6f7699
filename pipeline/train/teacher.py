"""The teacher of a distillation loss: a frozen model from a checkpoint below data/weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from pipeline.core.errors import CheckpointError, DataError, ParamsError, PluginError
from pipeline.core.files import MANIFEST, sha256
from pipeline.data.tokenizer import Tokenizer
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.model.checkpoint import load_checkpoint
from pipeline.plugin.calls import label, supported_arguments
from pipeline.plugin.components import Loss
from pipeline.plugin.registry import Registry

_WEIGHTS = PurePosixPath("data/weights")


@dataclass(frozen=True)
class Teacher:
    """A checkpoint on disk that is not loaded yet.

    Attributes:
        key: The param that names it.
        folder: The checkpoint's folder.
    """

    key: str
    folder: Path

    @classmethod
    def of(cls, loss: Loss, root: Path) -> Teacher | None:
        """The teacher of a loss whose `__call__` takes `teacher`; its option `teacher` names the folder. None for
        other losses.

        Raises:
            PluginError: the loss lacks the option.
            ParamsError: the folder is not below data/weights.
            CheckpointError: the folder holds no checkpoint.
        """
        if not supported_arguments(loss, "__call__", teacher=None):
            return None
        name, key = getattr(loss, "teacher", None), f"train.loss.{loss.name}.teacher"
        if not isinstance(name, str):
            raise PluginError(
                f"{label(loss)} takes a teacher, so it needs an option that names its folder: "
                'teacher: str = "data/weights/teacher"'
            )
        path = PurePosixPath(name)
        if _WEIGHTS not in path.parents or ".." in path.parts:
            raise ParamsError(f"{key}: {name!r} must lie below {_WEIGHTS}/: DVC sees changes only there")
        if not (root / name / MANIFEST).is_file():
            raise CheckpointError(f"{key}: {name} holds no checkpoint: copy a run's artifacts/checkpoint there")
        return cls(key, root / name)

    @property
    def digest(self) -> str:
        """A hash of the checkpoint: of its manifest, which holds every file's sha256."""
        return sha256(self.folder / MANIFEST)

    def load(
        self, tokenizer: Tokenizer, student: Architecture, device: torch.device, plugins: Path
    ) -> LanguageModel:
        """Loads its best weights as a frozen model in eval mode; `plugins` is the folder of plugins.

        Raises:
            CheckpointError: the checkpoint is corrupt.
            DataError: it has another tokenizer, or a shorter context than the student.
        """
        checkpoint = load_checkpoint(self.folder, "best", device, Registry.load(plugins, ["models"]))
        if checkpoint.tokenizer.fingerprint != tokenizer.fingerprint:
            raise DataError(f"{self.key}: {self.folder} has another tokenizer than the splits: train it on them")
        teacher_context = checkpoint.model.architecture.shape.context_length
        if teacher_context < student.shape.context_length:
            raise DataError(
                f"{self.key}: {self.folder} has a context of {teacher_context} tokens: lower model.context_length"
            )
        return checkpoint.model.requires_grad_(False)
