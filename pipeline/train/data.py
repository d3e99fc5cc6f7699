"""The splits as training reads them: ids, the order of the training windows, the windows of evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow, TrainingWindows, evaluation_windows, token_index
from pipeline.model.scoring import evenly_spaced

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.data.tokens import Ids, IndexEntry, TokenFolder
    from pipeline.params.params import Params
    from pipeline.plugin.components import BatchSampler


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained and evaluated on.

    Attributes:
        tokenizer: The tokenizer of the ids.
        ids: The tokens of "train" and "val".
        windows: The training windows, in the order in which they are read.
        eval_windows: The windows of "train" and "val" that each evaluation during training reads: always the same.
        digest: A hash of the splits.
        data_params: The params of tokenize and split that made them.
    """

    tokenizer: Tokenizer
    ids: Mapping[str, Ids]
    windows: TrainingWindows
    eval_windows: Mapping[str, Sequence[EvaluationWindow]]
    digest: str = ""
    data_params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        params: Params,
        tokenizer: Tokenizer,
        ids: Mapping[str, Ids],
        sampler: BatchSampler,
        documents: Iterable[IndexEntry] = (),
        **more: Any,
    ) -> TrainingData:
        """Ids of "train" and "val", read as `params` say; `documents` are those of "train"."""
        length, train = params.model.context_length, params.train
        index = token_index(len(ids["train"]), length, train.shift_windows, sampler, documents)
        windows = TrainingWindows(ids["train"], index, sampler, train.seed)
        eval_windows = {
            name: evenly_spaced(evaluation_windows(len(tokens), length, length), train.evaluation.windows)
            for name, tokens in ids.items()
        }
        return cls(tokenizer, ids, windows, eval_windows, **more)

    @classmethod
    def read(cls, params: Params, splits: TokenFolder, sampler: BatchSampler) -> TrainingData:
        """The splits, checked, to be read in the order of `sampler`.

        Raises:
            DataError: the training split is shorter than a window, or does not suit the sampler.
        """
        ids = {name: splits.ids(name) for name in ("train", "val")}
        check_length(ids["train"], params.model.context_length)
        data_params, documents = splits.meta.get("params", {}), splits.documents("train")
        return cls.build(
            params, splits.tokenizer, ids, sampler, documents, digest=splits.digest, data_params=data_params
        )


def check_length(train: Ids, context_length: int) -> None:
    """Raises DataError when the training split has not even one window."""
    if len(train) <= context_length:
        raise DataError(
            f"the training split has {len(train):,} tokens, and one window needs {context_length + 1:,} "
            f"(model.context_length {context_length} and the token after it): lower model.context_length or bring "
            "more text"
        )
