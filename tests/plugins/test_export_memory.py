"""The memory of an export: one file of the weights, however many there are."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from small_config import small_config

from pipeline.model.checkpoint import tensor_bytes, write_checkpoint
from pipeline.tokenize.vocabulary import raw_bytes

MEGABYTE = 1 << 20
SHARD = 16 * MEGABYTE

EXPORT = """
import sys
from pathlib import Path
import torch
from pipeline.export.stage import export_source
from pipeline.exporting import proof
from pipeline.model.checkpoint import load_checkpoint
from pipeline.plugin.registry import Registry

proof._texts = lambda source: [source.text]  # all of them take 90 MB for a moment, whatever the model
registry = Registry.load(Path(sys.argv[1]), ["models", "exporters"])
exporter = registry.build("exporters", "huggingface", {"huggingface": {"max_shard_gb": int(sys.argv[2]) / 1e9}}, "")
for folder in map(Path, sys.argv[3:]):  # the first is small: what is imported for it is not counted
    source = export_source(load_checkpoint(folder / "checkpoint", "last", torch.device("cpu"), registry), "the sea")
    for work in exporter.export, exporter.verify:
        print(work.__name__, flush=True)
        input()
        (folder / "export").mkdir(exist_ok=True)
        work(source, folder / "export")
print("done", flush=True)
"""


def anonymous(pid: int) -> int:
    """Bytes of a process's memory that is not the content of a file: what the kernel cannot drop."""
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="measured with Linux' /proc")
@pytest.mark.parametrize(
    "architecture",
    ["gpt2", pytest.param("llama", marks=pytest.mark.long)],  # gpt2's matrices are transposed, that is copied
)
def test_an_export_and_its_proof_need_memory_for_one_file(tmp_path: Path, architecture: str) -> None:
    tokenizer, sizes = raw_bytes(), {"small": {}, "large": {"emb_dim": 512, "n_layers": 5}}
    for name, changes in sizes.items():
        model = small_config(
            architecture, vocab_size=tokenizer.vocab_size, context_length=8, pad_vocab_to=1, **changes
        ).make()
        weights = model.state_dict()
        (tmp_path / name / "checkpoint").mkdir(parents=True)
        last = {"model_state_dict": weights, "optimizer_state_dict": {}, "step": 1}
        write_checkpoint(tmp_path / name / "checkpoint", model.architecture, tokenizer, {}, last, last)
    assert tensor_bytes(weights) > 3 * SHARD

    command = [
        sys.executable,
        "-c",
        EXPORT,
        REPOSITORY / "plugins",
        str(SHARD),
        tmp_path / "small",
        tmp_path / "large",
    ]
    grown = {}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(4):
            work = process.stdout.readline().strip()
            before = most = anonymous(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
            while not select.select([process.stdout], [], [], 0.001)[0]:
                most = max(most, anonymous(process.pid))
            grown[work] = most - before  # at last that of the large model
        assert process.stdout.readline() == "done\n"
    assert grown["export"] < 1.1 * SHARD
    assert grown["verify"] < 1.1 * SHARD
