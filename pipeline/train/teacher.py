"""A frozen model that a loss learns from: a checkpoint below data/weights."""

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
    """A checkpoint on disk, which nothing has read yet.

    Attributes:
        key: The key of params.yaml that names it.
        folder: Its folder.
    """

    key: str
    folder: Path

    @classmethod
    def of(cls, loss: Loss, root: Path) -> Teacher | None:
        """The teacher that `loss` asks for, by a parameter `teacher` and an option of that name; None for none.

        Raises:
            PluginError: it has no such option.
            ParamsError: the option names no folder below data/weights.
            CheckpointError: there is no checkpoint.
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
        """A hash of the manifest, which has one of every file."""
        return sha256(self.folder / MANIFEST)

    def load(
        self, tokenizer: Tokenizer, student: Architecture, device: torch.device, plugins: Path
    ) -> LanguageModel:
        """Its best weights as a model in eval mode that no gradient reaches; `plugins` bring its architecture.

        Raises:
            CheckpointError: the checkpoint is damaged.
            DataError: its tokenizer is another one, or its context is shorter than the student's.
        """
        checkpoint = load_checkpoint(self.folder, "best", device, Registry.load(plugins, ["models"]))
        if checkpoint.tokenizer.fingerprint != tokenizer.fingerprint:
            raise DataError(f"{self.key}: {self.folder} has another tokenizer than the splits: train it on them")
        seen = checkpoint.model.architecture.shape.context_length
        if seen < student.shape.context_length:
            raise DataError(
                f"{self.key}: {self.folder} sees {seen} tokens: set model.context_length to that or less"
            )
        return checkpoint.model.requires_grad_(False)
