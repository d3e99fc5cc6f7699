"""GGUF, the one file that llama.cpp and the programs built on it (Ollama, LM Studio, …) load."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from pipeline.exporting import (
    check_greedy,
    check_ids,
    check_logits,
    check_loss,
    greedily,
    needed,
    understood,
)
from pipeline.plugin import Exporter, ExportSource, hookimpl

from .form import form
from .vocabulary import vocabulary

_FILE = "model.gguf"
_LOST = {"f16": 0.001, "q8_0": 0.01}
"""Nats a token that rounding may cost on held-out text; measured: docs/exports.md."""


class Gguf(Exporter):
    """One GGUF file for llama.cpp, of the models gpt2 and llama with gpt2's split pattern."""

    name: ClassVar[str] = "gguf"

    type: Literal["f32", "f16", "q8_0"] = "f16"
    """What matrices are rounded to: f32 (not at all), f16, or q8_0 (eight bits and a scale for each 32 numbers)."""

    def export(self, source: ExportSource, folder: Path) -> None:
        arch, numbers, tensors = form(source)
        words = vocabulary(source)
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise needed(error, "gguf") from None

        writer = gguf.GGUFWriter(folder / _FILE, arch)
        writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if self.type == 'f32' else 'MOSTLY'}_{self.type.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in numbers.items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{arch}.{key}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(words.tokens)
        writer.add_token_types(words.types)
        writer.add_token_merges(words.merges)
        writer.add_bos_token_id(words.end)
        writer.add_eos_token_id(words.end)
        writer.add_add_bos_token(False)
        for name, tensor in tensors.items():
            kind = gguf.GGMLQuantizationType[self._type(name, tensor).upper()]
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def verify(self, source: ExportSource, folder: Path) -> dict[str, Any]:
        """Reads the file with gguf's own reader, and computes from it alone what llama.cpp would."""
        from importlib.metadata import version

        try:
            from .reader import GgufModel
        except ModuleNotFoundError as error:
            raise needed(error, "gguf") from None

        with understood(folder / _FILE, "gguf"):
            model = GgufModel(folder / _FILE)
            tokenizer = model.tokenizer(source.end_of_text)
        if model.special_tokens != source.special_tokens:
            raise ValueError(f"{_FILE} has other special tokens than the checkpoint: {model.special_tokens}")
        self._check_weights(source, model.tensors)
        proof: dict[str, Any] = {
            "reader": f"gguf {version('gguf')} (llama.cpp not run)",
            "type": self.type,
            "texts_with_equal_ids": check_ids(
                source, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, _FILE, tokenizer.decode
            ),
        }
        if self.type == "f32":
            proof["largest_logit_difference"] = check_logits(source, model.logits, _FILE)
            proof["equal_greedy_tokens"] = check_greedy(source, greedily(model.logits), _FILE)
            return proof
        expected, rounded = check_loss(source, model.logits, _FILE, _LOST[self.type])
        difference = check_logits(source, model.logits, _FILE, tolerance=float("inf"))
        return {
            **proof,
            "largest_logit_difference": difference,
            "loss": rounded,
            "loss_of_the_checkpoint": expected,
        }

    def _type(self, name: str, tensor: torch.Tensor) -> str:
        """Vectors and positions stay in f32, as in llama.cpp's own converter; q8_0 needs rows of whole blocks."""
        if self.type == "f32" or tensor.ndim == 1 or name == "position_embd.weight":
            return "f32"
        return "f16" if self.type == "q8_0" and tensor.shape[1] % 32 else self.type

    def _check_weights(self, source: ExportSource, held: dict[str, torch.Tensor]) -> None:
        """Each number is the checkpoint's, as near as its type can be."""
        _, _, tensors = form(source)
        if held.keys() != tensors.keys():
            raise ValueError(
                f"{_FILE} holds other tensors than the checkpoint has: {sorted(held.keys() ^ tensors.keys())}"
            )
        for name, tensor in tensors.items():
            if held[name].shape != tensor.shape:
                raise ValueError(f"{_FILE} holds {name} as {list(held[name].shape)}, not {list(tensor.shape)}")
            off = (held[name] - tensor).abs()
            match self._type(name, tensor):
                case "f32":
                    near = off == 0
                case "f16":  # half of the last bit
                    near = off <= tensor.abs() * 2**-11 + 2.0**-25
                case _:  # half of a step, and what the step itself is rounded by
                    blocks = tensor.view(-1, 32).abs().amax(dim=1, keepdim=True) / 127
                    near = off.view(-1, 32) <= blocks * (0.501 + 127 * 2.0**-11) + 2.0**-24 * 127
            if not bool(near.all()):
                raise ValueError(f"{_FILE} does not hold the checkpoint's numbers in {name}")


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    return [Gguf]
