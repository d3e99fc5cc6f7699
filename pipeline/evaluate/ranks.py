"""The pass over a held-out text, shared among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.core.errors import Interrupted
from pipeline.data.batches import EvaluationWindow
from pipeline.data.masked import MaskedIds
from pipeline.distributed.interrupt import StopSignal
from pipeline.distributed.ranks import Ranks
from pipeline.evaluate.metrics import MetricSums
from pipeline.evaluate.places import Offsets, Places
from pipeline.model.architecture import LanguageModel
from pipeline.model.scoring import Scores, score


def score_on_ranks(
    model: LanguageModel,
    ids: MaskedIds,
    windows: Sequence[EvaluationWindow],
    batch_size: int,
    sums: MetricSums,
    ranks: Ranks,
) -> Iterator[tuple[Scores, Offsets]]:
    """Scores windows on all ranks, which must all iterate; rank r takes the batches r, r + world_size, …

    The batches are those of a single process, and rank 0 gets their scores and metric updates in the order of the
    text. So it adds the same numbers in the same order as a single process does.

    Yields:
        On rank 0, the scores of each batch and the positions of its targets in the context, after the metrics'
        updates have been added to `sums`; on the others nothing.

    Raises:
        Interrupted: the launcher died.
    """
    launcher = StopSignal() if ranks.world_size > 1 else None
    batches = -(-len(windows) // batch_size)
    for first in range(0, batches, ranks.world_size):
        if launcher is not None and launcher.number:
            raise Interrupted(launcher.number, "evaluate stopped: its launcher died")
        number = first + ranks.rank
        # Ranks without a batch compute the last one again: FSDP's collectives must match.
        start = min(number, batches - 1) * batch_size
        batch = windows[start : start + batch_size]
        places = Places.of(ids, batch)
        (scores,) = score(model, ids, batch, batch_size, sums.observer(places))
        updates = sums.take()
        for found in ranks.gather((scores, places.positions, updates) if number < batches else None):
            if found is not None:
                sums.add(found[2])
                yield found[0], found[1]
