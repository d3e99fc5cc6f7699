"""torch.export: the model as a graph that runs with torch alone, without this project's classes."""

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch

from pipeline.exporting import check_graph, graph, reader_errors, tokenizer_json
from pipeline.plugin import Exporter, ExportSource, hookimpl

_FILE = "model.pt2"


class TorchExport(Exporter):
    """model.pt2 for torch.export.load (ids [B, T] → logits [B, T, V], any B, any T up to the context), and
    tokenizer.json."""

    name: ClassVar[str] = "torch_export"

    def export(self, source: ExportSource, folder: Path) -> None:
        tokenizer = tokenizer_json(source)
        with warnings.catch_warnings(action="ignore"):
            torch.export.save(graph(source), folder / _FILE)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")

    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        with reader_errors(folder / _FILE, "torch.export"), warnings.catch_warnings(action="ignore"):
            program = torch.export.load(folder / _FILE)
        # Operations of other packages would have to be installed wherever the file is loaded.
        foreign = {str(node.target) for node in program.graph_module.graph.nodes if _is_foreign(node)}
        if foreign:
            raise ValueError(f"{_FILE} needs operations that are not in torch: {', '.join(sorted(foreign))}")
        model = program.module()

        def logits(tokens: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = model(tokens)
            return given

        proof = check_graph(source, logits, "torch.export", folder / "tokenizer.json")
        return {"reader": f"torch {torch.__version__}", **proof}


def _is_foreign(node: torch.fx.Node) -> bool:
    """Whether a node of the graph calls an operation that is neither in torch nor in Python."""
    if node.op != "call_function":
        return False
    namespace = getattr(node.target, "namespace", None) or getattr(node.target, "__module__", "")
    return namespace.split(".")[0] not in {"aten", "prim", "torch", "_operator", "builtins", "math"}


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    return [TorchExport]
