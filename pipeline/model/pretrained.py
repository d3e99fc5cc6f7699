"""Pretrained weights that a run starts from: a checkpoint's or a Hugging Face folder's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import torch

from pipeline.core.errors import CheckpointError, DataError, ParamsError
from pipeline.core.files import MANIFEST, sha256, verify_manifest
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import TOKENIZER
from pipeline.model.architecture import Architecture, ModelConfig
from pipeline.model.checkpoint import BEST, CONFIG, check_weights, load_tensors
from pipeline.model.huggingface import read_config, read_weights, weight_files
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.components import ModelShape
from pipeline.plugin.options import plain_options, with_options

_STRINGS = 1000
_FIX = "copy a whole checkpoint or Hugging Face folder there, or set train.init_from"


@dataclass(frozen=True)
class Pretrained:
    """Weights on disk, which nothing has read yet.

    Attributes:
        name: Their path as params.yaml gives it.
        folder: The folder of their config and tokenizer.
        file: The checkpoint's file of weights; None for a Hugging Face folder.
    """

    name: str
    folder: Path
    file: Path | None

    @classmethod
    def at(cls, root: Path, name: str) -> Pretrained:
        """The weights at `root` / `name`: a checkpoint's folder (its best weights), one of its .pth files, or a
        Hugging Face folder.

        Raises:
            CheckpointError: nothing is there, or a file of another kind.
        """
        path = root / name
        if path.is_file():
            if path.suffix != ".pth":
                raise CheckpointError(f"{name} is no file of a checkpoint's weights (.pth): {_FIX}")
            return cls(name, path.parent, path)
        if not path.is_dir():
            raise CheckpointError(f"{name} is missing: {_FIX}")
        is_checkpoint = (path / MANIFEST).is_file() and (path / BEST).is_file()
        return cls(name, path, path / BEST if is_checkpoint else None)

    @cached_property
    def config(self) -> ModelConfig:
        """The model that the weights belong to.

        Raises:
            CheckpointError: config.json is damaged, or describes what no model here computes.
            DataError: a file is missing or altered.
        """
        if self.file is None:
            return read_config(self.folder)
        verify_manifest(self.folder, _FIX)
        return ModelConfig.from_file(self.folder / CONFIG, _FIX)

    @cached_property
    def digest(self) -> str:
        """A hash of config.json and the weights."""
        files = weight_files(self.folder) if self.file is None else [self.file]
        digests = [sha256(path) for path in (self.folder / CONFIG, *files)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def check(self, target: Architecture, tokenizer: Tokenizer) -> None:
        """Whether a model of this architecture, with this tokenizer, can start from the weights.

        Raises:
            ParamsError: the model differs; each key that differs is named with the value to set.
            DataError: the tokenizer gives other ids than the weights were trained with.
        """
        source, name = self.config, target.component.name
        wanted: dict[str, Any] = {}
        if source.name != name:
            wanted["name"] = source.name
        sizes = ("n_layers", "n_heads", "emb_dim")
        pairs = {key: (getattr(source.shape, key), getattr(target.shape, key)) for key in sizes}
        if source.name == name:
            options = plain_options(target.component)
            pairs |= {f"{name}.{key}": (value, options.get(key)) for key, value in source.options.items()}
        wanted |= {key: value for key, (value, here) in pairs.items() if value != here}
        if target.shape.context_length > source.shape.context_length:
            wanted["context_length"] = f"{source.shape.context_length} or less"
        if wanted:
            settings = ", ".join(f"model.{key}: {str(value).lower()}" for key, value in wanted.items())
            raise ParamsError(f"train.init_from: {self.name} is another model than params.yaml's: set {settings}")
        self._check_tokenizer(tokenizer)

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        path = self.folder / TOKENIZER
        if self.file is not None:
            same = Tokenizer.load(path, _FIX).fingerprint == tokenizer.fingerprint
        elif path.is_file():
            same = _same_ids(from_file(path, "gpt2", tokenizer.end, proven=False), tokenizer)
        else:
            raise DataError(f"{path} is missing: weights are of no use without the tokenizer that made their ids")
        if not same:
            raise DataError(
                f"train.init_from: {tokenizer.name!r}, which tokenized the splits, is not {self.name}'s tokenizer: "
                f"set tokenize.tokenizer.name: file and tokenize.tokenizer.file.path: {self._beside(TOKENIZER)}"
            )
        if tokenizer.vocab_size > self.config.shape.vocab_size:
            raise DataError(
                f"train.init_from: the tokenizer has {tokenizer.vocab_size:,} ids and {self.name} rows for "
                f"{self.config.shape.vocab_size:,}: set tokenize.tokenizer.file.end_of_text to a special token "
                f"that {self._beside(TOKENIZER)} has"
            )

    def _beside(self, file: str) -> str:
        """A file beside the weights, as params.yaml would name it."""
        name = PurePath(self.name)
        return ((name.parent if name.suffix == ".pth" else name) / file).as_posix()

    def weights(self, target: Architecture) -> dict[str, torch.Tensor]:
        """The weights for a model of the architecture `target`, which passed `check`: the first positions of a
        longer context; padding rows are zeros.

        Raises:
            CheckpointError: they cannot be read, or do not fit config.json.
            ParamsError: they have weights that an option of `target` leaves out.
        """
        options = {**plain_options(target.component), **self.config.options}
        source = Architecture(with_options(type(target.component), options, self.name), self.config.shape)
        if self.file is None:
            weights = read_weights(self.folder, source)
        else:
            weights = load_tensors(self.file).get("model_state_dict", {})
        check_weights(weights, source, self.name)
        for name, (shape, _) in target.tensor_specs.items():
            if name in weights and weights[name].shape[1:] == shape[1:] and len(shape):
                weights[name] = _rows(weights[name], shape[0], source.shape, target.shape)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        wanted = {name: shape for name, (shape, _) in target.tensor_specs.items()}
        if different := {name for name, _ in shapes.items() ^ wanted.items()}:
            raise CheckpointError(f"{self.name}: {min(different)} is not that of the model of {CONFIG}: {_FIX}")
        return weights


def _rows(weight: torch.Tensor, count: int, source: ModelShape, target: ModelShape) -> torch.Tensor:
    """A weight with `count` rows: of a vocabulary padded otherwise, or of the first positions of a context."""
    if len(weight) == count:
        return weight
    if (len(weight), count) == (source.padded_vocab_size, target.padded_vocab_size):
        known = weight[: target.vocab_size]
        return torch.cat([known, known.new_zeros(count - len(known), *known.shape[1:])])
    return weight[:count] if (len(weight), count) == (source.context_length, target.context_length) else weight


def _same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether they are the same tokenizer, even if their split patterns are written differently."""
    if one.fingerprint == other.fingerprint:
        return True
    if one.ranks != other.ranks or one.end_of_text != other.end_of_text:
        return False
    return all(one.encode(text).tolist() == other.encode(text).tolist() for text in awkward_texts(_STRINGS))
