"""The Hugging Face export: every architecture option arrives, and what does not match is refused."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Project, made_up_text
from small_config import REGISTRY as MODELS
from untrained import untrained

from pipeline.data.tokenizer import Tokenizer
from pipeline.model.attention import Rotation
from pipeline.model.huggingface import read_config, read_weights
from pipeline.plugin import Exporter, ExportSource
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import characters, published, raw_bytes, train_bpe

pytestmark = pytest.mark.usefixtures("few_texts")

BASE = {
    "context_length": 16, "n_layers": 2, "n_heads": 2, "emb_dim": 16, "dropout": 0.1, "qkv_bias": True,
    "tied_head": True, "init": "gpt2", "pad_vocab_to": 64,
}  # fmt: skip


def exporter(**options: Any) -> Exporter:
    registry = Registry.load(REPOSITORY / "plugins", ["exporters"])
    built: Exporter = registry.build("exporters", "huggingface", {"huggingface": options}, "")
    return built


def source(tokenizer: Tokenizer, **changes: Any) -> ExportSource:
    if changes.get("architecture") == "modern":
        changes = {"qkv_bias": False, "tied_head": False, "init": "modern", **changes}
    if changes.get("architecture") == "llama":
        changes = {"qkv_bias": False, **changes}
    return untrained(tokenizer, BASE | changes, spread=changes.get("architecture", "gpt2") != "gpt2")


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([made_up_text(0, 500)], 300)


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """Quickly proven, where a test is about the model."""
    return characters([made_up_text(1, 200)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": False},
        {"qkv_bias": False},
        {"pad_vocab_to": 1},
        {"n_heads": 4, "n_layers": 1},
        {"architecture": "modern"},
        {"architecture": "modern", "n_heads": 1, "n_layers": 1, "pad_vocab_to": 1},
        {"architecture": "modern", "emb_dim": 24, "n_heads": 3, "n_layers": 3},  # heads of 8
        {"architecture": "modern", "emb_dim": 48, "pad_vocab_to": 1000},  # heads of 24
        {"architecture": "modern", "context_length": 300, "n_heads": 8},  # heads of 2
        {"architecture": "llama"},
        {"architecture": "llama", "tied_head": False, "n_heads": 4, "n_kv_heads": 2, "mlp_dim": 40},
        {
            "architecture": "llama",
            "n_heads": 8,
            "n_kv_heads": 1,
            "pad_vocab_to": 1,
            "n_layers": 1,
            "context_length": 300,
        },
        {"architecture": "llama", "rope_theta": 500.0, "norm_eps": 1e-3},
    ],
    ids=str,
)
def test_transformers_reproduces_every_architecture(
    letters: Tokenizer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = source(letters, **changes)
    exporter().export(given, tmp_path)
    proof = exporter().verify(given, tmp_path)
    assert proof["reader"].startswith("transformers ")
    assert proof["largest_logit_difference"] < 1e-4
    assert proof["equal_greedy_tokens"] > 0
    assert proof["texts_with_equal_ids"] > 2000


@pytest.mark.parametrize("architecture", ["gpt2", "modern", "llama"])
def test_a_context_of_one_token_leaves_nothing_to_generate(
    letters: Tokenizer, tmp_path: Path, architecture: str
) -> None:
    given = source(letters, architecture=architecture, context_length=1)
    exporter().export(given, tmp_path)
    assert exporter().verify(given, tmp_path)["equal_greedy_tokens"] == 0


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_a_model_that_masks_documents_is_proven_within_one(
    letters: Tokenizer, tmp_path: Path, architecture: str
) -> None:
    given = source(letters, architecture=architecture, document_end=letters.end_of_text)
    exporter().export(given, tmp_path)
    exporter().verify(given, tmp_path)


def test_a_modern_model_is_nanochat_there_and_end_of_text_is_a_token_like_any_other(
    letters: Tokenizer, tmp_path: Path
) -> None:
    import transformers

    given = source(letters, architecture="modern")
    exporter().export(given, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(model).__name__ == "NanoChatForCausalLM"
    embedding = model.get_input_embeddings()
    assert torch.equal(embedding.weight, given.weights["token_embedding.weight"])
    assert embedding.padding_idx is None
    assert torch.equal(model.get_output_embeddings().weight, given.weights["head.weight"])
    ids = torch.tensor([[letters.end_of_text, 5, 6, letters.end_of_text, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, given.logits(ids), rtol=0, atol=1e-5)
    model(ids, labels=ids).loss.backward()
    assert embedding.weight.grad[letters.end_of_text].count_nonzero() > 0


def test_a_llama_model_is_llama_there_and_its_queries_share_keys(letters: Tokenizer, tmp_path: Path) -> None:
    import transformers

    given = source(letters, architecture="llama", n_heads=4, n_kv_heads=2)
    exporter().export(given, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in given.weights
    attention = model.model.layers[0].self_attn
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (8, 16)
    ids = torch.tensor([[letters.end_of_text, 5, 6, letters.end_of_text, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, given.logits(ids), rtol=0, atol=1e-5)


def test_positions_far_into_the_text_are_turned_alike_to_the_bit() -> None:
    from transformers.models.nanochat import modeling_nanochat as theirs

    config = theirs.NanoChatConfig(hidden_size=128, num_attention_heads=1, rope_parameters=None)
    positions = torch.arange(8192)
    cos, sin = theirs.NanoChatRotaryEmbedding(config)(torch.zeros(1), positions[None])
    ours = Rotation.at(positions, 128)
    assert torch.equal(ours.cos, cos[0, :, :64])
    assert torch.equal(ours.sin, sin[0, :, :64])


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_llamas_positions_are_turned_alike_to_the_bit(theta: float) -> None:
    from transformers.models.llama import modeling_llama as theirs

    rope = {"rope_type": "default", "rope_theta": theta}
    config = theirs.LlamaConfig(hidden_size=64, num_attention_heads=1, rope_parameters=rope)
    positions = torch.arange(2048)
    cos, sin = theirs.LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    x = torch.randn(1, 1, 2048, 64, generator=torch.Generator().manual_seed(0))
    turned, _ = theirs.apply_rotary_pos_emb(x, x, cos, sin)
    ours = Rotation.at(-positions, 64, theta)
    assert torch.equal(ours.cos, cos[0, :, :32])
    assert torch.equal(-ours.sin, sin[0, :, :32])
    torch.testing.assert_close(ours(x), turned, rtol=0, atol=1e-6)


def test_a_model_that_transformers_does_not_have_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    given = source(bpe)
    other = replace(given, config={**given.config, "name": "perceptron"})
    with pytest.raises(ValueError, match=r"model 'perceptron'.*gpt2, modern, llama"):
        exporter().export(other, tmp_path)
    assert not list(tmp_path.iterdir())


def test_transformers_reads_raw_bytes_alike(all_texts: None, tmp_path: Path) -> None:
    given = source(raw_bytes())
    exporter().export(given, tmp_path)
    exporter().verify(given, tmp_path)


def test_transformers_reads_a_trained_bpe_alike(all_texts: None, bpe: Tokenizer, tmp_path: Path) -> None:
    given = source(bpe, architecture="modern")
    exporter().export(given, tmp_path)
    assert exporter().verify(given, tmp_path)["texts_with_equal_ids"] > 2000


def test_transformers_reads_the_published_gpt2_encoding_alike(
    all_texts: None, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken"))
    given = source(published("gpt2"))
    exporter().export(given, tmp_path)
    exporter().verify(given, tmp_path)


def damage(name: str, folder: Path) -> None:
    path = folder / name
    if name == "model.safetensors":
        content = bytearray(path.read_bytes())
        content[-3] ^= 0x40
        path.write_bytes(bytes(content))
    else:
        value = json.loads(path.read_text())
        if name == "config.json":
            value["activation_function" if value["model_type"] == "gpt2" else "hidden_act"] = "relu"
        elif name == "tokenizer.json":
            value["model"]["merges"].pop(0)
        path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "not the checkpoint's"),
        ("config.json", "logits differ"),
        ("tokenizer.json", "encodes"),
    ],
)
@pytest.mark.parametrize("architecture", ["gpt2", "modern", "llama"])
def test_a_damaged_export_is_refused(
    bpe: Tokenizer, letters: Tokenizer, tmp_path: Path, architecture: str, name: str, message: str
) -> None:
    given = source(bpe if name == "tokenizer.json" else letters, architecture=architecture)
    exporter().export(given, tmp_path)
    damage(name, tmp_path)
    with pytest.raises(ValueError, match=f"transformers.* {message}"):
        exporter().verify(given, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "setting", "value"),
    [
        ("modern", "final_logit_softcapping", 15.0),
        ("modern", "rms_norm_eps", 1e-2),
        ("modern", "rope_parameters", {"rope_type": "default", "rope_theta": 500_000.0}),
        ("llama", "rms_norm_eps", 1e-2),
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 500_000.0}),
    ],
)
def test_a_setting_of_another_model_is_refused(
    letters: Tokenizer, tmp_path: Path, architecture: str, setting: str, value: Any
) -> None:
    given = source(letters, architecture=architecture)
    exporter().export(given, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(ValueError, match="transformers' logits differ"):
        exporter().verify(given, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "max_shard_gb"),
    [
        ("gpt2", 8e-6),
        pytest.param("modern", 8e-6, marks=pytest.mark.long),
        pytest.param("llama", 1e-9, marks=pytest.mark.long),
    ],
)
def test_large_weights_are_several_files_that_transformers_and_training_read(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, max_shard_gb: float
) -> None:
    given, sharded = source(bpe, architecture=architecture), exporter(max_shard_gb=max_shard_gb)
    sharded.export(given, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert sorted(set(index["weight_map"].values())) == files
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert index["metadata"]["total_size"] < sum(sizes)
    assert len(files) > 3
    assert sharded.verify(given, tmp_path)["reader"].startswith("transformers ")
    config = read_config(tmp_path)
    read = read_weights(tmp_path, config.architecture(MODELS, tmp_path))
    assert all(torch.equal(read[name][: len(tensor)], tensor) for name, tensor in given.weights.items())

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    assert sharded.verify(given, tmp_path)["reader"] == "none"
    (tmp_path / files[1]).unlink()
    with pytest.raises(ValueError, match="is missing"):
        sharded.verify(given, tmp_path)


@pytest.mark.parametrize("architecture", ["gpt2", "modern", "llama"])
def test_without_transformers_the_files_are_read_back(
    bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    given = source(bpe, architecture=architecture)
    exporter().export(given, tmp_path)
    assert exporter().verify(given, tmp_path)["reader"] == "none"
    for name in ("tokenizer.json", "model.safetensors"):
        damage(name, tmp_path)
        with pytest.raises(ValueError, match=name):
            exporter().verify(given, tmp_path)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.long), "bf16"])
def test_a_trained_modern_model_is_exported(trained_project: Project, precision: str) -> None:
    settings = ["model.name=modern", "train.optimizer.name=muon", f"train.precision={precision}"]
    chosen = [part for setting in settings for part in ("--set", setting)]
    trained_project.succeed("train", *chosen)
    assert "transformers" in trained_project.succeed("export", *chosen).out
    folder = trained_project.root / "artifacts" / "export"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "nanochat"
    assert json.loads((folder / "verification.json").read_text())["largest_logit_difference"] < 1e-4
