"""GGUF: the file format of llama.cpp and programs built on it (Ollama, LM Studio, …)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from pipeline.exporting import (
    answer_from_greedy,
    chat_proof,
    check_chat_ids,
    check_greedy,
    check_ids,
    check_logits,
    check_loss,
    greedy_from_logits,
    missing_package,
    reader_errors,
)
from pipeline.plugin import Exporter, ExportSource, hookimpl

from .form import form
from .vocabulary import chat_template, named_ids, vocabulary

_FILE = "model.gguf"
_LOST = {"f16": 0.001, "q8_0": 0.01}
"""The allowed increase of the loss on held-out text by rounding, in nats per token; see docs/exports.md."""


class Gguf(Exporter):
    """A GGUF file for llama.cpp, for the models gpt2 and llama with the split pattern of gpt2 or Llama 3."""

    name: ClassVar[str] = "gguf"

    type: Literal["f32", "f16", "q8_0"] = "f16"
    """The type of matrices: f32, f16, or q8_0 (8 bits, and a scale per 32 numbers)."""

    def export(self, source: ExportSource, folder: Path) -> None:
        arch, numbers, tensors = form(source)
        tokenizer, template = vocabulary(source), chat_template(source)
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise missing_package(error, "gguf") from None

        writer = gguf.GGUFWriter(folder / _FILE, arch)
        writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if self.type == 'f32' else 'MOSTLY'}_{self.type.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in numbers.items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{arch}.{key}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(tokenizer.pattern)
        writer.add_token_list(tokenizer.tokens)
        writer.add_token_types(tokenizer.types)
        writer.add_token_merges(tokenizer.merges)
        for key, token in named_ids(source).items():
            writer.add_uint32(f"tokenizer.ggml.{key}", token)
        writer.add_add_bos_token(False)
        if template:
            writer.add_chat_template(template)
        for name, tensor in tensors.items():
            kind = gguf.GGMLQuantizationType[self._type(name, tensor).upper()]
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        """Reads the file with the package gguf, and computes logits from it as llama.cpp does."""
        from importlib.metadata import version

        try:
            from .reader import GgufModel
        except ModuleNotFoundError as error:
            raise missing_package(error, "gguf") from None

        with reader_errors(folder / _FILE, "gguf"):
            model = GgufModel(folder / _FILE)
            tokenizer = model.tokenizer(named_ids(source))
        if model.special_tokens != source.special_tokens:
            raise ValueError(f"{_FILE} has different special tokens than the checkpoint: {model.special_tokens}")
        self._check_weights(source, model.tensors)
        proof: dict[str, Any] = {
            "reader": f"gguf {version('gguf')} (llama.cpp not run)",
            "type": self.type,
            "texts_with_equal_ids": check_ids(
                source, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, _FILE, tokenizer.decode
            ),
        }

        def chat_ids(messages: list[dict[str, str]]) -> list[int]:
            with reader_errors(folder / _FILE, "jinja2"):
                return model.chat_ids(messages, tokenizer)

        if self.type == "f32":
            proof["largest_logit_difference"] = check_logits(source, model.logits, _FILE)
            greedy = greedy_from_logits(model.logits)
            proof["equal_greedy_tokens"] = check_greedy(source, greedy, _FILE)
            return proof | chat_proof(source, chat_ids, answer_from_greedy(source, greedy), _FILE)
        if source.chat:
            proof["conversations_with_equal_ids"] = check_chat_ids(source, chat_ids, _FILE)
        expected, rounded = check_loss(source, model.logits, _FILE, _LOST[self.type])
        difference = check_logits(source, model.logits, _FILE, tolerance=float("inf"))
        return {
            **proof,
            "largest_logit_difference": difference,
            "loss": rounded,
            "loss_of_the_checkpoint": expected,
        }

    def _type(self, name: str, tensor: torch.Tensor) -> str:
        """The type of a tensor. Vectors and positions stay in f32, as in llama.cpp's converter; q8_0 needs full
        blocks of 32."""
        if self.type == "f32" or tensor.ndim == 1 or name == "position_embd.weight":
            return "f32"
        return "f16" if self.type == "q8_0" and tensor.shape[1] % 32 else self.type

    def _check_weights(self, source: ExportSource, held: dict[str, torch.Tensor]) -> None:
        """Checks that each number equals the checkpoint's, up to the rounding of its type."""
        _, _, tensors = form(source)
        if held.keys() != tensors.keys():
            raise ValueError(
                f"{_FILE} has different tensors than the checkpoint: {sorted(held.keys() ^ tensors.keys())}"
            )
        for name, tensor in tensors.items():
            if held[name].shape != tensor.shape:
                raise ValueError(
                    f"{_FILE}: {name} has the shape {list(held[name].shape)}, not {list(tensor.shape)}"
                )
            off = (held[name] - tensor).abs()
            match self._type(name, tensor):
                case "f32":
                    near = off == 0
                case "f16":  # half a unit in the last place
                    near = off <= tensor.abs() * 2**-11 + 2.0**-25
                case _:  # half a step, plus the rounding of the step itself
                    blocks = tensor.view(-1, 32).abs().amax(dim=1, keepdim=True) / 127
                    near = off.view(-1, 32) <= blocks * (0.501 + 127 * 2.0**-11) + 2.0**-24 * 127
            if not bool(near.all()):
                raise ValueError(f"{_FILE}: the numbers in {name} are not the checkpoint's")


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    return [Gguf]
