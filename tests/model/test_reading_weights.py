"""What is read of a checkpoint to use its model: the weights, once, and nothing of the optimizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from small_config import REGISTRY, small_config

from pipeline.core.errors import CheckpointError, DataError
from pipeline.core.files import write_manifest
from pipeline.data.patterns import GPT2_PATTERN
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.model.checkpoint import DIGESTS, LAST, load_checkpoint, tensor_bytes, write_checkpoint
from pipeline.model.optimizers import load_trained_optimizer
from pipeline.plugin import Model, ModelOutput, ModelShape

CPU = torch.device("cpu")
TOKENIZER = Tokenizer("bytes", GPT2_PATTERN, {bytes([byte]): byte for byte in range(256)}, {END_OF_TEXT: 256})
MEGABYTE = 1 << 20

LOAD = """
import json, re, sys
from pathlib import Path
import torch
from pipeline.model.checkpoint import load_checkpoint
from pipeline.plugin.registry import Registry

small, large, plugins = map(Path, sys.argv[1:])
registry, cpu = Registry.load(plugins, ["models"]), torch.device("cpu")
load_checkpoint(small, "last", cpu, registry)  # what is imported for the first checkpoint is not counted

def status(file, name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path(f"/proc/self/{file}").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in memory now
before, read = status("status", "VmRSS"), status("io", "rchar")
checkpoint = load_checkpoint(large, "last", cpu, registry)
maps = Path("/proc/self/smaps").read_text()
mapped = re.search(rf"{re.escape(str(large))}/\\S+\\n.*?\\nRss:\\s+(\\d+)", maps, re.S)
print(json.dumps({
    "peak": (status("status", "VmHWM") - before) * 1024,
    "read": status("io", "rchar") - read,
    "mapped": int(mapped[1]) * 1024,
}))
"""


def write(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """Writes a checkpoint with an optimizer's state of twice the size; returns the weights of the last step."""
    weights = architecture.make().state_dict()
    moments = {
        number: {"exp_avg": tensor + 1, "exp_avg_sq": tensor + 2} for number, tensor in enumerate(weights.values())
    }
    last = {"model_state_dict": weights, "optimizer_state_dict": {"state": moments}, "step": 3}
    best = {"model_state_dict": {name: tensor + 1 for name, tensor in weights.items()}, "step": 2}
    folder.mkdir()
    write_checkpoint(folder, architecture, TOKENIZER, {}, last, best)
    return weights


def small(**changes: Any) -> Architecture:
    return small_config(vocab_size=257, **changes)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="measured with Linux' /proc")
def test_only_the_weights_are_read_and_no_second_copy_is_made(tmp_path: Path) -> None:
    write(tmp_path / "small", small())
    size = tensor_bytes(write(tmp_path / "large", small(emb_dim=512, n_layers=2)))
    assert size > 24 * MEGABYTE
    command = [sys.executable, "-c", LOAD, tmp_path / "small", tmp_path / "large", REPOSITORY / "plugins"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = json.loads(
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=100).stdout
    )
    assert size <= found["mapped"] < size + MEGABYTE
    assert found["read"] < MEGABYTE
    assert found["peak"] < 1.1 * size + MEGABYTE


def flip_a_bit(path: Path, tensor: torch.Tensor) -> None:
    """Flips the lowest bit of the first number of a tensor, wherever its bytes are in a file."""
    content = bytearray(path.read_bytes())
    at = content.find(tensor.numpy().tobytes())
    assert at > 0
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_a_weight_is_found_and_one_in_the_optimizer_where_that_is_used(tmp_path: Path) -> None:
    weights = write(tmp_path / "there", small())
    name, tensor = "blocks.1.mlp.up.weight", weights["blocks.1.mlp.up.weight"]
    flip_a_bit(tmp_path / "there" / LAST, tensor + 1)  # its optimizer's state
    loaded = load_checkpoint(tmp_path / "there", "last", CPU, REGISTRY)
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in weights.items())
    with pytest.raises(DataError, match=f"{LAST} is damaged"):
        load_trained_optimizer(tmp_path / "there", loaded.model, REGISTRY)

    flip_a_bit(tmp_path / "there" / LAST, tensor)
    with pytest.raises(CheckpointError, match=rf"{LAST} is damaged \(wrong sha256 of {name}\): run"):
        load_checkpoint(tmp_path / "there", "last", CPU, REGISTRY)
    assert load_checkpoint(tmp_path / "there", "best", CPU, REGISTRY).step == 2


def test_a_file_of_another_run_of_the_same_size_is_found(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write(tmp_path / name, small())
    os.replace(tmp_path / "other" / LAST, tmp_path / "one" / LAST)
    with pytest.raises(CheckpointError, match=f"{LAST} is damaged"):
        load_checkpoint(tmp_path / "one", "last", CPU, REGISTRY)


def test_a_checkpoint_of_an_earlier_version_is_checked_by_the_sha256_of_the_file(tmp_path: Path) -> None:
    weights = write(tmp_path / "there", small())
    (tmp_path / "there" / DIGESTS).unlink()
    write_manifest(tmp_path / "there")
    assert load_checkpoint(tmp_path / "there", "last", CPU, REGISTRY).step == 3
    flip_a_bit(tmp_path / "there" / LAST, weights["norm.weight"])
    with pytest.raises(CheckpointError, match=rf"{LAST} is damaged \(wrong sha256\)"):
        load_checkpoint(tmp_path / "there", "last", CPU, REGISTRY)
    assert load_checkpoint(tmp_path / "there", "best", CPU, REGISTRY).step == 2


class Odd(Model):
    """A model with a tensor outside of its state dict, and one weight under two names."""

    name = "odd"

    def build(self, shape: ModelShape) -> torch.nn.Module:
        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token_embedding = torch.nn.Embedding(shape.vocab_size, shape.emb_dim)
                self.head = torch.nn.Linear(shape.emb_dim, shape.vocab_size, bias=False)
                self.head.weight = self.token_embedding.weight
                self.scales = [torch.full((shape.emb_dim,), 2.0)]

            def forward(self, ids: torch.Tensor) -> ModelOutput:
                hidden = self.token_embedding(ids) * self.scales[0]
                return ModelOutput(hidden, self.head.weight, shape.vocab_size)

        return Module()


def test_a_model_that_is_not_only_its_state_dict_is_built_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = Architecture(Odd(), small().shape)
    weights = write(tmp_path / "there", architecture)
    monkeypatch.setattr("pipeline.model.architecture.ModelConfig.architecture", lambda *_: architecture)
    model: LanguageModel = load_checkpoint(tmp_path / "there", "last", CPU, REGISTRY).model
    assert [name for name, _ in model.named_parameters()] == ["token_embedding.weight"]
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert torch.equal(model(ids).hidden, weights["head.weight"][ids] * 2)
