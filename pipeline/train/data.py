"""The splits as training reads them: ids, the order of the training windows, the windows of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError
from pipeline.data.batches import EvaluationWindow, TrainingWindows, evaluation_windows
from pipeline.model.scoring import evenly_spaced

if TYPE_CHECKING:
    from pipeline.data.tokenizer import Tokenizer
    from pipeline.data.tokens import Ids, TokenFolder
    from pipeline.params.params import Params


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained and evaluated on.

    Attributes:
        tokenizer: The tokenizer of the ids.
        ids: The tokens of "train" and "val".
        windows: The training windows, in the order in which they are read.
        evaluated: The windows of "train" and "val" that each evaluation during training reads: always the same.
        digest: A hash of the splits.
        made_by: The params of tokenize and split that made them.
    """

    tokenizer: Tokenizer
    ids: Mapping[str, Ids]
    windows: TrainingWindows
    evaluated: Mapping[str, Sequence[EvaluationWindow]]
    digest: str = ""
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, params: Params, tokenizer: Tokenizer, ids: Mapping[str, Ids], **more: Any) -> TrainingData:
        """Ids of "train" and "val", read as `params` say."""
        length, train = params.model.context_length, params.train
        windows = TrainingWindows(ids["train"], length, train.seed, train.shift_windows)
        evaluated = {
            name: evenly_spaced(evaluation_windows(len(tokens), length, length), train.evaluation.windows)
            for name, tokens in ids.items()
        }
        return cls(tokenizer, ids, windows, evaluated, **more)

    @classmethod
    def read(cls, params: Params, splits: TokenFolder) -> TrainingData:
        """The splits, checked.

        Raises:
            DataError: the training split is shorter than a window.
        """
        ids = {name: splits.ids(name) for name in ("train", "val")}
        check_length(ids["train"], params.model.context_length)
        return cls.of(params, splits.tokenizer, ids, digest=splits.digest, made_by=splits.meta.get("params", {}))


def check_length(train: Ids, context_length: int) -> None:
    """Raises DataError when the training split has not even one window."""
    if len(train) <= context_length:
        raise DataError(
            f"the training split has {len(train):,} tokens, and one window needs {context_length + 1:,} "
            f"(model.context_length {context_length} and the token after it): lower model.context_length or bring "
            "more text"
        )
