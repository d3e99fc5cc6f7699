"""Weights that others made: the same logits as where they come from, and what is not computed here is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, made_up_text
from safetensors.torch import load_file, save_file
from small_config import changed, small_config

from pipeline.core.errors import PipelineError
from pipeline.data.tokenizer import Tokenizer
from pipeline.export.stage import export_source
from pipeline.model.architecture import Architecture, LanguageModel
from pipeline.model.checkpoint import Checkpoint, write_checkpoint
from pipeline.model.pretrained import Pretrained
from pipeline.plugin.chat import CHATML
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import characters, raw_bytes

BYTES = raw_bytes()
NEW = BYTES.with_special_tokens(["<|im_start|>", "<|im_end|>"])
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2"},
    "gpt2 without biases": {"architecture": "gpt2", "qkv_bias": False, "tied_head": False},
    "modern": {"architecture": "modern"},
    "llama": {"architecture": "llama", "n_kv_heads": 2, "mlp_dim": 40, "tied_head": False},
    "llama tied": {"architecture": "llama", "rope_theta": 500.0, "norm_eps": 1e-3},
}
IDS = torch.randint(256, (3, 8), generator=torch.Generator().manual_seed(0))


def make(name: str, tokenizer: Tokenizer = BYTES, **changes: Any) -> LanguageModel:
    sizes = {"context_length": 16, "n_heads": 4, "emb_dim": 32, "pad_vocab_to": 64}
    torch.manual_seed(0)
    model = small_config(vocab_size=tokenizer.vocab_size, **sizes | MODELS[name] | changes).make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def exported(model: LanguageModel, root: Path) -> Path:
    """The model as the shipped exporter writes it, in data/there below `root`."""
    folder = root / "data" / "there"
    folder.mkdir(parents=True)
    exporter = Registry.load(REPOSITORY / "plugins", ["exporters"]).build("exporters", "huggingface", {}, "")
    exporter.export(export_source(Checkpoint(model, BYTES, 1, "last"), made_up_text(1, 20)), folder)
    return folder


def loaded(
    root: Path, config: Architecture, name: str = "data/there", tokenizer: Tokenizer = BYTES
) -> LanguageModel:
    start = Pretrained.at(root, name)
    start.check(config, tokenizer)
    model = config.make().eval()
    model.load_state_dict(start.weights(config, tokenizer))
    return model


@torch.inference_mode()
def same_logits(one: LanguageModel, other: LanguageModel) -> bool:
    return torch.equal(one(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_exported_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = make(name)
    exported(model, tmp_path)
    assert same_logits(loaded(tmp_path, model.architecture), model)
    other = changed(model.architecture, context_length=8, pad_vocab_to=1000, dropout=0.5, document_end=256)
    model.shape = replace(model.shape, document_end=256)
    assert same_logits(loaded(tmp_path, other), model)


@pytest.mark.parametrize("name", ["gpt2 without biases", "modern", "llama"])
@pytest.mark.parametrize("tokenizer", [BYTES, characters([made_up_text(1, 200)])], ids=lambda each: each.name)
def test_a_checkpoint_comes_back_to_the_bit(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    best, last = make(name, tokenizer), make(name, tokenizer, pad_vocab_to=1)
    last_weights = {key: value + 1 for key, value in best.state_dict().items()}
    folder = tmp_path / "data" / "there"
    folder.mkdir(parents=True)
    states = ({"model_state_dict": each, "step": 1} for each in (last_weights, best.state_dict()))
    write_checkpoint(folder, best.architecture, tokenizer, {}, *states)
    ids = IDS % tokenizer.vocab_size
    for path in ("data/there", "data/there/best.pth"):
        assert torch.equal(loaded(tmp_path, last.architecture, path, tokenizer)(ids).logits, best(ids).logits)
    best.load_state_dict(last_weights)
    moved = loaded(tmp_path, last.architecture, "data/there/model_and_optimizer.pth", tokenizer)
    assert torch.equal(moved(ids).logits, best(ids).logits)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}),
        ("llama", {"intermediate_size": 40, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
        ("llama tied", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3}),
    ],
)
def test_what_transformers_wrote_gives_transformers_logits(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    model = make(name)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
    if name != "gpt2":
        settings = {"intermediate_size": 128, "tie_word_embeddings": name == "llama tied", **sizes, **settings}
    kind = "GPT2" if name == "gpt2" else "Llama"
    config = getattr(transformers, f"{kind}Config")(vocab_size=300, **settings)
    theirs = getattr(transformers, f"{kind}LMHeadModel" if name == "gpt2" else f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = exported(model, tmp_path)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="20kB")
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(tmp_path, changed(model.architecture, mlp_dim=40 if name == "llama" else 0))(IDS).logits,
            theirs(IDS).logits[..., :257],
            rtol=0,
            atol=1e-5,
        )


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        changed = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
        save_file(changed, path)

    return apply


def without_prefix_and_with_buffers(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril().bool() for layer in range(2)}
    return named | masks | {"lm_head.weight": named["wte.weight"].clone()}


def in_two_files(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(found)
    where = {name: f"model-{1 + number % 2:05}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: found[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("change", [weights(without_prefix_and_with_buffers), in_two_files])
def test_real_folders_come_in_several_forms(change: Callable[[Path], None], tmp_path: Path) -> None:
    model = make("gpt2")
    change(exported(model, tmp_path))
    assert same_logits(loaded(tmp_path, model.architecture), model)


def test_weights_of_half_the_bits_are_widened(tmp_path: Path) -> None:
    model = make("llama").bfloat16().float()
    weights(lambda found: {name: tensor.bfloat16() for name, tensor in found.items()})(exported(model, tmp_path))
    assert same_logits(loaded(tmp_path, model.architecture), model)


def test_the_digest_is_that_of_the_weights_and_of_the_tokens_new_to_them(tmp_path: Path) -> None:
    folder = exported(make("gpt2"), tmp_path)
    before = Pretrained.at(tmp_path, "data/there").digest(BYTES)
    (folder / "README.md").write_text("a note")
    assert Pretrained.at(tmp_path, "data/there").digest(BYTES) == before
    assert Pretrained.at(tmp_path, "data/there").digest(NEW) != before
    weights(lambda found: {**found, "transformer.wte.weight": found["transformer.wte.weight"] + 1})(folder)
    assert Pretrained.at(tmp_path, "data/there").digest(BYTES) != before


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def setting(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def a_part_missing(folder: Path) -> None:
    in_two_files(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    vocab = saved["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    path.write_text(json.dumps(saved))


Change = Callable[[Path], None]
REFUSED: list[tuple[str, Change, str]] = [
    ("gpt2", setting(model_type="bert"), "model_type is 'bert'; supported model types: gpt2, nanochat, llama"),
    ("gpt2", setting(activation_function="relu"), "activation_function is 'relu', but only 'gelu_new' or"),
    ("gpt2", setting(n_inner=64), "n_inner is 64, but only 128"),
    ("gpt2", setting(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", setting(n_head="four"), "config.json: n_head must be a number, not 'four'"),
    ("gpt2", setting(n_head=0), "invalid sizes"),
    ("gpt2", setting(quantization_config={"bits": 4}), "quantization_config is {'bits': 4}"),
    ("llama", setting(attention_bias=True), "attention_bias is True"),
    ("llama", setting(mlp_bias=True), "mlp_bias is True"),
    ("llama", setting(head_dim=16), "head_dim is 16, but only 8 or None"),
    ("llama", setting(sliding_window=8), "sliding_window is 8"),
    ("llama", setting(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling.rope_type is 'linear'"),
    ("llama", setting(rope_parameters={"rope_type": "llama3"}), "rope_parameters.rope_type is 'llama3'"),
    ("llama", setting(hidden_act="gelu"), "hidden_act is 'gelu', but only 'silu'"),
    ("modern", setting(final_logit_softcapping=15.0), "final_logit_softcapping is 15.0, but only None"),
    ("modern", setting(rope_parameters=5), "invalid sizes"),
    ("modern", setting(num_key_value_heads=2), "num_key_value_heads is 2, but only 4"),
    ("modern", setting(intermediate_size=64), "intermediate_size is 64, but only 128"),
    ("gpt2", without("config.json"), "config.json is missing: bring the whole folder"),
    ("gpt2", without("model.safetensors"), "holds no model.safetensors: bring the whole folder"),
    ("gpt2", without("tokenizer.json"), "tokenizer.json is missing"),
    ("gpt2", pickled, "pytorch_model.bin may run code"),
    ("gpt2", half, "model.safetensors cannot be read"),
    ("gpt2", a_part_missing, "model-00002-of-00002.safetensors is missing"),
    ("gpt2", elsewhere, "other.safetensors is missing"),
    ("gpt2", another_tokenizer, r"not that of data/there \(it has other tokens\): set tokenize.tokenizer.name: f"),
    (
        "llama",
        weights(lambda found: {name: each for name, each in found.items() if "1.self_attn.k_proj" not in name}),
        r"lack layers.1.self_attn.q_proj.weight or layers.1.self_attn.k_proj.weight or",
    ),
    (
        "llama",
        weights(lambda found: {**found, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
        "llama has no weight layers.0.self_attn.q_norm.weight",
    ),
    (
        "llama",
        weights(lambda found: {**found, "model.norm.weight": torch.ones(31)}),
        r"norm.weight is \[\[31\]\], but by config.json \[32\]",
    ),
    (
        "gpt2",
        weights(lambda found: {name: each.int() for name, each in found.items()}),
        "is torch.int32, but only floating-point weights",
    ),
    ("gpt2 without biases", weights(lambda found: {
        name: each + name.endswith("c_attn.bias") for name, each in found.items()
    }), "c_attn.bias: set model.gpt2.qkv_bias: true"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_is_not_computed_here_is_named_in_one_line(
    name: str, change: Change, message: str, tmp_path: Path
) -> None:
    model = make(name)
    change(exported(model, tmp_path))
    with pytest.raises(PipelineError, match=message) as caught:
        loaded(tmp_path, model.architecture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "settings"),
    [
        ("gpt2", {"n_layers": 3}, "model.n_layers: 2"),
        ("gpt2", {"tied_head": False, "emb_dim": 64}, "model.emb_dim: 32, model.gpt2.tied_head: true"),
        ("gpt2", {"architecture": "modern"}, "model.name: gpt2"),
        ("gpt2", {"context_length": 17}, "model.context_length: 16 or less"),
        ("llama", {"n_kv_heads": 0, "mlp_dim": 0}, "model.llama.mlp_dim: 40, model.llama.n_kv_heads: 2"),
        (
            "llama",
            {"rope_theta": 1e6, "norm_eps": 1e-6},
            "model.llama.norm_eps: 1e-05, model.llama.rope_theta: 10000.0",
        ),
        ("modern", {"architecture": "llama", "n_heads": 2}, "model.name: modern, model.n_heads: 4"),
    ],
)
def test_a_different_model_is_reported_with_every_value_to_set(
    name: str, changes: dict[str, Any], settings: str, tmp_path: Path
) -> None:
    model = make(name)
    exported(model, tmp_path)
    with pytest.raises(PipelineError) as caught:
        loaded(tmp_path, changed(model.architecture, **changes))
    assert str(caught.value).endswith(f"data/there: set {settings}")


def test_a_folder_whose_tokenizer_has_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    model = make("gpt2")
    folder = exported(model, tmp_path)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["added_tokens"].append({**saved["added_tokens"][0], "id": 257, "content": "<|user|>"})
    path.write_text(json.dumps(saved))
    extended = BYTES.with_special_tokens(["<|user|>"])
    with pytest.raises(PipelineError, match=r"there/tokenizer.json has 258 ids, but the model 257 rows: .* by tok"):
        loaded(tmp_path, changed(model.architecture, vocab_size=258), tokenizer=extended)


# ── new special tokens ────────────────────────────────────────────────────────────────────────────


def checkpoint(model: LanguageModel, root: Path, tokenizer: Tokenizer = BYTES) -> Path:
    folder = root / "data" / "there"
    folder.mkdir(parents=True)
    state = {"model_state_dict": model.state_dict(), "step": 1}
    write_checkpoint(folder, model.architecture, tokenizer, {}, state, state)
    return folder


# The padding rows of the weights are 257 … 319; the new ids fall into them, or, without padding, behind all rows.
@pytest.mark.parametrize("pad_vocab_to", [64, 1])
@pytest.mark.parametrize("write", [exported, checkpoint])
@pytest.mark.parametrize("name", ["gpt2", "gpt2 without biases", "modern", "llama", "llama tied"])
def test_new_special_tokens_are_the_mean_and_the_rest_keeps_its_logits(
    name: str, write: Callable[[LanguageModel, Path], Path], pad_vocab_to: int, tmp_path: Path
) -> None:
    model = make(name, pad_vocab_to=pad_vocab_to)
    write(model, tmp_path)
    tokenizer = replace(NEW, chat_template=CHATML)
    larger = loaded(tmp_path, changed(model.architecture, vocab_size=259), tokenizer=tokenizer)
    embedding = model.state_dict()["token_embedding.weight"][:257]
    got = larger.state_dict()["token_embedding.weight"]
    assert torch.equal(got[:257], embedding)
    torch.testing.assert_close(got[257:259], embedding.mean(0).expand(2, -1), rtol=0, atol=1e-6)
    assert not got[259:].any()
    with torch.inference_mode():
        before, after = model(IDS).logits, larger(IDS).logits
    # A product with more columns may add in another order.
    torch.testing.assert_close(after[..., :257], before, rtol=0, atol=1e-6 * float(before.abs().max()))
    mean = before.mean(-1, keepdim=True).expand(-1, -1, 2)
    torch.testing.assert_close(after[..., 257:], mean, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_a_chat_template_alone_is_no_other_tokenizer(tmp_path: Path) -> None:
    model = make("llama")
    checkpoint(model, tmp_path)
    tokenizer = replace(BYTES, chat_template="{{ messages[0].content }}")
    assert same_logits(loaded(tmp_path, model.architecture, tokenizer=tokenizer), model)


def test_an_end_of_text_that_the_folder_lacks_is_a_new_token(tmp_path: Path) -> None:
    model = make("gpt2", pad_vocab_to=1)
    folder = exported(model, tmp_path)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    del saved["model"]["vocab"][saved["added_tokens"].pop()["content"]]
    path.write_text(json.dumps(saved))
    weights(lambda found: {**found, "transformer.wte.weight": found["transformer.wte.weight"][:256]})(folder)
    setting(vocab_size=256)(folder)
    got = loaded(tmp_path, model.architecture).state_dict()["token_embedding.weight"]
    torch.testing.assert_close(got[256], got[:256].mean(0), rtol=0, atol=1e-6)


def test_ids_that_no_token_has_keep_their_rows(tmp_path: Path) -> None:
    sparse = replace(BYTES, special_tokens={BYTES.end: 300})  # as cl100k_base
    model = make("llama", sparse)
    checkpoint(model, tmp_path, sparse)
    extended = sparse.with_special_tokens(["<|im_end|>"])
    got = loaded(tmp_path, changed(model.architecture, vocab_size=302), tokenizer=extended).state_dict()
    head, before = got["head.weight"], model.state_dict()["head.weight"]
    assert torch.equal(head[:301], before[:301])
    known = before[[*range(256), 300]]
    torch.testing.assert_close(head[301], known.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({BYTES.end: 256, "<|im_end|>": 257, "<|im_start|>": 258}, r"<\|im_end\|> has the id 257, not 258"),
        ({BYTES.end: 256, "<|eot|>": 257}, r"the id 257 is <\|eot\|>, not <\|im_start\|>"),
        ({BYTES.end: 259}, r"<\|endoftext\|> has the id 259, not 256"),
    ],
)
def test_other_ids_of_special_tokens_are_another_tokenizer(
    special: dict[str, int], message: str, tmp_path: Path
) -> None:
    model = make("llama", NEW)
    checkpoint(model, tmp_path, NEW)
    with pytest.raises(PipelineError, match=rf"'bytes', is not that of data/there \({message}\): set tok"):
        loaded(tmp_path, model.architecture, tokenizer=replace(BYTES, special_tokens=special))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/nowhere", "data/nowhere is missing: copy a complete checkpoint"),
        ("data/note.txt", "data/note.txt is not a weights file of a checkpoint"),
        ("data/first/best.pth", r"best.pth has .* bytes instead of"),
    ],
)
def test_what_is_no_checkpoint_is_refused(name: str, message: str, tmp_path: Path) -> None:
    model = make("gpt2")
    folder = tmp_path / "data" / "first"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "note.txt").write_text("a note")
    state = {"model_state_dict": model.state_dict(), "step": 1}
    write_checkpoint(folder, model.architecture, BYTES, {}, state, state)
    with (folder / "best.pth").open("ab") as file:
        file.write(b"more")
    with pytest.raises(PipelineError, match=message):
        loaded(tmp_path, model.architecture, name)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = make("llama")
    folder = tmp_path / "data" / "first"
    folder.mkdir(parents=True)
    state = {"model_state_dict": make("llama tied").state_dict(), "step": 1}
    write_checkpoint(folder, model.architecture, BYTES, {}, state, state)
    with pytest.raises(PipelineError, match=r"data/first: blocks.0.attention.qkv.weight does not fit config.json"):
        loaded(tmp_path, model.architecture, "data/first")
