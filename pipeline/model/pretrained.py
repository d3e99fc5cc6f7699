"""Pretrained weights to start a run from: a checkpoint or a Hugging Face folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import torch

from pipeline.core.errors import CheckpointError, DataError, ParamsError
from pipeline.core.files import MANIFEST, recorded_sha256, sha256
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import TOKENIZER
from pipeline.model.architecture import Architecture, ModelConfig
from pipeline.model.checkpoint import BEST, CONFIG, check_weights, load_tensors, verify_files, verify_weights
from pipeline.model.huggingface import read_config, read_weights, weight_files
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.components import ModelShape
from pipeline.plugin.options import plain_options, with_options

_STRINGS = 1000
_FIX = "copy a complete checkpoint or Hugging Face folder there, or change train.init_from"


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights on disk that are not loaded yet.

    Attributes:
        name: Their path in params.yaml.
        folder: The folder of their config and tokenizer.
        file: The weights file of a checkpoint; None for a Hugging Face folder.
    """

    name: str
    folder: Path
    file: Path | None

    @classmethod
    def at(cls, root: Path, name: str) -> Pretrained:
        """The weights at `root` / `name`: a checkpoint's folder (its best weights), one of its .pth files, or a
        Hugging Face folder.

        Raises:
            CheckpointError: the path does not exist, or is a file of another kind.
        """
        path = root / name
        if path.is_file():
            if path.suffix != ".pth":
                raise CheckpointError(f"{name} is not a weights file of a checkpoint (.pth): {_FIX}")
            return cls(name, path.parent, path)
        if not path.is_dir():
            raise CheckpointError(f"{name} is missing: {_FIX}")
        is_checkpoint = (path / MANIFEST).is_file() and (path / BEST).is_file()
        return cls(name, path, path / BEST if is_checkpoint else None)

    @cached_property
    def config(self) -> ModelConfig:
        """The config of the model that the weights belong to.

        Raises:
            CheckpointError: config.json is corrupt, or describes a model that is not supported.
            DataError: a file is missing or corrupt.
        """
        if self.file is None:
            return read_config(self.folder)
        verify_files(self.file)
        return ModelConfig.from_file(self.folder / CONFIG, _FIX)

    @cached_property
    def digest(self) -> str:
        """A hash of config.json and the weights files; of a checkpoint's, according to its manifest."""
        if self.file is None:
            digests = [sha256(path) for path in (self.folder / CONFIG, *weight_files(self.folder))]
        else:
            digests = [recorded_sha256(path) for path in (self.folder / CONFIG, self.file)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def check(self, target: Architecture, tokenizer: Tokenizer) -> None:
        """Checks that a model of the architecture `target` with this tokenizer can start from the weights.

        Raises:
            ParamsError: the models differ; the message lists the keys to set, with values.
            DataError: the tokenizer is not that of the weights.
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
            raise ParamsError(
                f"train.init_from: params.yaml describes another model than {self.name}: set {settings}"
            )
        self._check_tokenizer(tokenizer)

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        path = self.folder / TOKENIZER
        if self.file is not None:
            same = Tokenizer.load(path, _FIX).fingerprint == tokenizer.fingerprint
        elif path.is_file():
            same = _same_ids(from_file(path, "gpt2", tokenizer.end, proven=False), tokenizer)
        else:
            raise DataError(f"{path} is missing: the weights need the tokenizer that they were trained with")
        if not same:
            raise DataError(
                f"train.init_from: the tokenizer of the splits, {tokenizer.name!r}, is not that of {self.name}: "
                f"set tokenize.tokenizer.name: file and tokenize.tokenizer.file.path: {self._beside(TOKENIZER)}"
            )
        if tokenizer.vocab_size > self.config.shape.vocab_size:
            raise DataError(
                f"train.init_from: the tokenizer has {tokenizer.vocab_size:,} ids, but {self.name} has "
                f"{self.config.shape.vocab_size:,}: set tokenize.tokenizer.file.end_of_text to a special token "
                f"that {self._beside(TOKENIZER)} has"
            )

    def _beside(self, file: str) -> str:
        """The path of a file beside the weights, relative to the project."""
        name = PurePath(self.name)
        return ((name.parent if name.suffix == ".pth" else name) / file).as_posix()

    def weights(self, target: Architecture) -> dict[str, torch.Tensor]:
        """Loads the weights for a model of the architecture `target`, which must have passed `check`. Position
        embeddings of a longer context are truncated; added padding rows are zeros.

        Raises:
            CheckpointError: the weights cannot be read, or do not fit config.json.
            ParamsError: an option of `target` excludes a weight of the file.
        """
        options = {**plain_options(target.component), **self.config.options}
        source = Architecture(with_options(type(target.component), options, self.name), self.config.shape)
        if self.file is None:
            weights = read_weights(self.folder, source)
        else:
            saved = load_tensors(self.file, mmap=True)
            weights = saved.get("model_state_dict", {})
        check_weights(weights, source, self.name)
        if self.file is not None:
            verify_weights(self.file, saved)
        for name, (shape, _) in target.tensor_specs.items():
            if name in weights and weights[name].shape[1:] == shape[1:] and len(shape):
                weights[name] = _rows(weights[name], shape[0], source.shape, target.shape)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        wanted = {name: shape for name, (shape, _) in target.tensor_specs.items()}
        if different := {name for name, _ in shapes.items() ^ wanted.items()}:
            raise CheckpointError(f"{self.name}: {min(different)} does not fit {CONFIG}: {_FIX}")
        return weights


def _rows(weight: torch.Tensor, count: int, source: ModelShape, target: ModelShape) -> torch.Tensor:
    """Pads or truncates a weight to `count` rows: another padding of the vocabulary, or a shorter context."""
    if len(weight) == count:
        return weight
    if (len(weight), count) == (source.padded_vocab_size, target.padded_vocab_size):
        known = weight[: target.vocab_size]
        return torch.cat([known, known.new_zeros(count - len(known), *known.shape[1:])])
    return weight[:count] if (len(weight), count) == (source.context_length, target.context_length) else weight


def _same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids; their split patterns may be written differently."""
    if one.fingerprint == other.fingerprint:
        return True
    if one.ranks != other.ranks or one.end_of_text != other.end_of_text:
        return False
    return all(one.encode(text).tolist() == other.encode(text).tolist() for text in awkward_texts(_STRINGS))
