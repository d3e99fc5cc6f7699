"""The exports beside Hugging Face's: each is proven by its reader, and a damaged or impossible one is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Project, made_up_text
from untrained import untrained

from pipeline.data.tokenizer import Tokenizer
from pipeline.exporting import check_loss, graph
from pipeline.plugin import Exporter, ExportSource
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import characters, raw_bytes, train_bpe

pytestmark = pytest.mark.usefixtures("few_texts")

REGISTRY = Registry.load(REPOSITORY / "plugins", ["exporters"])
GPT2 = {"architecture": "gpt2", "qkv_bias": True, "tied_head": True, "init": "gpt2"}
MODERN = {"architecture": "modern", "qkv_bias": False, "tied_head": False, "init": "modern"}
LLAMA = {
    "architecture": "llama",
    "qkv_bias": False,
    "tied_head": False,
    "init": "gpt2",
    "n_heads": 4,
    "n_kv_heads": 2,
}


def exporter(name: str, **options: Any) -> Exporter:
    built: Exporter = REGISTRY.build("exporters", name, {name: options}, "")
    return built


def source(tokenizer: Tokenizer, **changes: Any) -> ExportSource:
    shape: dict[str, Any] = {
        "context_length": 16, "n_layers": 2, "n_heads": 2, "emb_dim": 32, "dropout": 0.1, "pad_vocab_to": 64,
        **GPT2, **changes,
    }  # fmt: skip
    return untrained(tokenizer, shape, spread=True)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([made_up_text(0, 500)], 300)


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """Quickly proven, where a test is about the model."""
    return characters([made_up_text(1, 200)])


# ── gguf ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("type_", "changes"),
    [
        ("f32", {}),
        ("f32", {"tied_head": False, "qkv_bias": False, "n_heads": 4}),
        ("f32", LLAMA),
        ("f32", {**LLAMA, "tied_head": True, "n_kv_heads": 4, "rope_theta": 5e5, "norm_eps": 1e-3}),
        ("f16", {}),
        ("q8_0", LLAMA),
        ("q8_0", {"emb_dim": 48, "n_heads": 3}),  # rows of 48: no whole blocks of 32, so f16
    ],
    ids=str,
)
def test_a_gguf_file_alone_gives_the_checkpoints_logits(
    bpe: Tokenizer, tmp_path: Path, type_: str, changes: dict[str, Any]
) -> None:
    given = source(bpe, **changes)
    exporter("gguf", type=type_).export(given, tmp_path)
    proof = exporter("gguf", type=type_).verify(given, tmp_path)
    assert proof["reader"].endswith("(llama.cpp not run)")
    if type_ == "f32":
        assert proof["largest_logit_difference"] < 1e-4
        assert proof["equal_greedy_tokens"] > 0
    else:
        assert abs(proof["loss"] - proof["loss_of_the_checkpoint"]) < {"f16": 1e-3, "q8_0": 1e-2}[type_]


def test_a_gguf_file_has_the_checkpoints_tokenizer(all_texts: None, bpe: Tokenizer, tmp_path: Path) -> None:
    given = source(bpe)
    exporter("gguf").export(given, tmp_path)
    assert exporter("gguf").verify(given, tmp_path)["texts_with_equal_ids"] > 2000


def test_each_type_is_smaller(bpe: Tokenizer, tmp_path: Path) -> None:
    given = source(bpe, emb_dim=64)
    sizes = []
    for type_ in ("f32", "f16", "q8_0"):
        exporter("gguf", type=type_).export(given, tmp_path)
        sizes.append((tmp_path / "model.gguf").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.7 * sizes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (MODERN, "model 'modern'"),
        ({"document_end": 298}, "no mask between documents"),
    ],
)
def test_a_model_that_llama_cpp_does_not_know_is_refused(
    bpe: Tokenizer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        exporter("gguf").export(source(bpe, **change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(
    bpe: Tokenizer, letters: Tokenizer, tmp_path: Path
) -> None:
    other = replace(bpe, pattern=r"\w+|\W")
    for tokenizer, message in ((letters, "character"), (raw_bytes(), "single bytes"), (other, "split pattern")):
        with pytest.raises(ValueError, match=rf"{message}.*tokenize\.tokenizer\.name"):
            exporter("gguf").export(source(tokenizer), tmp_path)
    assert not list(tmp_path.iterdir())


def gguf_damaged(folder: Path, damage: str) -> None:
    """Changes bytes of the file in place, as a reader sees them."""
    import gguf

    reader = gguf.GGUFReader(folder / "model.gguf", "r+")
    if damage == "weight":
        tensor = next(each for each in reader.tensors if each.name == "blk.1.ffn_down.weight")
        tensor.data[0, 0] += np.float32(0.5)
    elif damage == "epsilon":
        reader.fields["gpt2.attention.layer_norm_epsilon"].parts[-1][0] = 1e-2
    elif damage == "heads":
        reader.fields["gpt2.attention.head_count"].parts[-1][0] = 4
    elif damage == "swapped tokens":
        tokens = reader.fields["tokenizer.ggml.tokens"]
        first, second = (tokens.parts[tokens.data[token]] for token in (70, 71))  # two single bytes
        first[:], second[:] = second.copy(), first.copy()
    elif damage == "end":
        reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 5
    elif damage == "merge":
        merges = reader.fields["tokenizer.ggml.merges"]
        first = merges.parts[merges.data[0]]
        first[:] = first[::-1].copy()
    reader.data.flush()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("weight", "numbers in blk.1.ffn_down.weight"),
        ("epsilon", "logits differ"),
        ("heads", "logits differ"),
        ("swapped tokens", "encodes"),
        ("end", "eos_token_id"),
        ("merge", "encodes|cannot read"),
    ],
)
def test_a_damaged_gguf_is_refused(bpe: Tokenizer, tmp_path: Path, damage: str, message: str) -> None:
    given = source(bpe)
    exporter("gguf", type="f32").export(given, tmp_path)
    gguf_damaged(tmp_path, damage)
    with pytest.raises(ValueError, match=message):
        exporter("gguf", type="f32").verify(given, tmp_path)


def test_rows_of_queries_in_another_order_are_refused(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers reads is not what llama.cpp does: their rotary positions pair other numbers."""
    given = source(bpe, **LLAMA)
    monkeypatch.setattr(
        sys.modules["plugins.exporters.gguf_file.form"], "_interleave_rows", lambda weight, heads: weight
    )
    exporter("gguf", type="f32").export(given, tmp_path)
    with pytest.raises(ValueError, match="logits differ"):
        exporter("gguf", type="f32").verify(given, tmp_path)


def test_a_gguf_that_ends_early_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    given = source(bpe)
    exporter("gguf").export(given, tmp_path)
    path = tmp_path / "model.gguf"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"gguf cannot read model\.gguf"):
        exporter("gguf").verify(given, tmp_path)


# ── graphs ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        GPT2,
        MODERN,
        LLAMA,
        {"document_end": True, "tied_head": False},
        {**MODERN, "document_end": True},
        {"context_length": 3},
    ],
    ids=str,
)
def test_torch_export_gives_the_very_logits_at_any_batch_and_length_with_torchs_own_operations(
    letters: Tokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "document_end" in changes:
        changes = {**changes, "document_end": letters.end_of_text}
    given = source(letters, **changes)
    exporter("torch_export").export(given, tmp_path)
    proof = exporter("torch_export").verify(given, tmp_path)
    assert proof["largest_logit_difference"] < 1e-5
    assert proof["batches"].startswith("1 x 1, ")
    nodes = torch.export.load(tmp_path / "model.pt2").graph_module.graph.nodes
    assert {node.op for node in nodes} <= {"placeholder", "call_function", "output", "get_attr"}


def test_a_context_without_a_choice_of_lengths_is_refused(letters: Tokenizer) -> None:
    with pytest.raises(ValueError, match="context_length of 3 or more, not 2"):
        graph(source(letters, context_length=2))


def test_the_graph_runs_where_this_project_is_not_and_names_no_path_of_it(
    letters: Tokenizer, tmp_path: Path
) -> None:
    given = source(letters, **MODERN)
    exporter("torch_export").export(given, tmp_path)
    program = (
        "import sys, torch; model = torch.export.load('model.pt2').module()\n"
        "torch.save(model(torch.arange(10).view(2, 5)), 'logits.pt'); assert 'pipeline' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, capture_output=True)
    logits = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits, given.logits(torch.arange(10).view(2, 5)), rtol=0, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        contents = [file.read(name) for name in file.namelist()]
    assert not any(str(REPOSITORY).encode() in content for content in contents)


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["merges"].pop(0)
    path.write_text(json.dumps(value))


def change_pt2(folder: Path) -> None:
    program = torch.export.load(folder / "model.pt2")
    with torch.no_grad():
        next(iter(program.state_dict.values()))[1] += 0.5
    torch.export.save(program, folder / "model.pt2")


def change_onnx(folder: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "model.onnx")
    largest = max(model.graph.initializer, key=lambda each: np.prod(each.dims))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) + np.float32(0.01), largest.name))
    onnx.save(model, folder / "model.onnx")


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-2000])

    return damage


def test_a_damaged_graph_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    given = source(bpe)
    for name, damage, message in (
        ("torch_export", change_pt2, "logits differ"),
        ("torch_export", cut("model.pt2"), r"cannot read model\.pt2"),
        ("torch_export", change_tokenizer, "tokenizer.json encodes"),
        ("onnx", change_onnx, "logits differ"),
        ("onnx", cut("model.onnx"), r"cannot read model\.onnx"),
        ("onnx", change_tokenizer, "tokenizer.json encodes"),
    ):
        folder = tmp_path / name
        if not folder.is_dir():
            folder.mkdir()
            exporter(name).export(given, folder)
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        damage(folder)
        with pytest.raises(ValueError, match=message):
            exporter(name).verify(given, folder)
        for path, content in kept.items():
            path.write_bytes(content)


@pytest.mark.parametrize(
    "changes",
    [MODERN, *(pytest.param(each, marks=pytest.mark.long) for each in (GPT2, LLAMA))],
    ids=["modern", "gpt2", "llama"],
)
def test_onnxruntime_gives_the_logits_at_any_batch_and_length_and_nearly_so_in_eight_bits(
    letters: Tokenizer, tmp_path: Path, changes: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    given = source(letters, **changes)
    exporter("onnx", int8=True).export(given, tmp_path)
    proof = exporter("onnx", int8=True).verify(given, tmp_path)
    assert tuple(capfd.readouterr()) == ("", "")
    assert str(REPOSITORY).encode() not in (tmp_path / "model.onnx").read_bytes()
    assert proof["reader"].startswith("onnxruntime ")
    assert proof["largest_logit_difference"] < 1e-4
    assert proof["batches"].startswith("1 x 1, 1 x 16, 2 x 15, ")
    assert abs(proof["loss_in_int8"] - proof["loss_of_the_checkpoint"]) < 0.05


def test_rounding_that_costs_more_than_is_said_is_refused(letters: Tokenizer) -> None:
    given = source(letters)
    expected, actual = check_loss(given, given.logits, "a reader", 0.0)
    assert expected == actual > 0
    with pytest.raises(ValueError, match=r"a reader .* 0\.05"):
        check_loss(
            given, lambda tokens: given.logits(tokens).index_fill(2, torch.tensor([0]), 50.0), "a reader", 0.05
        )


def test_without_onnxruntime_onnx_itself_computes_a_few(
    letters: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = source(letters)
    exporter("onnx").export(given, tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    proof = exporter("onnx").verify(given, tmp_path)
    assert proof["reader"] == "none"
    assert proof["largest_logit_difference"] < 1e-4
    change_onnx(tmp_path)
    with pytest.raises(ValueError, match="logits differ"):
        exporter("onnx").verify(given, tmp_path)


# ── the stage ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "module"), [("gguf", "gguf"), ("onnx", "onnxscript")])
def test_a_missing_package_is_named_with_its_extra(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    for each in [key for key in sys.modules if key.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, module, None)
    result = trained_project.run("export", "--set", f"export.formats.use=[{name}]")
    assert result.code == 1
    assert f".[{name}]" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (trained_project.root / "artifacts" / "export").exists()


def test_several_formats_lie_in_folders_of_their_names_and_load_as_the_guide_shows(
    trained_project: Project,
) -> None:
    formats = "export.formats.use=[huggingface, gguf, onnx, torch_export]"
    out = trained_project.succeed("export", "--set", formats).out
    assert "llama.cpp not run" in out
    folder = trained_project.root / "artifacts" / "export"
    for path in ("model.safetensors", "README.md", "gguf/model.gguf", "onnx/model.onnx", "torch_export/model.pt2"):
        assert (folder / path).is_file()
    guide = (REPOSITORY / "docs" / "exports.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for block in blocks if "artifacts/export" in block]  # the other one loads the checkpoint
    assert len(blocks) == 3
    results: list[dict[str, Any]] = [{} for _ in blocks]
    for code, names in zip(blocks, results, strict=True):
        exec(compile(code, "guide", "exec", dont_inherit=True), names)
    _, onnx, torch_export = results
    np.testing.assert_allclose(onnx["logits"], torch_export["logits"].detach().numpy(), atol=1e-4)


def test_without_a_format_there_is_a_model_card_only(trained_project: Project) -> None:
    trained_project.succeed("evaluate")
    trained_project.succeed("export", "--set", "export.formats.use=[]")
    folder = trained_project.root / "artifacts" / "export"
    assert {path.name for path in folder.iterdir()} == {"README.md", "run.json"}
    assert "export.formats.use" in (folder / "README.md").read_text()


def test_one_refused_format_publishes_none(trained_project: Project) -> None:
    trained_project.succeed("export")
    folder = trained_project.root / "artifacts" / "export"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    trained_project.succeed("train", "--set", "model.name=modern")
    refused = trained_project.run("export", "--set", "export.formats.use=[huggingface, gguf]")
    assert refused.code == 1
    assert "model 'modern'" in refused.err
    assert "nothing was published" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
