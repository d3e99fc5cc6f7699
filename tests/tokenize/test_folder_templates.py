"""The chat template of a Hugging Face folder beside its tokenizer.json: used, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.core.errors import PipelineError
from pipeline.core.paths import Paths
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.params.reader import load_params
from pipeline.plugin import Message
from pipeline.plugin.bytelevel import byte_characters
from pipeline.tokenize.tokenizers import with_chat

FILE = "data/there/tokenizer.json"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}{% if tools is not none %}tools{% endif %}"
)
ADDED = {"<s>": 256, "</s>": 257, "<|user|>": 258, "<think>": 259}
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "chat_template": TEMPLATE}
PARAMS = load_params(REPOSITORY / "params.yaml", ()).tokenize.tokenizer


def folder(root: Path) -> Path:
    there = root / "data" / "there"
    there.mkdir(parents=True)
    added = [{"id": token, "content": name, "special": name != "<think>"} for name, token in ADDED.items()]
    model = {"type": "BPE", "vocab": {text: byte for byte, text in byte_characters().items()}, "merges": []}
    saved = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": model,
    }
    (there / "tokenizer.json").write_text(json.dumps(saved))
    (there / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return there


def loaded(root: Path, chat: bool, chat_template: str = "") -> Tokenizer:
    corpus: Any = SimpleNamespace(chat=chat)
    file = PARAMS.file.model_copy(update={"path": FILE})
    params = PARAMS.model_copy(update={"file": file, "chat_template": chat_template})
    return with_chat(from_file(root / FILE, "gpt2", "</s>", proven=False), params, corpus, Paths(root))


def test_a_folders_special_tokens_and_template_are_used(tmp_path: Path) -> None:
    folder(tmp_path)
    tokenizer = loaded(tmp_path, chat=True)
    assert tokenizer.special_tokens == ADDED
    parts = tokenizer.chat.prompt([Message("user", "<|user|><think>")])
    assert [part.text for part in parts if part.special] == ["<s>", "<|user|>", "</s>", "<|user|>"]
    assert "".join(part.text for part in parts) == "<s><|user|><|user|><think></s><|user|>"
    assert tokenizer.chat.end_of_turn == "</s>"


def test_the_file_of_the_template_comes_before_the_config(tmp_path: Path) -> None:
    (folder(tmp_path) / "chat_template.jinja").write_text("<|user|>{{ messages[0].content }}")
    assert loaded(tmp_path, chat=True).chat_template == "<|user|>{{ messages[0].content }}"


def test_a_chosen_config_has_the_variables_of_its_template(tmp_path: Path) -> None:
    config = folder(tmp_path) / "tokenizer_config.json"
    config.rename(tmp_path / "data" / "chosen.json")
    tokenizer = loaded(tmp_path, chat=True, chat_template="data/chosen.json")
    assert tokenizer.template_variables == {"bos_token": "<s>", "eos_token": "</s>"}


def jinja(text: str) -> Callable[[Path], None]:
    return lambda there: (there / "chat_template.jinja").write_bytes(text.encode("latin-1"))


def config(**values: Any) -> Callable[[Path], None]:
    return lambda there: (there / "tokenizer_config.json").write_text(json.dumps({**CONFIG, **values})) and None


def cut(there: Path) -> None:
    path = there / "tokenizer_config.json"
    path.write_text(path.read_text()[:-20])


def nameless(there: Path) -> None:
    path = there / "tokenizer.json"
    path.write_text(path.read_text().replace("<|user|>", ""))


UNUSABLE = {
    "broken Jinja": (jinja("{% for each in messages %}"), r"has an error: line 1"),
    "a function that is not defined": (jinja("{{ now() }}"), "cannot write a conversation: 'now' is undefined"),
    "a token that the tokenizer lacks": (
        jinja("<|bot|>{{ messages[0].content }}"),
        r"has <\|bot\|>, which the tok",
    ),
    "no eos_token": (config(eos_token=None), "reads eos_token: set it in tokenizer_config.json"),
    "a bos_token of another tokenizer": (config(bos_token="<|begin|>"), r"writes bos_token, '<\|begin\|>'"),
}
DAMAGED = {
    "half a config": (cut, "tokenizer_config.json is not a tokenizer_config.json"),
    "a config that is a list": (
        lambda there: (there / "tokenizer_config.json").write_text("[]"),
        "not a tokenizer_c",
    ),
    "a template that is a number": (config(chat_template=5), "chat_template is 5, not a text"),
    "templates without names": (config(chat_template=["a"]), "not a tokenizer_config.json"),
    "a template that is not UTF-8": (jinja("é"), "chat_template.jinja is not UTF-8 text"),
    "a special token without a name": (nameless, "a special token is empty"),
}


@pytest.mark.parametrize("case", UNUSABLE | DAMAGED)
def test_what_a_folder_has_wrong_is_one_line(case: str, tmp_path: Path) -> None:
    change, message = (UNUSABLE | DAMAGED)[case]
    change(folder(tmp_path))
    with pytest.raises(PipelineError, match=message) as caught:
        loaded(tmp_path, chat=True)
    assert "\n" not in str(caught.value)
    assert "data/there" in str(caught.value)


@pytest.mark.parametrize("case", UNUSABLE)
def test_texts_without_conversations_need_no_template(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    UNUSABLE[case][0](folder(tmp_path))
    tokenizer = loaded(tmp_path, chat=False)
    assert tokenizer.special_tokens == ADDED
    assert tokenizer == replace(tokenizer, chat_template="", template_variables={})
    assert "note: the folder of data/there/tokenizer.json: the chat template" in capsys.readouterr().out
