"""Windows in the order of the text."""

from typing import ClassVar

from pipeline.plugin import BatchSampler, TokenIndex, hookimpl


class Sequential(BatchSampler):
    """Reads the windows in the order of the text, from beginning to end, in every epoch."""

    name: ClassVar[str] = "sequential"
    once_an_epoch: ClassVar[bool] = True

    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        return index.text.in_order(sample, seed)


@hookimpl
def register_batch_samplers() -> list[type[BatchSampler]]:
    return [Sequential]
