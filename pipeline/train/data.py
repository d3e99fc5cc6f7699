"""The splits as training reads them: ids, the order of the training windows, and the evaluation windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow, TrainingWindows, evaluation_windows, token_index
from pipeline.data.joined import check_ids
from pipeline.data.packing import packed_index, packed_windows
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
        ids: The token ids of "train" and "val", and which of them are learnt.
        windows: The training windows, in training order.
        val_windows: The windows of "val" that the final evaluation reads.
        eval_windows: The windows of "train" and "val" that every evaluation during training reads.
        learnt: The number of tokens of "train" and "val" that are to be learnt; empty if all are.
        digest: A hash of the splits.
        data_params: The params of the stages tokenize and split that made the splits.
    """

    tokenizer: Tokenizer
    ids: Mapping[str, MaskedIds]
    windows: TrainingWindows
    val_windows: Sequence[EvaluationWindow]
    eval_windows: Mapping[str, Sequence[EvaluationWindow]]
    learnt: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""
    data_params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        params: Params,
        tokenizer: Tokenizer,
        ids: Mapping[str, MaskedIds],
        sampler: BatchSampler,
        documents: Mapping[str, Iterable[IndexEntry]] | None = None,
        **more: Any,
    ) -> TrainingData:
        """Cuts ids of "train" and "val" into windows, as `params` say; `documents` are their indexes.

        Raises:
            DataError: a text has nothing to learn, or the sampler refuses the documents.
        """
        length, train, found = params.model.context_length, params.train, documents or {}
        every: dict[str, Sequence[EvaluationWindow]]
        if train.pack_documents:
            ids = {name: replace(each, document_end=tokenizer.end_of_text) for name, each in ids.items()}
            index, packs = packed_index(ids["train"], length, sampler, found["train"])
            every = {"train": packs, "val": packed_windows(ids["val"], found["val"], length)}
        else:
            index = token_index(len(ids["train"]), length, train.shift_windows, sampler, found.get("train", ()))
            every = {name: evaluation_windows(len(each), length, length) for name, each in ids.items()}
        windows = TrainingWindows(ids["train"], index, sampler, train.seed)
        eval_windows = {
            name: evenly_spaced(every[name], train.evaluation.windows, tokens) for name, tokens in ids.items()
        }
        for name, chosen in eval_windows.items():
            if not chosen:
                raise DataError(
                    f"{name} has nothing to learn: none of its {len(ids[name]):,} tokens is a target; check the "
                    "corpus, and split again"
                )
        val_windows = every["val"]
        if train.evaluation.final_tokens:
            count = -(-train.evaluation.final_tokens // length)
            val_windows = evenly_spaced(val_windows, count, ids["val"])
        return cls(tokenizer, ids, windows, val_windows, eval_windows, **more)

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
        check_length(len(ids["train"]), params)
        data_params, documents = splits.meta.get("params", {}), {name: splits.documents(name) for name in ids}
        learnt = {name: splits.meta["files"][name].get("learnt", len(each)) for name, each in ids.items()}
        masked = any(splits.has_mask(name) for name in ids)
        return cls.build(
            params,
            splits.tokenizer,
            ids,
            sampler,
            documents,
            learnt=learnt if masked else {},
            digest=splits.digest,
            data_params=data_params,
        )


def check_length(tokens: int, params: Params) -> None:
    """Raises DataError if the training split, of `tokens` tokens, is shorter than one window. Packs may be."""
    length = params.model.context_length
    if tokens <= length and not params.train.pack_documents:
        raise DataError(
            f"the training split has {tokens:,} tokens, but one window needs {length + 1:,} "
            f"(model.context_length {length}, plus 1): lower model.context_length, or add text"
        )
