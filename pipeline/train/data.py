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
    from pipeline.data.masked import MaskedIds
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.data.tokens import TokenFolder
    from pipeline.params.params import Params
    from pipeline.plugin.components import BatchSampler


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        tokenizer: The tokenizer of the ids.
        ids: The token ids of "train" and "val", and which of them are learnt.
        windows: The training windows, in training order.
        val_windows: All windows of "val".
        eval_windows: The windows of "train" and "val" that every evaluation during training reads.
        digest: A hash of the splits.
        data_params: The params of the stages tokenize and split that made the splits.
    """

    tokenizer: Tokenizer
    ids: Mapping[str, MaskedIds]
    windows: TrainingWindows
    val_windows: Sequence[EvaluationWindow]
    eval_windows: Mapping[str, Sequence[EvaluationWindow]]
    digest: str = ""
    data_params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        params: Params,
        tokenizer: Tokenizer,
        ids: Mapping[str, MaskedIds],
        sampler: BatchSampler,
        documents: Iterable[IndexEntry] = (),
        **more: Any,
    ) -> TrainingData:
        """Cuts ids of "train" and "val" into windows, as `params` say; `documents` is the index of "train".

        Raises:
            DataError: a text has nothing to learn, or the sampler refuses the documents.
        """
        length, train = params.model.context_length, params.train
        index = token_index(len(ids["train"]), length, train.shift_windows, sampler, documents)
        windows = TrainingWindows(ids["train"], index, sampler, train.seed)
        every = {name: evaluation_windows(len(tokens), length, length) for name, tokens in ids.items()}
        eval_windows = {
            name: evenly_spaced(every[name], train.evaluation.windows, tokens) for name, tokens in ids.items()
        }
        for name, chosen in eval_windows.items():
            if not chosen:
                raise DataError(
                    f"{name} has no token that is to be learnt: all of its {len(ids[name]):,} tokens are only read"
                )
        return cls(tokenizer, ids, windows, every["val"], eval_windows, **more)

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
            DataError: the training split is shorter than a window, a split has nothing to learn, or the sampler
                refuses the documents.
        """
        ids = {name: splits.masked(name) for name in ("train", "val")}
        check_length(len(ids["train"]), params.model.context_length)
        data_params, documents = splits.meta.get("params", {}), splits.documents("train")
        return cls.build(
            params, splits.tokenizer, ids, sampler, documents, digest=splits.digest, data_params=data_params
        )


def check_length(tokens: int, context_length: int) -> None:
    """Raises DataError if the training split, of `tokens` tokens, is shorter than one window."""
    if tokens <= context_length:
        raise DataError(
            f"the training split has {tokens:,} tokens, but one window needs {context_length + 1:,} "
            f"(model.context_length {context_length}, plus 1): lower model.context_length, or add text"
        )
