"""Conversations with a tiny model that was trained on some: `pipeline chat` in turns, and `generate --chat`."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import REPOSITORY, TINY, Project, Result, make_project
from test_playing import lines, typed

from pipeline.commands.conversation import Conversation
from pipeline.commands.prompts import conversation_line, read_conversations
from pipeline.commands.samplers import Settings
from pipeline.core.errors import DataError, PipelineError
from pipeline.data.parts import encode_parts, prompt_ids, turn_ends
from pipeline.model import load
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.generate import generate
from pipeline.plugin.components import Message, Sampler
from pipeline.plugin.registry import Registry
from pipeline.tokenize.vocabulary import of_alphabet

CONTEXT = 64
TALKING = (
    *TINY,
    "tokenize.corpus.name=conversations",
    f"model.context_length={CONTEXT}",
    "model.emb_dim=32",
    "train.budget.amount=30",
    "train.evaluation.every=30",
    "train.micro_batch_size=4",
    "train.optimizer.adamw.lr=0.03",
)
FIRST_LETTER = 64
"""The id of "a"."""
WORDS = ("river", "sea", "stone", "light")


def user(text: str) -> Message:
    return Message("user", text)


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project whose model learnt to answer with one word, and to end its turn."""
    from pipeline.core.paths import Paths
    from pipeline.params.reader import load_params
    from pipeline.split import stage as split
    from pipeline.tokenize import stage as tokenize
    from pipeline.train import stage as train

    root = tmp_path_factory.mktemp("talking") / "project"
    make_project(root)
    for text in (root / "data" / "raw").glob("*.txt"):
        text.unlink()
    draw, records = random.Random(0), []
    for number in range(60):
        said = [("system", "Be short.")] * (number % 3 == 0)
        for word in draw.choices(WORDS, k=1 + number % 2):
            said += [("user", f"say {word}"), ("assistant", word)]
        records.append({"messages": [{"role": role, "content": content} for role, content in said]})
    (root / "data" / "raw" / "talk.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records))
    params = load_params(root / "params.yaml", TALKING)
    for stage in (tokenize, split, train):
        stage.run(params, Paths(root))
    return root


@pytest.fixture(scope="module")
def checkpoint(talking: Path) -> Checkpoint:
    return load(talking / "artifacts" / "checkpoint", plugins=REPOSITORY / "plugins")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(REPOSITORY / "plugins", ["samplers", "corpora"])


Begin = Callable[..., "Talk"]


class Talk:
    """A session, and what it printed for each line."""

    def __init__(self, session: Conversation, capture: pytest.CaptureFixture[str]) -> None:
        self.session, self._capture = session, capture

    def __call__(self, *typed: str) -> Result:
        """Types lines; an error gives the code 1."""
        self._capture.readouterr()
        code, more = 0, ""
        for line in typed:
            try:
                self.session.obey(line)
            except PipelineError as error:
                code, more = 1, str(error)
        captured = self._capture.readouterr()
        return Result(code, captured.out, captured.err + more)

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(each.role, each.content) for each in self.session._messages]

    @property
    def size(self) -> int:
        """The number of tokens that the model has read."""
        return len(self.session._read)


@pytest.fixture
def begin(checkpoint: Checkpoint, registry: Registry, capsys: pytest.CaptureFixture[str]) -> Begin:
    def start(
        system: str | None = None,
        sampler: str = "greedy",
        tokens: int = 20,
        stops: tuple[str, ...] = (),
        template: str = "",
    ) -> Talk:
        tokenizer = checkpoint.tokenizer
        of = replace(checkpoint, tokenizer=replace(tokenizer, chat_template=template or tokenizer.chat_template))
        settings = Settings(registry, [sampler], {}, tokens)
        generator = torch.Generator().manual_seed(1)
        return Talk(Conversation(of, settings, generator, stops, system), capsys)

    return start


def test_a_tokenizer_of_characters_needs_those_of_the_template_only(
    checkpoint: Checkpoint, registry: Registry
) -> None:
    of = checkpoint.tokenizer
    few = of_alphabet("user\nassitan").with_special_tokens(list(of.special_tokens))
    characters = replace(few, chat_template=of.chat_template, template_variables=of.template_variables)
    settings, generator = Settings(registry, ["greedy"], {}, 1), torch.Generator()
    talk = Conversation(replace(checkpoint, tokenizer=characters), settings, generator, (), None)
    assert talk.prompt == "> "


class NeverEnds(Sampler):
    """Draws letters that depend on the number of tokens, and checks where its answer begins."""

    name: ClassVar[str] = "never_ends"
    ctrl_c: bool = False

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, prompt_length: int, memory: dict[Any, Any]
    ) -> torch.Tensor:
        assert tokens.shape[1] - prompt_length == len(memory)
        memory[len(memory)] = True
        logits = torch.full_like(logits, -1e9)
        logits[:, FIRST_LETTER + tokens.shape[1] % 7] = 0
        if self.ctrl_c:
            os.kill(os.getpid(), signal.SIGINT)
        return logits


# ── turns ─────────────────────────────────────────────────────────────────────────────────────────


def test_each_answer_is_that_to_the_whole_conversation(begin: Begin, checkpoint: Checkpoint) -> None:
    talk, said = begin("Be short."), [Message("system", "Be short.")]
    ends = turn_ends(checkpoint.tokenizer)
    for word in WORDS:
        said.append(user(f"say {word}"))
        ids = torch.tensor([prompt_ids(said, checkpoint.tokenizer)])
        drawn = [int(token) for token in generate(checkpoint.model, ids, 20)]
        end = next(number for number, token in enumerate(drawn) if token in ends)
        said.append(Message("assistant", checkpoint.tokenizer.decode(drawn[:end])))
        assert talk(f"say {word}").out == f"{said[-1].content}\n"
    assert talk.messages == [(each.role, each.content) for each in said[1:]]
    assert said[-1].content in WORDS


def test_a_turn_computes_only_what_is_new(
    begin: Begin, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, read = begin("Be short."), list[int]()
    forward = checkpoint.model.forward
    monkeypatch.setattr(
        checkpoint.model, "forward", lambda tokens, cache: read.append(tokens.shape[1]) or forward(tokens, cache)
    )
    grown, before = [], 0
    for word in WORDS[:3]:
        read.clear()
        talk(f"say {word}")
        grown.append(talk.size - before)
        before = talk.size
        assert sum(read) <= grown[-1] + 1  # the last shared token may be computed again, for its logits
    assert grown[2] == grown[1] < before // 2
    read.clear()
    talk("/retry")
    assert sum(read) <= 3


def test_turns_are_taken_back_and_done_again(begin: Begin) -> None:
    talk = begin(sampler="temperature")
    talk("/set temperature 5", "/tokens 4", "say sea")
    first = talk.messages
    assert {talk("/retry").out for _ in range(4)} != {f"{first[1][1]}\n"}
    assert [content for role, content in talk.messages if role == "user"] == ["say sea"]
    talk("say stone")
    assert "sea" not in talk("/undo").out
    assert len(talk.messages) == 2
    talk("/undo")
    assert talk.messages == []
    for command in ("/undo", "/retry"):
        assert talk(command).err == "there is no message to undo"


def test_the_system_message_is_set_shown_and_removed(begin: Begin, checkpoint: Checkpoint) -> None:
    talk = begin()
    assert talk("/system").err == "(no system message)\n"
    assert talk("/system  Be short.  Always.").err == "system: Be short.  Always.\n"
    talk("say sea", "/reset", "say river")
    assert talk("/text").out.splitlines()[:2] == ["system: Be short.  Always.", "user: say river"]
    asked = prompt_ids([Message("system", "Be short.  Always."), user("say river")], checkpoint.tokenizer)
    assert talk.session._read.tokens[0, : len(asked)].tolist() == asked
    talk("/system -")
    assert "system" not in talk("/text").out


def test_what_a_user_types_is_never_a_special_token(begin: Begin, checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    special = set(tokenizer.special_tokens.values())
    plain, tricky = begin(), begin()
    plain("say sea")
    for text in ("<|im_end|>", "<|im_start|>system", "<|endoftext|>", "<|im_<|im_end|>end|>", "a<|im_en"):
        tricky("/reset", text, f"/system {text}", "/retry")
        asked = prompt_ids([Message("system", text), user(text)], tokenizer)
        assert sum(token in special for token in asked) == 5  # two messages, and the beginning of the answer
        assert tricky.session._read.tokens[0, : len(asked)].tolist() == asked


def test_a_message_of_several_lines_stands_between_quotes(begin: Begin) -> None:
    talk = begin()
    assert (
        talk(
            '"""say',
            "/undo",
            "",
        ).out
        == ""
    )
    assert talk.session.prompt == ". "
    talk('  sea"""', '"""one line"""', "//slash")
    asked = [content for role, content in talk.messages if role == "user"]
    assert asked == ["say\n/undo\n\n  sea", "one line", "/slash"]
    talk('"""never', "sent")
    talk.session.discard()  # Ctrl-C
    talk("say sea", '"""open')
    assert talk.messages[-2] == ("user", "say sea")
    with pytest.raises(PipelineError, match='no """ at its end: it was not sent'):
        talk.session.end()


def test_ctrl_c_keeps_the_answer_and_enter_continues_it(begin: Begin) -> None:
    whole = begin(tokens=6)
    whole.session._settings.samplers = [NeverEnds()]
    assert "Enter continues" in whole("say sea").err

    talk, handler = begin(), signal.getsignal(signal.SIGINT)
    talk.session._settings.samplers = [NeverEnds(ctrl_c=True)]
    first = talk("say sea")
    assert "Enter continues" in first.err
    assert signal.getsignal(signal.SIGINT) is handler
    assert talk.messages[1][1] == first.out.rstrip("\n") != ""
    talk.session._settings.samplers, talk.session._settings.tokens = [NeverEnds()], 5
    talk("")
    assert talk.messages == whole.messages
    talk.session._settings.samplers = []
    talk("")
    assert talk("").err == "(type a message; /help explains)\n"  # now it is complete


def test_a_stop_string_ends_an_answer(begin: Begin) -> None:
    (answer,) = begin()("say sea").out.splitlines()
    talk = begin(stops=(answer[1:],))
    assert talk("say sea").out == f"{answer[0]}\n"
    assert talk.messages[1] == ("assistant", answer[0])


# ── the context ───────────────────────────────────────────────────────────────────────────────────


def test_the_oldest_turns_leave_the_context_and_the_system_message_stays(
    begin: Begin, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, read, notes = begin("Be short."), list[int](), []
    forward = checkpoint.model.forward
    monkeypatch.setattr(
        checkpoint.model, "forward", lambda tokens, cache: read.append(tokens.shape[1]) or forward(tokens, cache)
    )
    begins = checkpoint.tokenizer.decode(
        prompt_ids([Message("system", "Be short."), user("x")], checkpoint.tokenizer)
    )
    counts = []
    for number in range(14):
        read.clear()
        first = talk.session._first
        notes.append(talk(f"say {WORDS[number % 4]}").err)
        counts.append(sum(read))
        assert talk.size <= CONTEXT
        text = checkpoint.tokenizer.decode(talk.session._read.tokens[0].tolist())
        assert text.startswith(begins[: begins.index("x")])
        assert f"say {WORDS[number % 4]}" in text
        if talk.session._first > first:  # what was left out comes back
            talk("/undo")
            assert talk.session._first == first
            talk(f"say {WORDS[number % 4]}")
    assert [note for note in notes if note] == [
        "(context full: the model sees only the last messages from now on)\n"
    ]
    assert len(talk.messages) == 28
    many = [count for count in counts if count > CONTEXT // 4]
    assert 1 < len(many) < len(counts) // 2  # several turns follow before the context is computed again
    first = talk.session._first
    assert first > 0
    talk("/undo", "say light", "/retry")
    assert talk.session._first == first


def test_an_answer_stays_in_the_context(begin: Begin) -> None:
    talk = begin("Be short.", tokens=1000)
    for word in WORDS[:3]:
        talk(f"say {word}")
    talk.session._settings.samplers = [NeverEnds()]
    result = talk("say light")
    assert talk.size == CONTEXT
    assert talk.session._first == 6  # the answer left no room for other turns
    assert "(context full: the answer ends here)" in result.err
    assert len(talk.messages) == 8
    talk.session._settings.samplers = []
    assert talk("say sea").code == 0


def test_a_message_that_is_too_long_is_one_line_and_nothing_is_lost(begin: Begin) -> None:
    talk = begin("Be short.")
    talk("say sea")
    before = talk.messages
    result = talk("xyzzy " * 40)
    assert result.code == 1
    assert "too long" in result.err
    assert f"only {CONTEXT}" in result.err
    assert "\n" not in result.err
    assert talk.messages == before
    talk("say river")
    assert talk.session._first == 0
    assert len(talk.messages) == 4
    assert f"only {CONTEXT}" in talk("/system " + "xyzzy " * 40).err
    assert talk("/system").err == "system: Be short.\n"
    talk("/reset", "xyzzy " * 7, "/system " + "quux " * 8)
    before = talk.messages
    assert "too long" in talk("/retry").err
    assert talk.messages == before


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/sytem Be short.", "there is no command /sytem: did you mean /system?"),
        ("/xyzzy", "there is no command /xyzzy: /help lists"),
        ("/save", "/save: wrong number of arguments"),
        ("/save x", "/save: there is no message yet"),
        ("/undo 2", "/undo: wrong number"),
        ("/tokens none", "1 or more, not 'none'"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_a_mistake_is_one_line_and_the_session_goes_on(begin: Begin, command: str, says: str) -> None:
    talk = begin()
    result = talk(command)
    assert (result.code, result.out) == (1, "")
    assert says in result.err
    assert "\n" not in result.err
    assert talk.messages == []
    assert talk("say sea").code == 0


def test_a_template_that_has_no_place_for_a_system_message(begin: Begin) -> None:
    template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataError, match="System role not supported"):
        begin("Be short.", template=template)
    talk = begin(template=template)
    assert "System role not supported" in talk("/system Be short.").err
    assert talk("say sea").code == 0


def test_a_saved_conversation_is_one_of_the_corpus(begin: Begin, registry: Registry, tmp_path: Path) -> None:
    talk, file = begin("Be short."), tmp_path / "my talk.jsonl"
    talk("say sea", "say — 語\x1b", f"/save {file}")
    (document,) = registry.build("corpora", "conversations", {}, "corpora").documents(tmp_path)
    said = [(each.role, each.content) for each in document.messages]
    assert said == [("system", "Be short."), *talk.messages]
    assert read_conversations(str(file)) == [document.messages]
    before = file.read_bytes()
    assert "exists" in talk(f"/save {file}").err
    assert "is a folder" in talk(f"/save {tmp_path}").err
    assert str(file) in talk(f"/save {file}/inside").err
    assert file.read_bytes() == before


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def talking_project(project: Project, talking: Path) -> Project:
    shutil.copytree(talking, project.root, dirs_exist_ok=True)
    return project


def test_on_a_pipe_only_answers_are_printed(talking_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = ("--sampler", "greedy", "--system", "Be short.")
    typed("say sea\n/help\n\nsay river\r\n/quit\nsay stone\n", monkeypatch)
    out = talking_project.succeed("chat", *greedy).out
    assert len(out.splitlines()) == 2
    assert set(out.split()) <= set(WORDS)
    assert talking_project.succeed("generate", "--chat", "say sea", *greedy).out == out.splitlines()[0] + "\n"


def test_answers_for_scripts(talking_project: Project) -> None:
    chat = ("generate", "--chat", "--json")
    found = lines(talking_project.succeed(*chat, "say sea", "a", "--system", "Be short.", "--num-samples", "2").out)
    for each in found:
        *asked, answer = each["messages"]
        assert [message["role"] for message in [*asked, answer]] == ["system", "user", "assistant"]
        assert answer["content"] in WORDS
        assert each["finish_reason"] == "end_of_turn"
    assert [(each["sample"], each["seed"]) for each in found] == [(1, 1), (2, 2), (1, 3), (2, 4)]
    (cut,) = lines(talking_project.succeed(*chat, "say sea", "--tokens", "1000", "--top-k", "300").out)
    assert cut["tokens"] < CONTEXT
    records = [
        [user("say sea"), Message("assistant", "unlikely")],
        [Message("system", "Own."), user("a"), Message("assistant", "b"), user("say river")],
    ]
    as_json = [{"messages": [vars(message) for message in each]} for each in records]
    Path("asked.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in as_json))
    found = lines(talking_project.succeed(*chat, "--prompts", "asked.jsonl", "--system", "Be short.").out)
    contents = [[message["content"] for message in each["messages"]] for each in found]
    assert [each[:-1] for each in contents] == [["Be short.", "say sea"], ["Own.", "a", "b", "say river"]]
    Path("asked.txt").write_text("say sea\n")
    (one,) = lines(talking_project.succeed(*chat, "--prompts", "asked.txt").out)
    assert one["messages"][0] == {"role": "user", "content": "say sea"}


def test_what_the_assistant_says_is_scored(
    talking_project: Project, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = [
        [Message("system", "Be <|im_end|>."), user("say sea"), Message("assistant", "sea")],
        [user("say 語"), Message("assistant", "語"), user("say stone " * 12), Message("assistant", "stone")],
        [user("say light"), Message("assistant", "light")],
    ]
    Path("talks.jsonl").write_text("".join(map(conversation_line, talks)))
    tokenizer, nats, count, longest = checkpoint.tokenizer, 0.0, 0, 0
    for talk in talks:
        ids, learn = encode_parts(tokenizer.chat.parts(talk), tokenizer)
        longest = max(longest, len(ids))
        for end in range(1, len(ids)):
            first = (end - 1) // CONTEXT * CONTEXT  # where the window begins
            with torch.no_grad():
                logits = checkpoint.model(torch.tensor([ids[first:end].tolist()])).logits[0, -1]
            nats -= float(logits.double().log_softmax(-1)[int(ids[end])]) * int(learn[end])
            count += int(learn[end])
    assert longest > CONTEXT
    score = ("score", "--chat", "talks.jsonl")
    *tokens, whole = lines(talking_project.succeed(*score, "--json", "--tokens").out)
    assert (whole["tokens"], whole["bytes"]) == (count, len("sea語stonelight".encode()))
    assert whole["loss"] * count == pytest.approx(nats, rel=1e-5)
    shown = "".join(each["token"] for each in tokens if each["nats"] is not None)
    assert shown == "sea<|im_end|>語<|im_end|>stone<|im_end|>light<|im_end|>".replace("語", "���")
    (alone,) = lines(talking_project.succeed(*score, "--json", "--set", "evaluate.batch_size=1").out)
    assert alone["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    table = talking_project.succeed(*score, "--tokens").out
    assert re.search(r"^ +\d+ +\d+ +- +<\|im_start\|>$", table, flags=re.MULTILINE)
    assert re.search(r"^ +[\d,]+ +\d+ +\d+\.\d+ +(yes)? +<\|im_end\|>$", table, flags=re.MULTILINE)
    assert not re.search("'<.im_end", table)  # what the system message says is text of several tokens
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = talking_project.succeed(*score, "--tokens").out
    assert "\x1b[2muser\x1b[0m" in coloured
    assert "\x1b[2m only read \x1b[0m" in coloured


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("no json", "line 2: no JSON"),
        ("[" * 100_000, "line 2: nested too deeply"),
        ("[]", '"messages" is missing'),
        ('{"messages": []}', '"messages" must be a list'),
        ('{"messages": [{"role": "User", "content": "a"}]}', '"role" must be one of system, user'),
        ('{"messages": [{"role": "user", "content": 3}]}', 'message 1: "content" must be a text, not 3'),
        ('{"messages": ["a"]}', '"role" must be one of'),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, record: str, says: str) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(f"\n{record}\n")
    with pytest.raises(DataError) as error:
        read_conversations(str(file))
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert says in str(error.value)


def test_what_cannot_be_asked_is_one_line(talking_project: Project) -> None:
    Path("empty.jsonl").write_text("\n")
    Path("begun.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    Path("asked.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    for arguments, code, says in (
        (("generate", "--chat", "a", "xyzzy " * 40), 1, "is too long"),
        (("generate", "--chat", "--prompts", "empty.jsonl"), 1, "no conversation"),
        (("generate", "--chat", "--prompts", "begun.jsonl"), 1, "nothing to answer"),
        (("score", "--json", "--chat", "asked.jsonl"), 1, "no message of an assistant"),
        (("generate", "--chat", "\udcff"), 1, "not UTF-8"),
        (("generate", "--system", "a", "b"), 2, "--system needs --chat"),
        (("chat", "--system", "xyzzy " * 40), 1, "the system message"),
    ):
        result = talking_project.run(*arguments)
        assert (result.code, result.out) == (code, ""), arguments
        assert says in result.err
        assert code == 2 or result.err.count("\n") == 1


def test_a_model_without_a_template(trained_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (("generate", "--chat", "a"), ("chat", "--system", "a"), ("score", "--chat", "params.yaml")):
        result = trained_project.run(*arguments)
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert arguments[1] in result.err
        assert "no chat template" in result.err
    typed("/system a\n", monkeypatch)
    assert "no command /system" in trained_project.succeed("chat").err
