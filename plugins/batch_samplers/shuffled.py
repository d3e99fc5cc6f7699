"""Windows in a shuffled order."""

from typing import ClassVar

from pipeline.plugin import BatchSampler, TokenIndex, hookimpl


class Shuffled(BatchSampler):
    """Reads each window once per epoch, in a random order that depends on the seed and the epoch."""

    name: ClassVar[str] = "shuffled"
    once_an_epoch: ClassVar[bool] = True

    def offset(self, sample: int, seed: int, index: TokenIndex) -> int:
        return index.text.shuffled(sample, seed)


@hookimpl
def register_batch_samplers() -> list[type[BatchSampler]]:
    return [Shuffled]
