"""The corpus of conversations: the forms of records that it reads, and what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

from pipeline.authoring.testing import check_corpus
from pipeline.core.paths import Paths
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.components import Corpus, Message
from pipeline.plugin.registry import Registry

HI = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
ASKED = [Message("user", "Hi"), Message("assistant", "Hello")]


def corpus(**options: Any) -> Corpus:
    registry = Registry.load(Path(__file__).parents[2] / "plugins", ["corpora"])
    built: Corpus = registry.build("corpora", "conversations", {"conversations": options}, "tokenize.corpus")
    return built


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "data" / "raw").mkdir(parents=True)
    return tmp_path / "data" / "raw"


def write(raw: Path, *records: Any, name: str = "a.jsonl") -> None:
    (raw / name).write_text("".join(json.dumps(each) + "\n" for each in records))


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        (HI, ASKED),
        ({"prompt": "Hi", "completion": "Hello"}, ASKED),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": HI["messages"][1:]}, ASKED),
        ({"instruction": "Hi", "output": "Hello"}, ASKED),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            [Message("user", "Add\n\n1 2"), Message("assistant", "3")],
        ),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, ASKED),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, HI["messages"][1]]}, ASKED),
    ],
)
def test_forms_of_records(raw: Path, record: Any, messages: list[Message]) -> None:
    write(raw, record)
    (document,) = corpus().documents(raw)
    assert (document.name, document.messages) == ("a.jsonl#1", messages)


def test_files_of_several_kinds_and_splits(raw: Path) -> None:
    (raw / "train").mkdir()
    (raw / "train" / "a.jsonl.gz").write_bytes(
        gzip.compress(f"\ufeff{json.dumps(HI)}\n\n{json.dumps(HI)}".encode())
    )
    (raw / "val.json").write_text(json.dumps([HI, HI]))
    found = [(each.name, each.split) for each in corpus().documents(raw)]
    names = ["train/a.jsonl.gz#1", "train/a.jsonl.gz#3", "val.json#1", "val.json#2"]
    assert found == list(zip(names, ["train", "train", "val", "val"], strict=True))


def test_a_system_message_is_put_before_conversations_without_one(raw: Path) -> None:
    own = {"messages": [{"role": "system", "content": "own"}, *HI["messages"]]}
    write(raw, HI, own)
    assert [each.messages[0].content for each in corpus(system="Be brief.").documents(raw)] == ["Be brief.", "own"]


def test_it_keeps_the_contract_of_a_corpus(raw: Path) -> None:
    write(raw, *[HI | {"number": number} for number in range(20)])
    write(raw, HI, name="b.json")
    check_corpus(corpus(), raw)


ROLES = "system, user, assistant, tool"
BAD = {
    "no JSON": ("{", ["line 1", "not JSON"]),
    "no object": ("[1]", ["line 1", "a list"]),
    "null": ("null", ["line 1", "null"]),
    "a text": ('"Hi"', ["line 1", "a text"]),
    "other fields": ('{"text": "Hi"}', ["line 1", "its fields: text", "completion"]),
    "no fields": ("{}", ["line 1", "none"]),
    "messages no list": ('{"messages": "Hi"}', ["messages must be a list", "a text"]),
    "no messages": ('{"messages": []}', ["messages must be a list", "empty list"]),
    "message no object": ('{"messages": ["Hi"]}', ["message 1", "a text"]),
    "no role": ('{"messages": [{"content": "Hi"}]}', ["message 1", "role 'None'", ROLES]),
    "unknown role": ('{"messages": [{"role": "boss", "content": "Hi"}]}', ["role 'boss'", ROLES]),
    "role a special token": ('{"messages": [{"role": "<|im_end|>", "content": ""}]}', ["role '<|im_end|>'", ROLES]),
    "role a number": ('{"messages": [{"role": 1, "content": "Hi"}]}', ["role '1'", ROLES]),
    "no content": ('{"messages": [{"role": "user"}]}', ["message 1", "content must be a text", "null"]),
    "content a number": ('{"messages": [{"role": "user", "content": 3}]}', ["content must be a text", "a number"]),
    "an image": ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', ["no text", "image_url"]),
    "tool calls": (
        '{"messages": [{"role": "assistant", "content": null, "tool_calls": [1]}]}',
        ["message 1", "'tool_calls'"],
    ),
    "a weight": ('{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}', ["'weight'"]),
    "only the user speaks": (
        '{"messages": [{"role": "user", "content": "Hi"}]}',
        ["nothing to learn", "assistant"],
    ),
    "the assistant says nothing": (
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}',
        ["message 2", "says nothing"],
    ),
    "prompt null": ('{"prompt": null, "completion": "Hello"}', ["prompt must be a text", "null"]),
    "completion blank": ('{"prompt": "Hi", "completion": "\\n"}', ["completion is blank"]),
    "output a list": ('{"instruction": "Hi", "output": []}', ["output", "empty list"]),
    "input a number": ('{"instruction": "Hi", "input": 3, "output": "a"}', ["instruction and input", "a number"]),
    "half a pair": ('{"prompt": "\\ud800", "completion": "a"}', ["line 1", "half a surrogate pair"]),
    "nested": ("[" * 100_000, ["line 1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_line_is_said(raw: Path, case: str) -> None:
    line, words = BAD[case]
    (raw / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl line 1") as error:
        list(corpus().documents(raw))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text(raw: Path) -> None:
    (raw / "a.jsonl").write_bytes(json.dumps(HI).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8 at byte 12"):
        list(corpus().documents(raw))


def test_several_faults_are_told_at_once(raw: Path) -> None:
    write(raw, HI, {}, HI, *[[]] * 7)
    write(raw, {"prompt": "Hi"}, name="b.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 .*line 4 .*and 3 more in .*b\.jsonl line 1"):
        list(corpus().documents(raw))


@pytest.mark.parametrize(("name", "words"), [("a.txt", "left out"), ("a.csv", "neither")])
def test_files_of_other_kinds(raw: Path, name: str, words: str) -> None:
    (raw / name).write_text("Hi")
    with pytest.raises((OSError, ValueError), match=words):
        list(corpus(include=["*.jsonl"] if name == "a.txt" else ["**"]).documents(raw))


CHAT = ("--set", "tokenize.corpus.name=conversations")


def test_tokens_of_many_processes_are_those_of_one(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = project.root / "data" / "raw"
    for path in raw.iterdir():
        path.unlink()
    records = [{"prompt": f"{number} and one", "completion": f"is {number + 1}"} for number in range(300)]
    write(raw, *records)
    write(raw, HI, name="b.json")
    project.succeed("tokenize", *CHAT)
    one = told(project)
    monkeypatch.setattr("pipeline.tokenize.stage.SMALL_BYTES", 0)
    monkeypatch.setattr("pipeline.tokenize.shards.SHARD_BYTES", 4096)
    project.succeed("tokenize", *CHAT)
    assert one.pop("shards") == 1
    many = told(project)
    assert many.pop("shards") > 2
    assert many == one


def told(project: Project) -> dict[str, Any]:
    """What artifacts/tokens holds."""
    folder = TokenFolder(Paths(project.root).tokens, "")
    masked = folder.masked("tokens")
    return {
        **folder.meta["files"]["tokens"],
        "tokenizer": folder.tokenizer.fingerprint,
        "ids": masked.ids[:].tolist(),
        "targets": masked.targets(0, len(masked)).tolist(),
        "documents": list(folder.documents("tokens")),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tokenize.tokenizer.chat_template=data/none.jinja"], ["chat_template", "data/none.jinja"]),
        (["tokenize.tokenizer.chat_template=chat.jinja"], ["chat_template", "below data/"]),
        (["tokenize.tokenizer.chat_template=data/broken.jinja"], ["chat_template", "line 1"]),
        (["tokenize.tokenizer.chat_template=data/broken.json"], ["broken.json", "tokenizer_config.json"]),
        (["tokenize.tokenizer.chat_template=data/lacking.jinja"], ["<|human|>", "special_tokens"]),
        (["tokenize.tokenizer.special_tokens=['']"], ["special_tokens"]),
        (["split.by=position", "split.unit=characters"], ["split.unit", "tokens"]),
    ],
    ids=["missing", "outside", "syntax", "no config", "lacks a token", "empty name", "cut between characters"],
)
def test_settings_that_cannot_be_used(project: Project, settings: list[str], words: list[str]) -> None:
    data = project.root / "data"
    for path in (data / "raw").iterdir():
        path.unlink()
    write(data / "raw", *[HI] * 40)
    (data / "broken.jinja").write_text("{% for m in messages %}")
    (data / "broken.json").write_text("{")
    (data / "lacking.jinja").write_text("{% for m in messages %}<|human|>{{ m.content }}{% endfor %}")
    arguments = [*CHAT, *(part for setting in settings for part in ("--set", setting))]
    result = project.run("tokenize", *arguments)
    if not result.code:
        result = project.run("split", *arguments)
    assert result.code
    (line,) = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert all(word in line for word in words), line
