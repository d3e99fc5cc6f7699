"""The architecture's config: from params.yaml, to config.json and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline.model.config import GPTConfig

from pipeline.core.errors import CheckpointError

PARAMS: dict[str, Any] = {
    "family": "gpt2", "context_length": 16, "n_layers": 2, "n_heads": 4, "emb_dim": 32, "dropout": 0.1,
    "qkv_bias": True, "tied_head": True, "init": "pytorch", "n_kv_heads": 2, "mlp_dim": 40, "rope_theta": 500.0,
    "norm_eps": 1e-3, "pad_vocab_to": 64, "document_mask": False,
}  # fmt: skip
COMMON = ["context_length", "n_layers", "n_heads", "emb_dim", "dropout", "pad_vocab_to"]
LLAMA = ["n_kv_heads", "mlp_dim", "rope_theta", "norm_eps"]


@pytest.mark.parametrize(
    ("family", "taken"),
    [
        ("gpt2", [*COMMON, "qkv_bias", "tied_head", "init"]),
        ("modern", COMMON),
        ("llama", [*COMMON, "tied_head", "init", *LLAMA]),
    ],
)
def test_params_that_a_family_does_not_use_change_nothing(family: str, taken: list[str]) -> None:
    other = {"qkv_bias": False, "tied_head": False, "init": "gpt2", "dropout": 0.2, "pad_vocab_to": 1}
    config = GPTConfig.from_params({**PARAMS, "family": family}, 300, 299)
    for key, value in PARAMS.items():
        if key in ("family", "document_mask"):
            continue
        changed = GPTConfig.from_params({**PARAMS, "family": family, key: other.get(key, value * 2)}, 300, 299)
        assert (changed != config) == (key in taken), key
        assert key not in taken or getattr(config, key) == value


def test_the_family_decides_what_params_cannot() -> None:
    gpt2, modern, llama = (
        GPTConfig.from_params({**PARAMS, "family": family}, 300, 299) for family in ("gpt2", "modern", "llama")
    )
    assert (modern.init, modern.tied, modern.rotary) == ("modern", False, True)
    assert (gpt2.rotary, gpt2.kv_heads, gpt2.inner_dim) == (False, 4, 128)
    assert (llama.rotary, llama.kv_heads, llama.inner_dim) == (True, 2, 40)
    assert not modern.qkv_bias
    assert not llama.qkv_bias


@pytest.mark.parametrize("mask", [True, False])
def test_documents_end_at_end_of_text_where_attention_is_masked(mask: bool) -> None:
    config = GPTConfig.from_params({**PARAMS, "document_mask": mask}, 300, 299)
    assert config.vocab_size == 300
    assert config.document_end == (299 if mask else None)


def written(values: object, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_a_config_is_read_back_and_an_old_one_is_of_gpt2(tmp_path: Path) -> None:
    config = GPTConfig.from_params({**PARAMS, "family": "modern", "document_mask": True}, 300, 299)
    values = config.to_dict()
    assert GPTConfig.from_file(written(values, tmp_path), "train") == config
    old = {name: value for name, value in values.items() if name not in ("family", "document_end")}
    assert GPTConfig.from_file(written(old, tmp_path), "train").family == "gpt2"


@pytest.mark.parametrize("values", [[], {}, {"n_embd": 3}], ids=str)
def test_what_is_no_config_is_an_error_that_names_the_file(values: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json .*: train again") as error:
        GPTConfig.from_file(written(values, tmp_path), "train again")
    assert "\n" not in str(error.value)
