"""Traces the model into a graph of torch operations, which runs without this project's code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pipeline.core.errors import describe_exception, out_of_memory
from pipeline.plugin.components import ExportSource

if TYPE_CHECKING:
    import torch


def graph(source: ExportSource) -> torch.export.ExportedProgram:
    """Exports the model as a program ids [B, T] → logits [B, T, V], for any B and any T up to the context length.

    Raises:
        ValueError: the context has fewer than 3 tokens, which torch cannot export with a dynamic length; or torch
            cannot trace the model.
    """
    import torch

    length = source.config["context_length"]
    if length < 3:
        raise ValueError(f"torch.export needs a context_length of 3 or more, not {length}")
    shapes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=1, max=length)}
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        try:
            program = torch.export.export(
                source.model, (torch.zeros(2, 3, dtype=torch.long),), dynamic_shapes=(shapes,)
            )
        except Exception as error:  # torch raises many types of exceptions here
            if out_of_memory(error):
                raise
            raise ValueError(
                f"torch.export cannot trace the model {source.config['name']!r}: {describe_exception(error)[:300]}"
            ) from error
    for node in program.graph.nodes:  # stack traces contain paths of this machine
        node.meta.pop("stack_trace", None)
    return program
