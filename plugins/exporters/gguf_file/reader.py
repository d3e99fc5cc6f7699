"""Computes a model from a GGUF file alone, as llama.cpp does, to verify the file.

It shares nothing with what wrote the file: names, shapes and numbers come from the file, and the graph is that of
llama.cpp's `llm_build_gpt2` and `llm_build_llama`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gguf import GGUFReader, dequantize
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

_LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What llama.cpp splits text by where the file says "llama-bpe"."""


class GgufModel:
    """The model in a GGUF file, computed in float32."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.values: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.arch: str = self.values["general.architecture"]
        self.tensors = {
            each.name: torch.from_numpy(dequantize(each.data, each.tensor_type).copy()).float()
            for each in reader.tensors
        }

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """ids [B, T] → logits [B, T, V]."""
        positions = torch.arange(tokens.shape[1])
        x = self.tensors["token_embd.weight"][tokens]
        if self.arch == "gpt2":
            x = x + self.tensors["position_embd.weight"][positions]
        for layer in range(self._number("block_count")):
            x = x + self._attention(self._norm(x, f"blk.{layer}.attn_norm"), layer, positions)
            x = x + self._mlp(self._norm(x, f"blk.{layer}.ffn_norm"), f"blk.{layer}")
        x = self._norm(x, "output_norm")
        return x @ self.tensors.get("output.weight", self.tensors["token_embd.weight"]).T

    def _attention(self, x: torch.Tensor, layer: int, positions: torch.Tensor) -> torch.Tensor:
        name, heads = f"blk.{layer}", self._number("attention.head_count")
        if self.arch == "gpt2":
            q, k, v = self._linear(x, f"{name}.attn_qkv").chunk(3, dim=-1)
        else:
            q, k, v = (self._linear(x, f"{name}.attn_{part}") for part in "qkv")
        shared = self.values.get(f"{self.arch}.attention.head_count_kv", heads)
        q, k, v = (
            each.unflatten(-1, (count, -1)).transpose(1, 2)
            for each, count in ((q, heads), (k, shared), (v, shared))
        )
        if self.arch == "llama":
            q, k = self._rotate(q, positions), self._rotate(k, positions)
        k, v = (each.repeat_interleave(heads // shared, dim=1) for each in (k, v))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        later = positions[None, :] > positions[:, None]
        attended = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ v
        return self._linear(attended.transpose(1, 2).flatten(2), f"{name}.attn_output")

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Applies rotary positions to pairs of adjacent numbers: ggml's "normal" mode."""
        size = self._number("rope.dimension_count")
        frequencies = self._number("rope.freq_base") ** (-torch.arange(0, size, 2) / size)
        angles = positions[:, None] * frequencies
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
        return torch.stack(turned, dim=-1).flatten(-2)

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        inside = self._linear(x, f"{name}.ffn_up")
        if self.arch == "gpt2":
            inside = F.gelu(inside, approximate="tanh")
        else:
            inside = F.silu(self._linear(x, f"{name}.ffn_gate")) * inside
        return self._linear(inside, f"{name}.ffn_down")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.tensors[f"{name}.weight"]
        if self.arch == "gpt2":
            epsilon = self._number("attention.layer_norm_epsilon")
            return F.layer_norm(x, x.shape[-1:], weight, self.tensors[f"{name}.bias"], epsilon)
        return F.rms_norm(x, x.shape[-1:], weight, self._number("attention.layer_norm_rms_epsilon"))

    def _number(self, key: str) -> Any:
        return self.values[f"{self.arch}.{key}"]

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens (llama.cpp's type "control") and their ids."""
        types = self.values["tokenizer.ggml.token_type"]
        return {
            token: number for number, token in enumerate(self.values["tokenizer.ggml.tokens"]) if types[number] == 3
        }

    def tokenizer(self, named: Mapping[str, int]) -> Tokenizer:
        """The tokenizer from the tokens and merges in the file, with the split pattern of its name.

        Args:
            named: The ids that must have these names.

        Raises:
            ValueError: the file does not have such a tokenizer, adds tokens, or names other ids.
        """
        metadata = {name.removeprefix("tokenizer.ggml."): value for name, value in self.values.items()}
        if (metadata["model"], metadata["add_bos_token"]) != ("gpt2", False):
            raise ValueError("its tokenizer is not gpt2 without added tokens")
        tokens: list[str] = metadata["tokens"]
        for key, token in named.items():
            if metadata[key] != token:
                raise ValueError(f"its {key} is {tokens[metadata[key]]!r}, not {tokens[token]!r}")
        normal = {token: number for number, token in enumerate(tokens) if metadata["token_type"][number] == 1}
        merges = [(first, second) for first, _, second in (pair.partition(" ") for pair in metadata["merges"])]
        is_gpt2 = {"gpt-2": True, "llama-bpe": False}[metadata["pre"]]
        tokenizer = Tokenizer(models.BPE(normal, merges, ignore_merges=not is_gpt2))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if not is_gpt2:
            bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            words = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def chat_ids(self, messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
        """The ids of a conversation up to the point where the assistant begins: what the chat template writes,
        divided at the names of special tokens."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        template = environment.from_string(self.values["tokenizer.chat_template"])
        text = template.render(messages=messages, add_generation_prompt=True)
        special = self.special_tokens
        names = sorted(special, key=len, reverse=True)
        ids: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, names))})", text):
            ids += [special[piece]] if piece in special else tokenizer.encode(piece, add_special_tokens=False).ids
        return ids
