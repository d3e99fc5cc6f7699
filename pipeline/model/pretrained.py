"""Pretrained weights that a run starts from: a checkpoint's or a Hugging Face folder's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath

import torch
import torch.nn.functional as F

from pipeline.core.errors import CheckpointError, DataError, ParamsError
from pipeline.core.files import MANIFEST, sha256, verify_manifest
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import TOKENIZER
from pipeline.model.checkpoint import BEST, CONFIG, check_weights, load_tensors
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import weight_shapes
from pipeline.model.huggingface import read_config, read_weights, weight_files
from pipeline.plugin.bytelevel import awkward_texts

_STRINGS = 1000
_MEND = "copy a whole checkpoint or Hugging Face folder there, or set train.init_from"


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
                raise CheckpointError(f"{name} is no file of a checkpoint's weights (.pth): {_MEND}")
            return cls(name, path.parent, path)
        if not path.is_dir():
            raise CheckpointError(f"{name} is missing: {_MEND}")
        is_checkpoint = (path / MANIFEST).is_file() and (path / BEST).is_file()
        return cls(name, path, path / BEST if is_checkpoint else None)

    @cached_property
    def config(self) -> GPTConfig:
        """The architecture that the weights belong to.

        Raises:
            CheckpointError: config.json is damaged, or describes what the GPT does not compute.
            DataError: a file is missing or altered.
        """
        if self.file is None:
            return read_config(self.folder)
        verify_manifest(self.folder, _MEND)
        return GPTConfig.from_file(self.folder / CONFIG, _MEND)

    @cached_property
    def digest(self) -> str:
        """A hash of config.json and the weights."""
        files = weight_files(self.folder) if self.file is None else [self.file]
        digests = [sha256(path) for path in (self.folder / CONFIG, *files)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def check(self, own: GPTConfig, tokenizer: Tokenizer) -> None:
        """Whether a model of this architecture, with this tokenizer, can start from the weights.

        Raises:
            ParamsError: the architecture differs; each key that differs is named with the value to set.
            DataError: the tokenizer gives other ids than the weights were trained with.
        """
        theirs, as_theirs = self.config, replace(own, family=self.config.family)
        wanted = {
            key: getattr(theirs, value)
            for key, value in _decisive(theirs).items()
            if getattr(theirs, value) != getattr(own if key == "family" else as_theirs, value)
        }
        if own.context_length > theirs.context_length:
            wanted["context_length"] = f"{theirs.context_length} or less"
        if wanted:
            settings = ", ".join(f"model.{key}: {str(value).lower()}" for key, value in wanted.items())
            raise ParamsError(f"train.init_from: {self.name} is another model than params.yaml's: set {settings}")
        self._check_tokenizer(tokenizer)

    def _check_tokenizer(self, own: Tokenizer) -> None:
        path = self.folder / TOKENIZER
        if self.file is not None:
            same = Tokenizer.load(path, _MEND).fingerprint == own.fingerprint
        elif path.is_file():
            same = _gives_the_same_ids(from_file(path, "gpt2", own.end, proven=False), own)
        else:
            raise DataError(f"{path} is missing: weights are of no use without the tokenizer that made their ids")
        if not same:
            raise DataError(
                f"train.init_from: {own.name!r}, which tokenized the splits, is not {self.name}'s tokenizer: "
                f"set tokenize.tokenizer.name: file and tokenize.tokenizer.file.path: {self._beside(TOKENIZER)}"
            )
        if own.vocab_size > self.config.vocab_size:
            raise DataError(
                f"train.init_from: the tokenizer has {own.vocab_size:,} ids and {self.name} rows for "
                f"{self.config.vocab_size:,}: set tokenize.tokenizer.file.end_of_text to a special token that "
                f"{self._beside(TOKENIZER)} has"
            )

    def _beside(self, file: str) -> str:
        """A file beside the weights, as params.yaml would name it."""
        name = PurePath(self.name)
        return ((name.parent if name.suffix == ".pth" else name) / file).as_posix()

    def weights(self, own: GPTConfig) -> dict[str, torch.Tensor]:
        """The weights for a model of the architecture `own`, which passed `check`: the first positions of a longer
        context, padding rows of zeros, and biases of queries, keys and values (zeros if new) where `own` has them.

        Raises:
            CheckpointError: they cannot be read, or do not fit config.json.
            ParamsError: they have biases and `own` has none.
        """
        if self.file is None:
            weights = read_weights(self.folder, self.config)
        else:
            weights = load_tensors(self.file).get("model_state_dict", {})
        check_weights(weights, self.config, self.name)
        for name in ("token_embedding.weight", "head.weight"):
            if name in weights:
                known = weights[name][: own.vocab_size]
                weights[name] = F.pad(known, (0, 0, 0, own.padded_vocab_size - len(known)))
        if "position_embedding.weight" in weights:
            weights["position_embedding.weight"] = weights["position_embedding.weight"][: own.context_length]
        wanted = weight_shapes(own)
        for name in {*weights, *wanted}:
            if name.endswith("qkv.bias"):
                if name not in weights:
                    weights[name] = torch.zeros(wanted[name])
                elif name not in wanted and bool(weights.pop(name).any()):
                    raise ParamsError(
                        f"train.init_from: {self.name} has biases of queries, keys and values: set "
                        "model.qkv_bias: true"
                    )
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if different := {name for name, _ in shapes.items() ^ wanted.items()}:
            raise CheckpointError(f"{self.name}: {min(different)} is not that of the model of {CONFIG}: {_MEND}")
        return weights


def _decisive(config: GPTConfig) -> dict[str, str]:
    """The keys of params.yaml's `model` that decide what weights compute, with the attribute that each decides."""
    keys = {key: key for key in ("family", "n_layers", "n_heads", "emb_dim")} | {"tied_head": "tied"}
    if config.llama:
        keys.update(n_kv_heads="kv_heads", mlp_dim="inner_dim", rope_theta="rope_theta", norm_eps="norm_eps")
    return keys


def _gives_the_same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether they are the same tokenizer, even if their split patterns are written differently."""
    if one.fingerprint == other.fingerprint:
        return True
    if one.ranks != other.ranks or one.end_of_text != other.end_of_text:
        return False
    return all(one.encode(text).tolist() == other.encode(text).tolist() for text in awkward_texts(_STRINGS))
