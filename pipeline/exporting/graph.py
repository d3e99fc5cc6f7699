"""The model as a graph of torch's own operations, which needs nothing of this project to run."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pipeline.core.errors import describe_exception, out_of_memory
from pipeline.plugin.components import ExportSource

if TYPE_CHECKING:
    import torch


def graph(source: ExportSource) -> torch.export.ExportedProgram:
    """ids [B, T] → logits [B, T, V], for any B and for any T up to the context length.

    Raises:
        ValueError: the context is of one or two tokens, which leaves torch no length to choose; or torch cannot
            trace the model.
    """
    import torch

    length = source.config["context_length"]
    if length < 3:
        raise ValueError(f"torch.export needs a context of 3 tokens or more, and the model's is {length}")
    shapes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=1, max=length)}
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        try:
            program = torch.export.export(
                source.model, (torch.zeros(2, 3, dtype=torch.long),), dynamic_shapes=(shapes,)
            )
        except Exception as error:  # it depends on the model what torch raises
            if out_of_memory(error):
                raise
            raise ValueError(
                f"torch.export cannot trace the model {source.config['name']!r}: {describe_exception(error)[:300]}"
            ) from error
    for node in program.graph.nodes:  # each would carry the lines it came from, with this machine's paths
        node.meta.pop("stack_trace", None)
    return program
