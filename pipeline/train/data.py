"""The splits as training reads them: ids, the order of the training windows, and the evaluation windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow, TrainingWindows, evaluation_windows, token_index
from pipeline.data.joined import check_ids
from pipeline.model.scoring import evenly_spaced

if TYPE_CHECKING:
    from pipeline.data.index import IndexEntry
    from pipeline.data.joined import AnyIds
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.data.tokens import TokenFolder
    from pipeline.params.params import Params
    from pipeline.plugin.components import BatchSampler


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        tokenizer: The tokenizer of the ids.
        ids: The token ids of "train" and "val".
        windows: The training windows, in training order.
        eval_windows: The windows of "train" and "val" that every evaluation during training reads.
        digest: A hash of the splits.
        data_params: The params of the stages tokenize and split that made the splits.
    """

    tokenizer: Tokenizer
    ids: Mapping[str, AnyIds]
    windows: TrainingWindows
    eval_windows: Mapping[str, Sequence[EvaluationWindow]]
    digest: str = ""
    data_params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        params: Params,
        tokenizer: Tokenizer,
        ids: Mapping[str, AnyIds],
        sampler: BatchSampler,
        documents: Iterable[IndexEntry] = (),
        **more: Any,
    ) -> TrainingData:
        """Cuts ids of "train" and "val" into windows, as `params` say; `documents` is the index of "train"."""
        length, train = params.model.context_length, params.train
        index = token_index(len(ids["train"]), length, train.shift_windows, sampler, documents)
        windows = TrainingWindows(ids["train"], index, sampler, train.seed)
        eval_windows = {
            name: evenly_spaced(evaluation_windows(len(tokens), length, length), train.evaluation.windows)
            for name, tokens in ids.items()
        }
        return cls(tokenizer, ids, windows, eval_windows, **more)

    def batch(self, offsets: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Inputs and targets, int64 [B, T], of the training windows at `offsets`.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        inputs, targets = self.windows.batch(offsets)
        for ids in (inputs, targets):
            check_ids(ids, self.tokenizer.vocab_size, "the training split", "run `python -m pipeline split`")
        return inputs, targets

    @classmethod
    def read(cls, params: Params, splits: TokenFolder, sampler: BatchSampler) -> TrainingData:
        """Reads the splits; `sampler` decides the order of the training windows.

        Raises:
            DataError: the training split is shorter than a window, or the sampler refuses its documents.
        """
        ids = {name: splits.ids(name) for name in ("train", "val")}
        check_length(ids["train"], params.model.context_length)
        data_params, documents = splits.meta.get("params", {}), splits.documents("train")
        return cls.build(
            params, splits.tokenizer, ids, sampler, documents, digest=splits.digest, data_params=data_params
        )


def check_length(train: AnyIds, context_length: int) -> None:
    """Raises DataError if the training split is shorter than one window."""
    if len(train) <= context_length:
        raise DataError(
            f"the training split has {len(train):,} tokens, but one window needs {context_length + 1:,} "
            f"(model.context_length {context_length}, plus 1): lower model.context_length, or add text"
        )
