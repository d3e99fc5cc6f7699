"""ONNX: a format for onnxruntime and many other programs, on servers, phones and in browsers, without Python."""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from pipeline.exporting import (
    Logits,
    check_graph,
    check_logits,
    check_loss,
    check_tokenizer_json,
    graph,
    missing_package,
    reader_errors,
    real_batches,
    tokenizer_json,
)
from pipeline.plugin import Exporter, ExportSource, hookimpl

_FILE, _INT8 = "model.onnx", "model.int8.onnx"
_ONE_FILE = 1 << 30
"""The maximum bytes of weights in a single file: protobuf is limited to 2 GB."""


class Onnx(Exporter):
    """model.onnx for onnxruntime (input_ids [B, T] → logits [B, T, V], any B, any T up to the context), and
    tokenizer.json."""

    name: ClassVar[str] = "onnx"

    int8: bool = False
    """Whether to also write model.int8.onnx, with matrices in 8 bits: less than half the size."""
    int8_loss: Annotated[float, Field(ge=0)] = 0.05
    """The allowed increase of the loss on held-out text with 8 bits, in nats per token; more rejects the export."""

    def export(self, source: ExportSource, folder: Path) -> None:
        tokenizer = tokenizer_json(source)
        try:
            import onnx  # noqa: F401 - torch and onnxruntime write with these
            import onnxscript  # noqa: F401

            if self.int8:
                import onnxruntime.quantization
        except ModuleNotFoundError as error:
            raise missing_package(error, "onnx") from None
        size = sum(tensor.numel() * 4 for tensor in source.weights.values())
        with _silenced():
            torch.onnx.export(
                graph(source), (), folder / _FILE, dynamo=True, verbose=False, external_data=size > _ONE_FILE,
                input_names=["input_ids"], output_names=["logits"],
            )  # fmt: skip
            if self.int8:
                onnxruntime.quantization.quantize_dynamic(
                    folder / _FILE, folder / _INT8, use_external_data_format=size > 4 * _ONE_FILE
                )
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")

    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        tokenizer_path = folder / "tokenizer.json"
        if importlib.util.find_spec("onnxruntime") is None:
            proof = {"reader": "none", **_reference(source, folder / _FILE)}
            return {**proof, "texts_with_equal_ids": check_tokenizer_json(source, tokenizer_path)}
        import onnxruntime

        proof = {
            "reader": f"onnxruntime {onnxruntime.__version__}",
            **check_graph(source, _session(folder / _FILE), "onnxruntime", tokenizer_path),
        }
        if self.int8:
            expected, rounded = check_loss(source, _session(folder / _INT8), _INT8, self.int8_loss)
            proof |= {"loss_in_int8": rounded, "loss_of_the_checkpoint": expected}
        return proof


def _session(path: Path) -> Logits:
    """The logits of a file, computed by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    with reader_errors(path, "onnxruntime"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        with reader_errors(path, "onnxruntime"):
            (given,) = session.run(["logits"], {"input_ids": tokens.numpy()})
        return torch.from_numpy(given)

    return logits


def _reference(source: ExportSource, path: Path) -> dict[str, Any]:
    """Verification without onnxruntime: the slow reference implementation of onnx computes a few logits."""
    import onnx.reference

    with reader_errors(path, "onnx"):
        onnx.checker.check_model(path)
        reference = onnx.reference.ReferenceEvaluator(str(path))

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        with reader_errors(path, "onnx"):
            (given,) = reference.run(["logits"], {"input_ids": tokens.numpy()})
        return torch.from_numpy(given)

    return {"largest_logit_difference": check_logits(source, logits, path.name, real_batches(source)[-1:])}


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Context manager: silences the log messages and warnings of torch, onnxscript and onnxruntime."""
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    return [Onnx]
