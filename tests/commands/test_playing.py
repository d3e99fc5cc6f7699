"""The commands generate, chat and score."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, TINY, Project, Result, made_up_text

from pipeline.commands import generate as stage
from pipeline.commands.samplers import with_option
from pipeline.core.console import printable
from pipeline.data.batches import evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.model import load, scoring
from pipeline.plugin.registry import Registry


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def typed(text: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces standard input by a text."""
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="surrogateescape"))


# ── generate ──────────────────────────────────────────────────────────────────────────────────────


def test_every_sample_is_the_same_alone_with_its_seed(trained_project: Project) -> None:
    generate = ("generate", "--json", "--tokens", "40")  # beyond the context of 16
    together = lines(trained_project.succeed(*generate, "the", "a river", "--num-samples", "3", "--seed", "4").out)
    assert [(each["prompt"], each["sample"]) for each in together] == [
        (prompt, sample) for prompt in ("the", "a river") for sample in (1, 2, 3)
    ]
    assert [each["seed"] for each in together] == [4, 5, 6, 7, 8, 9]
    assert len({each["continuation"] for each in together}) > 1
    for each in together:
        assert lines(trained_project.succeed(*generate, each["prompt"], "--seed", str(each["seed"])).out) == [
            each | {"sample": 1}
        ]
        shown = trained_project.succeed(
            "generate", each["prompt"], "--tokens", "40", "--seed", str(each["seed"])
        ).out
        assert shown == printable(f"{each['prompt']}{each['continuation']}\n")


def test_flags_set_a_samplers_option_and_add_the_sampler(trained_project: Project) -> None:
    def drawn(*options: str) -> str:
        return trained_project.succeed("generate", "the river", "--tokens", "12", *options).out

    likeliest = drawn("--sampler", "greedy")
    assert drawn() != likeliest
    for flags in (("--temperature", "0"), ("--top-k", "1"), ("--top-p", "1e-9", "--sampler", "min_p")):
        assert drawn(*flags) == likeliest
    settings = ("--set", "evaluate.samplers.top_k.k=3", "--set", "evaluate.samplers.use=[top_k]")
    assert drawn(*settings, "--top-k", "5") == drawn("--sampler", "top_k", "--set", "evaluate.samplers.top_k.k=5")
    chat = trained_project.run("generate", "a", "--top-p", "1.5")
    assert (chat.code, chat.err.count("\n")) == (1, 1)
    assert "--top-p:" in chat.err
    assert "1.5" in chat.err


@pytest.mark.parametrize(
    ("in_use", "added", "then"),
    [
        (["top_p"], "temperature", ["temperature", "top_p"]),
        (["temperature", "top_p"], "top_k", ["temperature", "top_k", "top_p"]),
        (["repetition_penalty", "temperature"], "top_p", ["repetition_penalty", "temperature", "top_p"]),
        (["top_p", "temperature"], "temperature", ["top_p", "temperature"]),
    ],
)
def test_a_sampler_is_added_where_its_order_puts_it(in_use: list[str], added: str, then: list[str]) -> None:
    registry = Registry.load(REPOSITORY / "plugins", ["samplers"])
    names, options = with_option(registry, in_use, {}, added, 1)
    assert names == then
    assert len(options[added]) == 1


def test_samples_are_told_apart(trained_project: Project) -> None:
    out = trained_project.succeed("generate", "the", "--num-samples", "2", "--seed", "4").out
    assert re.findall("^── (.*) ──$", out, flags=re.MULTILINE) == ["sample 1 of 2, seed 4", "sample 2 of 2, seed 5"]


def test_the_number_computed_at_once_changes_no_text(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = ("generate", "the", "a river", "of", "--num-samples", "3", "--json")
    together = trained_project.succeed(*generate).out
    for rows in (1, 4):
        monkeypatch.setattr(stage, "_rows_at_once", lambda model, rows=rows: rows)
        assert trained_project.succeed(*generate).out == together


def test_a_continuation_ends_before_a_stop_string_and_says_why(trained_project: Project) -> None:
    generate = ("generate", "the river", "--tokens", "30", "--json")
    (whole,) = lines(trained_project.succeed(*generate).out)
    text = whole["continuation"]
    stop = text[9:12]  # wherever tokens are cut
    (ended,) = lines(trained_project.succeed(*generate, "--stop", stop, "--stop", "never there").out)
    assert ended["continuation"] == text[: text.index(stop)]
    assert ended["finish_reason"] == "stop"
    assert ended["tokens"] < whole["tokens"] == 30
    streamed = trained_project.succeed("generate", "the river", "--tokens", "30", "--stop", stop).out
    assert streamed == printable(f"the river{ended['continuation']}\n")


def test_the_other_reasons_to_end(trained_project: Project) -> None:
    sampler = "from typing import ClassVar\nfrom pipeline.plugin import Sampler, hookimpl\n\n" + (
        "class Ends(Sampler):\n"
        '    """Ends the text at its fifth token."""\n'
        '    name: ClassVar[str] = "ends"\n\n'
        "    def __call__(self, logits, tokens):\n"
        "        logits = logits.clone()\n"
        "        logits[:, -1] = 1e9 if tokens.shape[1] > 4 else -1e9\n"  # end-of-text is the last id
        "        return logits\n\n\n"
        "@hookimpl\ndef register_samplers():\n    return [Ends]\n"
    )
    (trained_project.root / "plugins" / "samplers" / "ends.py").write_text(sampler)
    ended, cut = (
        lines(trained_project.succeed("generate", "", "--json", "--sampler", "ends", "--tokens", number).out)[0]
        for number in ("9", "3")
    )
    assert (ended["finish_reason"], ended["tokens"]) == ("end_of_text", 4)
    assert (cut["finish_reason"], cut["tokens"]) == ("length", 3)


def test_prompts_come_from_a_file_or_the_standard_input(
    trained_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "﻿the river\r\n\n the sea\n"
    (trained_project.root / "prompts.txt").write_text(text, newline="")
    given = trained_project.succeed("generate", "a", "the river", " the sea").out
    assert trained_project.succeed("generate", "a", "--prompts", "prompts.txt").out == given
    typed(text, monkeypatch)
    assert trained_project.succeed("generate", "a", "--prompts", "-").out == given


def test_lines_of_json_hold_nothing_that_a_terminal_obeys(trained_project: Project) -> None:
    out = trained_project.succeed("generate", "\x1b[31m \x9b \u202e é", "--json").out
    assert not re.search("[\x1b\x9b\u202e]", out)
    assert lines(out)[0]["prompt"] == "\x1b[31m \x9b \u202e é"
    assert "é" in out


# ── chat ──────────────────────────────────────────────────────────────────────────────────────────


class Chat:
    """Chats over a pipe."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project, self.monkeypatch = project, monkeypatch

    def __call__(self, *turns: str, options: tuple[str, ...] = ()) -> Result:
        typed("".join(f"{turn}\n" for turn in turns), self.monkeypatch)
        return self.project.succeed("chat", *options)


@pytest.fixture
def chat(trained_project: Project, monkeypatch: pytest.MonkeyPatch) -> Chat:
    return Chat(trained_project, monkeypatch)


def test_the_first_turn_is_what_generate_says(chat: Chat) -> None:
    for options in (("--seed", "5"), ("--tokens", "40", "--sampler", "min_p"), ("--stop", "e")):
        expected = chat.project.succeed("generate", "the river", *options).out
        assert chat("the river", options=options).out == expected


GREEDY = ("--sampler", "greedy", "--tokens", "3")  # a text has one continuation


def test_a_turn_goes_on_with_the_text(chat: Chat) -> None:
    """The text is shorter than the context, so the model sees all of it."""
    first = chat("the", options=GREEDY).out.removesuffix("\n")
    second = chat("the", " sea", options=GREEDY).out.removesuffix("\n")
    assert second.startswith(f"{first} sea")
    third = chat("the", " sea", "", options=GREEDY).out.removesuffix("\n")  # Enter alone
    assert third.startswith(second)
    assert len(third) > len(second)
    assert chat("the", "sea", options=GREEDY).out.startswith(first + "\n" * (not first.endswith("\n")) + "sea")


def test_what_a_stop_string_took_back_is_forgotten(chat: Chat) -> None:
    text = chat("the river", options=("--sampler", "greedy")).out.removesuffix("\n").removeprefix("the river")
    stop = text[2:4]
    before = "the river" + text[: text.index(stop)]
    result = chat("the river", "/text", "", options=("--sampler", "greedy", "--stop", stop))
    assert result.out.startswith(f"{before}{before}\n")


def test_turns_are_taken_back_and_done_again(chat: Chat) -> None:
    once = chat("the river", options=GREEDY).out.removesuffix("\n")
    undone = chat("the river", " of stone", "/undo", "/text", options=GREEDY).out
    assert undone.startswith(f"{once} of stone")
    assert undone.endswith(f"{once}\n\n")
    assert chat("the river", "/retry", options=GREEDY).out == f"{once}{once}\n"
    assert chat("the river", "/reset", "/text", options=GREEDY).out == f"{once}\n"
    drawn = chat("the river").out.removesuffix("\n")
    assert chat("the river", "/retry").out != f"{drawn}{drawn}\n"


def test_settings_change_and_are_shown(chat: Chat) -> None:
    result = chat(
        "/set", "/set temperature 0.5", "/set top_p.p 0.9", "/tokens 3", "/samplers greedy", "/help", "/quit", "the"
    )
    assert result.out == ""  # nothing after /quit
    shown = result.err.splitlines()
    assert shown[:5] == [
        "temperature 0.8, top_k 40; 8 tokens a turn",
        "temperature 0.5, top_k 40; 8 tokens a turn",
        "temperature 0.5, top_k 40, top_p 0.9; 8 tokens a turn",
        "temperature 0.5, top_k 40, top_p 0.9; 3 tokens a turn",
        "greedy; 3 tokens a turn",
    ]
    for command in ("/undo", "/retry", "/reset", "/text", "/tokens", "/set", "/samplers", "/quit"):
        assert any(line.startswith(command) for line in shown[5:])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/tmeperature 1", "there is no command /tmeperature: /help"),
        ("/temperature 1", "there is no command /temperature: did you mean /set temperature?"),
        ("/", "there is no command /"),
        ("/undo", "no turn"),
        ("/retry", "no turn"),
        ("/undo 3", "/undo: wrong number of arguments"),
        ("/tokens", "/tokens: wrong number of arguments"),
        ("/tokens 0", "1 or more, not '0'"),
        ("/set temperature", "/set temperature needs a value"),
        ("/set temperature -1", "temperature.value: input should be greater than or equal to 0"),
        ("/set temperature hot", "temperature.value: input should be"),
        ("/set temperature.heat 1", "no such key (there are: value)"),
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set greedy 1", "greedy has no options"),
        ("/samplers top_q", "did you mean 'top_"),
    ],
)
def test_a_mistake_is_one_line_and_the_session_goes_on(chat: Chat, command: str, says: str) -> None:
    result = chat(command, "the")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert says in result.err
    assert result.out == chat("the").out


def test_text_may_begin_with_a_slash_and_has_to_be_utf8(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat("//undo").out.startswith("/undo")
    typed(b"\xff\xfe\nthe\n", monkeypatch)
    result = chat.project.succeed("chat")
    assert "not UTF-8" in result.err
    assert result.out.startswith("the")


def test_a_full_context_is_told(chat: Chat) -> None:
    result = chat("the river", "", "", options=("--tokens", "10"))
    told = re.findall(r"^\(context full: .* first (\d+) tokens\)$", result.err, flags=re.MULTILINE)
    assert told == sorted(set(told), key=int)
    assert len(told) == len(result.err.splitlines()) >= 1
    assert chat("the", options=("--tokens", "3")).err == ""


CTRL_C = '''
import os, signal
from typing import ClassVar
from pipeline.plugin import Sampler, hookimpl

class CtrlC(Sampler):
    """Ctrl-C whenever there are five tokens, or ten."""
    name: ClassVar[str] = "ctrl_c"

    def __call__(self, logits, tokens):
        if tokens.shape[1] % 5 == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return logits

@hookimpl
def register_samplers():
    return [CtrlC]
'''


def test_ctrl_c_ends_a_continuation_and_not_the_session(chat: Chat) -> None:
    (chat.project.root / "plugins" / "samplers" / "ctrl_c.py").write_text(CTRL_C)
    handler = signal.getsignal(signal.SIGINT)
    result = chat("", "", "", options=("--sampler", "ctrl_c", "--sampler", "greedy", "--tokens", "1000"))
    assert 0 < len(result.out) < 500
    assert signal.getsignal(signal.SIGINT) is handler


TURNS = '''
from typing import ClassVar
from pipeline.plugin import Sampler, hookimpl

class Turns(Sampler):
    """The likeliest token, of a turn whose drawn tokens are those after the prompt."""
    name: ClassVar[str] = "turns"

    def __call__(self, logits, tokens, prompt_length, memory):
        if prompt_length:  # the model sees the prompt's end
            assert tokens.shape[1] - prompt_length == len(memory)
        memory[len(memory)] = True
        return logits
'''


def test_a_sampler_knows_where_a_turn_began_and_has_a_memory_of_it(chat: Chat) -> None:
    hook = "\n@hookimpl\ndef register_samplers():\n    return [Turns]\n"
    (chat.project.root / "plugins" / "samplers" / "turns.py").write_text(TURNS + hook)
    drawn = ("--sampler", "turns", "--sampler", "greedy", "--tokens")
    chat("the", " sea", "/retry", options=(*drawn, "3"))
    chat("the", " sea", options=(*drawn, "30"))  # more than the context
    chat.project.succeed("generate", "the", "the sea", *drawn, "30")


def test_at_a_terminal(trained_project: Project) -> None:
    """The terminal echoes input once; Ctrl-C discards a line, Ctrl-D ends the session."""
    settings = [part for value in TINY for part in ("--set", value)]
    above, below = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "TERM": "dumb"}

    def on_the_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it in what it starts in the background

    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "chat", *settings], cwd=trained_project.root, env=environment,
        stdin=below, stdout=below, stderr=below, start_new_session=True, preexec_fn=on_the_terminal,
    )  # fmt: skip
    os.close(below)
    seen = ""

    def comes(text: str, seconds: float) -> bool:
        nonlocal seen
        deadline = time.monotonic() + seconds
        while text not in seen and time.monotonic() < deadline:
            if not select.select([above], [], [], 1)[0]:
                continue
            try:
                seen += os.read(above, 4096).decode(errors="replace")
            except OSError:
                break
        return text in seen

    assert comes("> ", 60)
    seen = ""
    os.write(above, b"forget")
    # Keys and a Ctrl-C at the same moment hang GNU readline: the terminal drops the keys that it is about to read.
    assert comes("forget", 60)
    # Python handles Ctrl-C at once only while it waits for a key, so one that comes too early is repeated.
    assert any(os.write(above, b"\x03") and comes("> ", 5) for _ in range(12)), seen
    time.sleep(1)
    seen = ""
    os.write(above, b"the river\n")
    assert comes("> ", 60)
    os.write(above, b"\x04")
    assert process.wait(timeout=60) == 0
    assert comes("the river", 5)
    assert seen.count("the river") == 1
    assert "forget" not in seen


# ── score ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def texts(trained_project: Project) -> tuple[Path, Path]:
    """Two unseen texts: one with many windows, one with multi-byte characters."""
    long, short = trained_project.root / "long.txt", trained_project.root / "short.txt"
    long.write_text(made_up_text(99, 300))
    short.write_text("the sea — é\r\n\tlistens\n", newline="")
    return long, short


def test_a_text_is_scored_in_the_encoding_of_the_corpus(trained_project: Project, texts: tuple[Path, Path]) -> None:
    latin = trained_project.root / "latin.txt"
    latin.write_bytes("the sea é\r\n".encode("latin-1"))
    texts[1].write_text("the sea é\n", newline="")
    score = ("score", "--json", "--set", "tokenize.corpus.name=files")
    of_latin = ("--set", "tokenize.corpus.files.encoding=latin-1", "--set", "tokenize.corpus.files.newlines=lf")
    first, _ = lines(trained_project.succeed(*score, *of_latin, str(latin)).out + "{}")
    second, _ = lines(trained_project.succeed(*score, str(texts[1])).out + "{}")
    assert first["loss"] == second["loss"]
    assert "latin.txt is not UTF-8 at byte 8" in trained_project.run(*score, str(latin)).err


@pytest.mark.parametrize("stride", [1.0, 0.5])
def test_a_text_is_scored_as_evaluation_scores_a_document(
    trained_project: Project, texts: tuple[Path, Path], stride: float
) -> None:
    checkpoint = load(trained_project.root / "artifacts" / "checkpoint", plugins=trained_project.root / "plugins")
    tokenizer = checkpoint.tokenizer
    score = ("score", "--json", "--set", f"evaluate.stride={stride}")
    *found, total = lines(trained_project.succeed(*score, *map(str, texts)).out)
    for path, numbers in zip(texts, found, strict=True):
        ids = np.array([tokenizer.end_of_text, *tokenizer.encode(path.read_bytes().decode())])
        windows = evaluation_windows(len(ids), 16, round(16 * stride))
        expected = scoring.Summary(tokenizer.byte_lengths)
        for scores in scoring.score(checkpoint.model, MaskedIds(ids), windows, 4):
            expected.add(scores)
        assert numbers["file"] == str(path)
        assert numbers["tokens"] == expected.tokens == len(ids) - 1
        assert numbers["bytes"] == path.stat().st_size
        for name, value in expected.metrics().items():
            assert numbers[name] == pytest.approx(value, rel=1e-6), name
    assert total["files"] == 2
    assert total["tokens"] == sum(each["tokens"] for each in found)
    nats = sum(each["tokens"] * each["loss"] for each in found)
    assert total["loss"] == pytest.approx(nats / total["tokens"])
    assert total["bits_per_byte"] == pytest.approx(nats / math.log(2) / total["bytes"])


def test_without_ends_of_text_the_first_token_is_no_target(
    trained_project: Project, texts: tuple[Path, Path]
) -> None:
    path = str(texts[1])
    score = ("score", "--json", "--tokens", path)
    *tokens, whole = lines(trained_project.succeed(*score).out)
    *fewer, part = lines(trained_project.succeed(*score, "--set", "tokenize.end_of_text=false").out)
    assert part["tokens"] == whole["tokens"] - 1
    assert [each["byte"] for each in fewer] == [each["byte"] for each in tokens[1:]]


def test_tokens_tell_where_they_are_and_what_they_cost(trained_project: Project, texts: tuple[Path, Path]) -> None:
    *tokens, summary = lines(trained_project.succeed("score", "--json", "--tokens", str(texts[1])).out)
    assert len(tokens) == summary["tokens"]
    assert sum(each["nats"] for each in tokens) == pytest.approx(summary["loss"] * summary["tokens"])
    assert sum(each["correct"] for each in tokens) == pytest.approx(summary["accuracy"] * summary["tokens"])
    text = texts[1].read_bytes()
    for each, following in zip(tokens, [*tokens[1:], {"byte": len(text)}], strict=True):
        assert each["token"] == text[each["byte"] : following["byte"]].decode(errors="replace")


def test_the_tables_of_a_pipe(
    trained_project: Project, texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = trained_project.succeed("score", *map(str, texts)).out.splitlines()
    assert out[0].endswith("the best weights, of step 6")
    assert out[1].split("  ")[-1] == "accuracy"
    assert [line.split()[0] for line in out[2:]] == [str(texts[0]), str(texts[1]), "all"]
    assert len({len(line) for line in out[1:]}) == 1
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, trained_project.succeed("score", "data/raw/text-00.txt").out.splitlines()[1:])) <= 60
    typed("the\n\tsea é\x1b", monkeypatch)
    rows = trained_project.succeed("score", "--tokens", "-").out
    assert "byte" in rows
    assert "\\t" in rows
    assert "\x1b" not in rows


def test_a_terminal_shows_the_text_in_colours(
    trained_project: Project, texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = trained_project.succeed("score", "--tokens", str(texts[1])).out
    assert "\x1b[48;5;" in out
    assert not re.search(r"\x1b\[[^m]*\n", out)
    assert "the sea — é\\r\n\tlistens\n" in re.sub(r"\x1b\[[\d;]*m", "", out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in trained_project.succeed("score", "--tokens", str(texts[1])).out
