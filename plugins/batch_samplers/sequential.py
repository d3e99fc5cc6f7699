"""The order of the text."""

from typing import ClassVar

from pipeline.plugin import BatchSampler, TokenIndex, hookimpl


class Sequential(BatchSampler):
    """From the beginning of the text to its end, epoch after epoch."""

    name: ClassVar[str] = "sequential"
    once_an_epoch: ClassVar[bool] = True

    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        return index.text.in_order(sample, seed)


@hookimpl
def register_batch_samplers() -> list[type[BatchSampler]]:
    return [Sequential]
