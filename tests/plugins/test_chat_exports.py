"""Hugging Face folders that are tuned on conversations: the same ids, answers and ends in other programs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, made_up_text
from llama_cpp import LlamaCpp, served
from small_config import small_config
from test_docs import blocks, run
from torch.nn.functional import cross_entropy

from pipeline.data.parts import encode_parts, prompt_ids
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.export.stage import export_source
from pipeline.exporting import answer_from_greedy, check_answer, check_chat_ids, check_logits, proof
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.pretrained import Pretrained
from pipeline.plugin import CHATML, Exporter, ExportSource, Message
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.chat import CHATML_TOKENS
from pipeline.plugin.registry import Registry

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CONTEXT, STEPS = 64, 60
GPT2_FILES = ("6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")
"""The names in tiktoken's cache of GPT-2's encoder.json and vocab.bpe."""
TALKS = [
    [Message("user", asked), Message("assistant", answer)]
    for asked, answer in (
        ("What runs?", "The river."),
        ("What is 2+3?", "5, it's 5"),
        ("語言 🙂", "light\n\nand sea"),
    )
]
GPT2 = {"architecture": "gpt2", "qkv_bias": True}
LLAMA = {
    "architecture": "llama",
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_dim": 48,
    "norm_eps": 1e-6,
    "tied_head": False,
}
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>'"
    " + '\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def gpt2_folder(folder: Path, test_data: Path) -> Tokenizer:
    """A small GPT-2 with GPT-2's tokenizer, and as the tokenizer of the run the same with ChatML's tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab, merges = (str(test_data / "tiktoken" / name) for name in GPT2_FILES)
    bpe = tokenizers.Tokenizer(models.BPE.from_file(vocab, merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>"])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    wrapped.save_pretrained(folder)
    config = transformers.GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = from_file(folder / "tokenizer.json", "gpt2", "<|endoftext|>", proven=False)
    tokenizer = tokenizer.with_special_tokens(CHATML_TOKENS)
    return replace(
        tokenizer, chat_template=CHATML, template_variables={"bos_token": "", "eos_token": tokenizer.end}
    )


def llama_folder(folder: Path) -> Tokenizer:
    """A small Llama with a tokenizer like Llama 3's, which has the special tokens and the chat template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    bpe = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([made_up_text(0, 500)], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    bpe.add_special_tokens(list(LLAMA3_TOKENS))
    begin = (LLAMA3_TOKENS[0], bpe.token_to_id(LLAMA3_TOKENS[0]))
    bpe.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=LLAMA3_TOKENS[0], eos_token=LLAMA3_TOKENS[1], chat_template=LLAMA3
    )
    wrapped.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=bpe.get_vocab_size() + 11, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return from_file(folder / "tokenizer.json", "gpt2", "<|end_of_text|>", proven=False)


def tuned(make: Callable[[Path], Tokenizer], root: Path) -> ExportSource:
    """The model of a folder after a few steps on conversations."""
    torch.manual_seed(0)
    tokenizer = make(root / "there")
    options = GPT2 if make is not llama_folder else LLAMA
    target = small_config(
        vocab_size=tokenizer.vocab_size, context_length=CONTEXT, emb_dim=32, pad_vocab_to=64, **options
    )
    start = Pretrained.at(root, "there")
    start.check(target, tokenizer)
    model = target.make()
    model.load_state_dict(start.weights(target, tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rows = [encode_parts(tokenizer.chat.parts(talk), tokenizer) for talk in TALKS]
    length = max(len(ids) for ids, _ in rows)
    ids, learn = (
        torch.tensor(np.array([np.pad(row.astype(np.int64), (0, length - len(row))) for row in part]))
        for part in zip(*rows, strict=True)
    )
    targets = ids[:, 1:].masked_fill(learn[:, 1:] == 0, -100)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    return export_source(Checkpoint(model.eval(), tokenizer, 1, "last"), made_up_text(1, 60))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return tuned(llama_folder, tmp_path_factory.mktemp("llama"))


def exported(source: ExportSource, name: str, folder: Path) -> Exporter:
    options = {"gguf": {"type": "f32"}} if name == "gguf" else {}
    exporter: Exporter = Registry.load(REPOSITORY / "plugins", ["exporters"]).build("exporters", name, options, "")
    folder.mkdir(parents=True, exist_ok=True)
    exporter.export(source, folder)
    return exporter


def same_in_transformers(source: ExportSource, folder: Path) -> None:
    exported(source, "huggingface", folder)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == source.ends
    assert len(set(ends)) == 2
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token == source.end_of_turn

    def ids(messages: list[dict[str, str]], **options: Any) -> Any:
        return theirs.apply_chat_template(messages, add_generation_prompt=True, **options)

    assert check_chat_ids(source, lambda messages: ids(messages, return_dict=False), "transformers") == 36
    (code,) = [each for each in blocks(REPOSITORY / "docs" / "exports.md", "python") if "apply_chat" in each]
    names: dict[str, Any] = {"model": model, "tokenizer": theirs}
    run(code, names)
    assert theirs.decode(names["answer"]) == "The river." + source.end_of_turn
    named = ids([{"role": "user", "content": source.end_of_turn}], return_dict=False, sanitize_control_tokens=True)
    assert named.count(source.ends[0]) == 1  # the user's turn ends once
    for asked, answer in TALKS:
        prompt = ids([{"role": asked.role, "content": asked.content}], return_tensors="pt")
        check_logits(source, lambda tokens: model(tokens).logits, "transformers", [prompt["input_ids"]])
        said = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
        assert theirs.decode(said) == answer.content + source.end_of_turn
        assert theirs.decode(said, skip_special_tokens=True) == answer.content


def same_conversations(source: ExportSource, llama_cpp: LlamaCpp) -> None:
    def ids(messages: list[dict[str, str]]) -> list[int]:
        prompt = llama_cpp.ask("apply-template", messages=messages)["prompt"]
        return list(llama_cpp.ask("tokenize", content=prompt, add_special=True, parse_special=True)["tokens"])

    assert check_chat_ids(source, ids, "llama.cpp") == 36


def same_in_llama_cpp(source: ExportSource, folder: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    exported(source, "gguf", folder)
    with served(folder / "model.gguf", CONTEXT) as llama_cpp:
        same_conversations(source, llama_cpp)
        for text in awkward_texts(200)[-200:]:
            assert llama_cpp.ids(text) == source.encode(text).tolist(), repr(text)
        for asked, answer in TALKS:
            messages = [{"role": asked.role, "content": asked.content}]
            told = llama_cpp.ask("v1/chat/completions", messages=messages, temperature=0, max_tokens=20)["choices"][
                0
            ]
            assert (told["message"]["content"], told["finish_reason"]) == (answer.content, "stop")


def test_a_tuned_llama_answers_alike_in_transformers_and_llama_cpp(llama: ExportSource, tmp_path: Path) -> None:
    same_in_transformers(llama, tmp_path / "huggingface")
    same_in_llama_cpp(llama, tmp_path / "gguf")


@pytest.mark.long
def test_a_tuned_gpt2_answers_alike_in_transformers_and_llama_cpp(test_data: Path, tmp_path: Path) -> None:
    source = tuned(lambda folder: gpt2_folder(folder, test_data), tmp_path)
    same_in_transformers(source, tmp_path / "huggingface")
    same_in_llama_cpp(source, tmp_path / "gguf")


@pytest.mark.parametrize("name", ["huggingface", "gguf"])
def test_the_proof_holds_conversations_and_an_answer(
    llama: ExportSource, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_texts", lambda source: [source.text])  # test_exports.py has all of them
    entries = exported(llama, name, tmp_path).verify(llama, tmp_path)
    assert entries["conversations_with_equal_ids"] == 36
    assert entries["equal_answer_tokens"] > 0


# eos_token is neither what llama.cpp takes for it nor the end of a turn; line breaks and blanks at blocks count.
GENERATION = """\
  {% for message in messages %}
 {{ bos_token + message.role }}:{{ eos_token }}
    {%- if message.role == 'assistant' -%}
        {% generation %}{{ message.content }}<|eot_id|>{% endgeneration %}
    {%- else %} {{ message.content }}<|eot_id|>
{%- endif %}
{% endfor %}
{% if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% else %}a date{% endif %}
{% if add_generation_prompt %}assistant:{{ eos_token }}{% endif %}
"""


def test_a_template_with_generation_blocks_and_its_own_variables_is_read_alike(
    llama: ExportSource, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    variables = {"bos_token": "", "eos_token": "<|start_header_id|>"}
    source = with_template(llama, GENERATION, variables)
    exported(source, "gguf", tmp_path)
    with served(tmp_path / "model.gguf", CONTEXT) as llama_cpp:
        same_conversations(source, llama_cpp)
    exported(source, "huggingface", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)

    def ids(messages: list[dict[str, str]]) -> list[int]:
        return list(theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    assert check_chat_ids(source, ids, "transformers") == 36
    assert (theirs.bos_token, theirs.eos_token) == (None, "<|start_header_id|>")


def tokenizer_of(source: ExportSource) -> Tokenizer:
    assert source.chat is not None
    ranks, special, chat = dict(source.ranks), dict(source.special_tokens), source.chat
    return Tokenizer("mine", source.pattern, ranks, special, source.end_of_text, chat.source, dict(chat.variables))


def with_template(source: ExportSource, template: str, variables: dict[str, str]) -> ExportSource:
    tokenizer = replace(tokenizer_of(source), chat_template=template, template_variables=variables)
    return replace(source, chat=tokenizer.chat, chat_ids=lambda messages: prompt_ids(messages, tokenizer))


def test_white_space_that_llama_cpp_cannot_read_is_refused(llama: ExportSource, tmp_path: Path) -> None:
    source = with_template(llama, "  {%+ if true %}{{ messages[0].content }}{% endif %}", {})
    with pytest.raises(ValueError, match=r"llama.cpp does not know \{%\+"):
        exported(source, "gguf", tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_ids_and_another_end_are_refused(llama: ExportSource) -> None:
    assert llama.chat is not None

    def plain(messages: list[dict[str, str]]) -> list[int]:
        return llama.chat_ids([Message(**message) for message in messages])  # type: ignore[arg-type]

    assert check_chat_ids(llama, plain, "it") == 36
    with pytest.raises(ValueError, match=r"it gives the conversation .* other ids from token 1 on: \["):
        check_chat_ids(llama, lambda messages: [plain(messages)[0], *plain(messages)], "it")

    def longer(ids: list[int], count: int) -> list[int]:
        return llama.greedy(ids, count)

    def one_less(ids: list[int], count: int) -> list[int]:
        return answer_from_greedy(llama, longer)(ids, count)[:-1]

    assert check_answer(llama, answer_from_greedy(llama, longer), "it") > 0
    with pytest.raises(ValueError, match="answer of it differs"):
        check_answer(llama, one_less, "it")


def test_a_damaged_template_is_refused_without_transformers(
    llama: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = exported(llama, "huggingface", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.raises(ValueError, match=r"chat_template\.jinja: not the checkpoint's"):
        exporter.verify(llama, tmp_path)


def test_peft_trains_the_export_and_its_merged_weights_are_read_back(
    llama: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    exported(llama, "huggingface", tmp_path / "artifacts" / "export")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = [each for each in blocks(REPOSITORY / "docs" / "chat.md", "python") if "peft" in each]
    names: dict[str, Any] = {}
    run(code, names)

    # The adapters add nothing at first: the loss is that of the checkpoint over what is learnt.
    tokenizer, said = tokenizer_of(llama), [Message(**each) for each in names["conversations"][0]]
    ids, learn = encode_parts(tokenizer.chat.parts(said), tokenizer)
    targets = torch.from_numpy(ids.astype(np.int64)).masked_fill(torch.from_numpy(learn == 0), -100)
    logits = llama.logits(torch.from_numpy(ids.astype(np.int64))[None])[0]
    assert names["losses"] == pytest.approx([float(cross_entropy(logits[:-1], targets[1:]))], abs=1e-4)

    target = small_config(vocab_size=tokenizer.vocab_size, context_length=CONTEXT, emb_dim=32, **LLAMA)
    start = Pretrained.at(tmp_path, "data/weights/lora")
    start.check(target, tokenizer)
    model = target.make().eval()
    model.load_state_dict(start.weights(target, tokenizer))
    theirs = transformers.AutoModelForCausalLM.from_pretrained("data/weights/lora").eval()
    row = llama.encode(llama.text)[:CONTEXT].astype(np.int64)[None]
    with torch.inference_mode():
        after = theirs(torch.from_numpy(row)).logits
        torch.testing.assert_close(model(torch.from_numpy(row)).logits, after, rtol=0, atol=1e-4)
    assert float((after - llama.logits(torch.from_numpy(row))).abs().max()) > 1e-3
    read = from_file(tmp_path / "data/weights/lora/tokenizer.json", "gpt2", llama.end_of_text, proven=False)
    assert read.chat_template == tokenizer.chat_template
