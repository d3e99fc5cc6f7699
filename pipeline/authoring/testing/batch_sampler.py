"""The contract of a batch sampler, and a text to test one with."""

from __future__ import annotations

import tracemalloc
from itertools import accumulate, pairwise

from pipeline.authoring.testing.toy import instance_of, keeps_no_state
from pipeline.data.batches import token_index
from pipeline.data.index import IndexEntry
from pipeline.plugin.calls import supported_arguments
from pipeline.plugin.components import BatchSampler
from pipeline.plugin.order import TokenIndex

_SIZES = (40, 100, 700, 60, 900, 30, 400, 50, 80, 600)

_BYTES_AT_MOST = 1 << 20


def text_index(component: BatchSampler, windows: int, shift: bool = True) -> TokenIndex:
    """The index of a text of `windows` windows (300 or more) of 16 tokens, for tests of batch samplers.

    It has 11 documents, `a/0.txt` to `a/4.txt` and `b/5.txt` to `b/10.txt`: ten of 30 to 900 tokens, and the rest.
    """
    context_length = 16
    tokens = windows * context_length + 1
    starts = [0, *accumulate(_SIZES)]
    documents = [
        IndexEntry(f"{'ab'[number >= 5]}/{number}.txt", start, end - start, end - start)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], tokens], strict=True))
    ]
    return token_index(tokens, context_length, shift, component, documents)


@keeps_no_state
def check_batch_sampler(component: type[BatchSampler] | BatchSampler) -> None:
    """Checks a batch sampler: valid offsets that depend only on the sample's number, in little memory for long
    texts; with `once_an_epoch`, each window exactly once per epoch.

    The text is that of `text_index`.
    """
    sampler = instance_of(component)
    far = [10**6, 10**9, 10**12]
    for shift in (False, True):
        index = text_index(sampler, 300, shift)
        samples = [*range(3 * index.text.windows), *far]
        more = supported_arguments(sampler, "offset", total_samples=2 * index.text.windows)  # and an extension
        offsets = [sampler.offset(sample, 1, index, **more) for sample in samples]
        for sample, offset in zip(samples, offsets, strict=True):
            assert isinstance(offset, int), f"sample {sample}: {offset!r} is not an integer"
            last = index.tokens - index.context_length - 1
            assert 0 <= offset <= last, f"sample {sample}: no window begins at {offset}: offsets are 0 to {last}"
        again = type(sampler)(**sampler.model_dump())
        for sample, offset in reversed(list(zip(samples, offsets, strict=True))):
            assert again.offset(sample, 1, index, **more) == offset, (
                f"sample {sample}: the same sample must always have the same offset"
            )
        if sampler.once_an_epoch:
            for epoch in range(3):
                read = sorted(offsets[epoch * index.text.windows : (epoch + 1) * index.text.windows])
                steps = {after - before for before, after in pairwise(read)}
                assert steps == {index.context_length}, f"epoch {epoch} must read each window exactly once"
    index = text_index(sampler, 1_000_000)
    tracemalloc.start()
    for sample in (0, *far):
        sampler.offset(sample, 1, index, **more)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < _BYTES_AT_MOST, f"for a text of 1,000,000 windows it uses {peak:,} bytes: it must not list them"
