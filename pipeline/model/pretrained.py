"""Pretrained weights to start a run from: a checkpoint or a Hugging Face folder.

The tokenizer of the run may have special tokens that the weights do not know, such as those of a chat template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import torch

from pipeline.core.errors import CheckpointError, DataError, ParamsError
from pipeline.core.files import MANIFEST, recorded_sha256, sha256
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file, special_tokens_in
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

    def digest(self, tokenizer: Tokenizer) -> str:
        """A hash of what `weights` gives: of config.json and the weights files (of a checkpoint's, according to its
        manifest), and of the new tokens."""
        if self.file is None:
            digests = [sha256(path) for path in (self.folder / CONFIG, *weight_files(self.folder))]
        else:
            digests = [recorded_sha256(path) for path in (self.folder / CONFIG, self.file)]
        new = [json.dumps(self.new_tokens(tokenizer))] if self.new_tokens(tokenizer) else []
        return hashlib.sha256(" ".join([*digests, *new]).encode()).hexdigest()

    def check(self, target: Architecture, tokenizer: Tokenizer) -> None:
        """Checks that a model of the architecture `target` with this tokenizer can start from the weights.

        Raises:
            ParamsError: the models differ; the message lists the keys to set, with values.
            DataError: the tokenizer is neither that of the weights nor one that adds special tokens to it.
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
            base = Tokenizer.load(path, _FIX)
        elif path.is_file():
            base = from_file(path, "gpt2", tokenizer.end, proven=False)
        else:
            raise DataError(f"{path} is missing: the weights need the tokenizer that they were trained with")
        special = special_tokens_in(path)
        if why := _difference(base, special, tokenizer):
            raise DataError(
                f"train.init_from: the tokenizer of the splits, {tokenizer.name!r}, is not that of {self.name} "
                f"({why}): set tokenize.tokenizer.name: file and tokenize.tokenizer.file.path: "
                f"{self._beside(TOKENIZER)}"
            )
        ids, rows = max(*base.ranks.values(), *special.values()) + 1, self.config.shape.vocab_size
        if ids > rows:
            raise DataError(
                f"train.init_from: {self._beside(TOKENIZER)} has {ids:,} ids, but the model {rows:,} rows: copy "
                "the tokenizer.json of the weights again, and add tokens by tokenize.tokenizer.special_tokens"
            )

    def new_tokens(self, tokenizer: Tokenizer) -> dict[str, int]:
        """The special tokens of `tokenizer`, which must have passed `check`, that the weights do not know."""
        known = special_tokens_in(self.folder / TOKENIZER)
        return {name: token for name, token in tokenizer.special_tokens.items() if name not in known}

    def _beside(self, file: str) -> str:
        """The path of a file beside the weights, relative to the project."""
        name = PurePath(self.name)
        return ((name.parent if name.suffix == ".pth" else name) / file).as_posix()

    def weights(self, target: Architecture, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
        """Loads the weights for a model of the architecture `target`, which must have passed `check`.

        Position embeddings of a longer context are truncated. Of a weight with a row per id, such as embedding and
        head, the rows of new special tokens are the mean of the rows of known tokens, also where the weights have a
        padding row for this id: so a new token is at first about as likely as others are on average (Hewitt, 2021,
        "Initializing New Word Embeddings for Pretrained Language Models"). Added padding rows are zeros.

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
        new = list(self.new_tokens(tokenizer).values())
        known = sorted({*tokenizer.ranks.values(), *tokenizer.special_tokens.values()} - set(new))
        by_id, contexts = _weights_by_id(source), (source.shape.context_length, target.shape.context_length)
        for name, (shape, _) in target.tensor_specs.items():
            if name not in weights or weights[name].shape[1:] != shape[1:]:
                continue
            if name in by_id:
                weights[name] = _rows_by_id(weights[name], target.shape, new, known)
            elif len(shape) and (len(weights[name]), shape[0]) == contexts:
                weights[name] = weights[name][: shape[0]]
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        wanted = {name: shape for name, (shape, _) in target.tensor_specs.items()}
        if different := {name for name, _ in shapes.items() ^ wanted.items()}:
            raise CheckpointError(f"{self.name}: {min(different)} does not fit {CONFIG}: {_FIX}")
        return weights


def _weights_by_id(architecture: Architecture) -> set[str]:
    """The names of weights that have a row per id of the vocabulary: those that a larger vocabulary lengthens."""
    shape = architecture.shape
    larger = replace(architecture, shape=replace(shape, vocab_size=shape.vocab_size + shape.pad_vocab_to))
    rows = {name: size[:1] for name, (size, _) in architecture.tensor_specs.items()}
    return {name for name, (size, _) in larger.tensor_specs.items() if size[:1] != rows.get(name)}


def _rows_by_id(weight: torch.Tensor, shape: ModelShape, new: list[int], known: list[int]) -> torch.Tensor:
    """A weight [rows, …] with the rows of a vocabulary of `shape`: as they are, the mean of the rows `known` for
    the ids `new`, or zeros for padding."""
    if not new and len(weight) == shape.padded_vocab_size:
        return weight
    rows = weight.new_zeros(shape.padded_vocab_size, *weight.shape[1:])
    old = weight[: shape.vocab_size]
    rows[: len(old)] = old
    if new:
        share = torch.zeros(len(weight))
        share[known] = 1 / len(known)
        rows[new] = torch.einsum("v,v...->...", share, weight.float()).to(weight.dtype)  # copies no rows
    return rows


def _difference(base: Tokenizer, special: Mapping[str, int], tokenizer: Tokenizer) -> str:
    """How `tokenizer` differs from `base` in what the weights know: its tokens, its special tokens with their ids,
    and the split pattern, which may be written differently; empty if it does not."""
    if base.ranks != tokenizer.ranks:
        return "it has other tokens"
    names = {token: name for name, token in special.items()}
    for name, token in tokenizer.special_tokens.items():
        if special.get(name, token) != token:
            return f"{name} has the id {token:,}, not {special[name]:,}"
        if names.get(token, name) != name:
            return f"the id {token:,} is {name}, not {names[token]}"
    if base.pattern == tokenizer.pattern or all(
        base.encode(text).tolist() == tokenizer.encode(text).tolist() for text in awkward_texts(_STRINGS)
    ):
        return ""
    return "it has another split pattern"
