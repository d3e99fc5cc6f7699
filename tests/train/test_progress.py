"""What the live line of training says while torch compiles."""

from __future__ import annotations

import torch

from pipeline.core.console import Progress
from pipeline.train.progress import _told_of_compiling


class Noting(Progress):
    """Notes what it waits for."""

    def __init__(self) -> None:
        super().__init__("training", "step", 2)
        self.waited: list[str] = []

    def wait(self, why: str) -> None:
        self.waited.append(why)
        super().wait(why)


def test_it_says_that_torch_compiles_for_each_new_shape_and_only_then() -> None:
    torch._dynamo.reset()
    double = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    with Noting() as progress:
        with _told_of_compiling(progress):
            for size, compiled in ((2, 1), (2, 1), (3, 2)):
                double(torch.ones(size))
                assert progress.waited == ["compiling"] * compiled
                assert not progress._waits
        double(torch.ones(4))
        assert len(progress.waited) == 2
