"""Evaluation of conversations: what is learnt is scored, who speaks is told, held-out questions are answered."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Project, make_project

from pipeline.data.parts import encode_parts, prompt_ids
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder
from pipeline.evaluate.conversations import Speakers, Turn, held_out_questions
from pipeline.evaluate.tables import read_items, read_units
from pipeline.evaluate.text_model import text_model
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.generate import generate
from pipeline.plugin import CHATML, Message
from pipeline.plugin.registry import Registry

CONTEXT = 64
SETTINGS = [
    *TINY,
    "tokenize.corpus.name=conversations",
    f"model.context_length={CONTEXT}",
    "evaluate.groups=[talks*]",
    "evaluate.metrics.use=[accuracy, questions]",
    "evaluate.metrics.questions.kind=(.)$",
    "evaluate.metrics.questions.max_new_tokens=5",
]
COMMAND = ["evaluate", *(part for value in SETTINGS[len(TINY) :] for part in ("--set", value))]
WORDS = ["river", "stone", "light", "sea"]


def conversation(number: int) -> list[dict[str, str]]:
    words = random.Random(number).choices(WORDS, k=2 + number % 3)
    said = [("user", f"<b>Last</b> of {' '.join(words)}?"), ("assistant", words[-1])]
    if number % 3 == 0:
        said = [("system", "Be short. <|im_end|>"), *said]
    if number % 4 == 0:
        said += [("tool", "é語"), ("assistant", f"again\n{words[-1]}")]
    if number % 5 == 0:
        said.append(("user", "thanks"))  # no question: the assistant does not answer
    return [{"role": role, "content": content} for role, content in said]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with a model that was trained on conversations, and evaluated."""
    from pipeline.core.paths import Paths
    from pipeline.evaluate import stage as evaluate
    from pipeline.params.reader import load_params
    from pipeline.split import stage as split
    from pipeline.tokenize import stage as tokenize
    from pipeline.train import stage as train

    root = tmp_path_factory.mktemp("chat") / "project"
    make_project(root)
    for path in (root / "data" / "raw").iterdir():
        path.unlink()
    lines = [json.dumps({"messages": conversation(number)}) + "\n" for number in range(1, 121)]
    (root / "data" / "raw" / "talks.jsonl").write_text("".join(lines))
    params = load_params(root / "params.yaml", SETTINGS)
    for stage in (tokenize, split, train, evaluate):
        stage.run(params, Paths(root))
    return root


@pytest.fixture(scope="module")
def checkpoint(chat: Path) -> Checkpoint:
    registry = Registry.load(chat / "plugins", ["models"])
    return load_checkpoint(chat / "artifacts" / "checkpoint", "best", torch.device("cpu"), registry)


@pytest.fixture(scope="module")
def splits(chat: Path) -> TokenFolder:
    return TokenFolder(chat / "artifacts" / "splits", "")


def results(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        json.loads((root / "metrics" / "evaluate.json").read_text()),
        json.loads((root / "reports" / "evaluation.json").read_text()),
    )


@pytest.mark.parametrize("side", ["val", "test"])
def test_the_numbers_are_those_of_the_learnt_tokens(
    chat: Path, checkpoint: Checkpoint, splits: TokenFolder, side: str
) -> None:
    ids = torch.from_numpy(splits.ids(side).astype(np.int64))
    learnt = splits.masked(side).learnt(0, len(ids))
    lengths = splits.tokenizer.byte_lengths[ids]
    nats = torch.zeros(len(ids), dtype=torch.float64)
    hits = torch.zeros(len(ids), dtype=torch.bool)
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CONTEXT):
            window = ids[start : start + CONTEXT + 1]
            log_p = checkpoint.model(window[None, :-1]).logits[0].double().log_softmax(-1)
            nats[start + 1 : start + len(window)] = -log_p.gather(1, window[1:, None])[:, 0]
            hits[start + 1 : start + len(window)] = log_p.argmax(-1) == window[1:]
    targets = torch.from_numpy(np.flatnonzero(learnt[1:]) + 1)
    numbers, about = results(chat)
    expected = {
        "loss": float(nats[targets].sum()) / len(targets),
        "bits_per_byte": float(nats[targets][lengths[targets] > 0].sum()) / math.log(2) / lengths[targets].sum(),
        "accuracy": float(hits[targets].double().mean()),
        "tokens": len(targets),
    }
    for name, value in expected.items():
        assert numbers[side][name] == pytest.approx(value, rel=1e-6), name
    assert about["sides"][side]["groups"]["talks*"]["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert 0 < len(targets) < len(ids) / 2
    what = "what the assistant says"
    assert about["sides"][side]["scored"] == {"tokens": len(targets), "of": len(ids), "what": what}
    units = read_units((chat / "reports" / "documents.tsv").read_text())[side]
    assert sum(each.tokens for each in units) == len(targets)

    train = splits.masked("train")
    counts = 1.0 + np.bincount(train.ids[train.learnt(0, len(train))], minlength=splits.tokenizer.vocab_size)
    unigram = -np.log2(counts / counts.sum())[ids[targets]][lengths[targets] > 0].sum() / lengths[targets].sum()
    assert about["sides"][side]["baselines"] == {"unigram": pytest.approx(unigram)}


def test_questions_are_in_metrics_tables_and_report(chat: Path, splits: TokenFolder) -> None:
    numbers, about = results(chat)
    items = read_items((chat / "reports" / "tasks.tsv").read_text())
    assert about["task_items"] == len(items)
    names = [each.item for each in items if each.number == "questions.exact_match"]
    asked = [each.name for each in splits.documents("test") if int(each.name.split("#")[1]) % 5]
    assert names == asked  # no conversation that ends with the user
    for name in ("exact_match", "ended", "choice_accuracy"):
        values = [each.value for each in items if each.number == f"questions.{name}"]
        assert numbers["tasks"][f"questions.{name}"] == pytest.approx(sum(values) / len(values))
    page = (chat / "reports" / "report.html").read_text()
    assert page.count('class="card tokens talk"') == 6
    assert page.count('<p class="who">the right answer</p>') == sum(
        int(each.name.split("#")[1]) % 5 > 0 for each in evenly(list(splits.documents("test")), 6)
    )
    assert "<b>Last" not in page
    assert "&lt;b&gt;Last" in page
    assert "what the assistant says" in page
    assert '<th scope="col" class="value">learnt</th>' in page


def evenly(documents: list[Any], count: int) -> list[Any]:
    return [documents[number * len(documents) // count] for number in range(count)]


def test_the_terminal_says_what_was_scored_and_ranks_publish_the_same(project: Project, chat: Path) -> None:
    shutil.copytree(chat, project.root, dirs_exist_ok=True)
    shutil.rmtree(project.root / "reports")
    names = ["evaluation.json", "documents.tsv", "blocks.tsv", "positions.tsv", "tasks.tsv"]
    out = project.succeed(*COMMAND, "--set", "runtime.processes=2", "--set", "runtime.strategy=fsdp").out
    assert re.search(r"scored +[\d,]+ of [\d,]+ tokens of test: what the assistant says", out)
    assert "xz" not in out.replace("without xz", "")
    assert re.search("tasks +questions +exact match +ended +choice accuracy", out)
    assert "(the right answer: " in out
    for name in names:
        assert (project.root / "reports" / name).read_bytes() == (chat / "reports" / name).read_bytes()
    assert results(project.root)[0] == results(chat)[0]


def test_in_packs_each_document_is_scored_alone(chat: Path, tmp_path: Path) -> None:
    """A run with train.pack_documents: its numbers are those of one conversation per window."""
    from pipeline.core.paths import Paths
    from pipeline.evaluate import stage as evaluate
    from pipeline.params.reader import load_params
    from pipeline.train import stage as train

    root = tmp_path / "project"
    shutil.copytree(chat, root)
    packed = ["model.document_mask=true", "train.pack_documents=true", "evaluate.metrics.use=[accuracy]"]
    params = load_params(root / "params.yaml", [*SETTINGS, *packed])
    for stage in (train, evaluate):
        stage.run(params, Paths(root))
    registry, splits = Registry.load(root / "plugins", ["models"]), TokenFolder(root / "artifacts" / "splits", "")
    model = load_checkpoint(root / "artifacts" / "checkpoint", "best", torch.device("cpu"), registry).model
    units, ids = read_units((root / "reports" / "documents.tsv").read_text())["val"], splits.masked("val")
    for unit, entry in zip(units, splits.documents("val"), strict=True):
        assert entry.tokens <= CONTEXT + 1
        text = torch.from_numpy(np.asarray(ids.ids[entry.start : entry.end]).astype(np.int64))
        learnt = torch.from_numpy(ids.learnt(entry.start, entry.end))[1:]
        with torch.no_grad():
            log_p = model(text[None, :-1]).logits[0].double().log_softmax(-1)
        nats = -log_p.gather(1, text[1:, None])[:, 0][learnt]
        assert (unit.name, unit.tokens) == (entry.name, int(learnt.sum()))
        assert unit.nats == pytest.approx(float(nats.sum()), rel=1e-5)
    numbers, about = results(root)
    assert about["packed"] is True
    assert numbers["val"]["accuracy"] == about["sides"]["val"]["accuracy"]  # a metric sees the same targets
    for side in ("val", "test"):  # what is scored is the same as without packs, so the runs can be compared
        unpacked = results(chat)[1]["sides"][side]
        for key in ("tokens", "text", "scored"):
            assert about["sides"][side][key] == unpacked[key]
    assert "in windows that hold whole documents" in (root / "reports" / "report.html").read_text()


# ── questions and answers ─────────────────────────────────────────────────────────────────────────


def test_a_question_is_what_comes_before_the_last_answer(splits: TokenFolder) -> None:
    for question in held_out_questions(splits, "val", 1000):
        *before, last = [Message(**each) for each in conversation(int(question.name.split("#")[1]))]
        assert last.role == "assistant"
        assert question.answer == last.content
        assert question.prompt == prompt_ids(before, splits.tokenizer)
    assert 5 <= len(list(held_out_questions(splits, "val", 8))) <= 8
    with pytest.raises(ValueError, match=r"'more'.*train, val, test"):
        list(held_out_questions(splits, "more", 8))


def test_without_conversations_there_are_no_questions(trained: Path) -> None:
    plain = TokenFolder(trained / "artifacts" / "splits", "")
    with pytest.raises(ValueError, match=r"val has no conversations.*docs/chat\.md"):
        list(held_out_questions(plain, "val", 8))


def test_answers_are_those_of_one_question_at_a_time(
    chat: Path, checkpoint: Checkpoint, splits: TokenFolder
) -> None:
    tokenizer, model = splits.tokenizer, text_model(checkpoint, splits, True, 7, chat)
    prompts = [each.prompt for each in model.questions("test", 20)]
    end = tokenizer.special_tokens["<|im_end|>"]
    for prompt, answer in zip(prompts, model.answers(prompts, 6), strict=True):
        drawn = [int(each) for each in generate(checkpoint.model, torch.tensor([prompt]), 6)]
        stops = [place for place, each in enumerate(drawn) if each in (end, tokenizer.end_of_text)]
        alone = drawn[: stops[0]] if stops else drawn
        assert answer.text == tokenizer.decode(alone)
        assert answer.ended == (bool(stops) and drawn[stops[0]] == end)


def test_the_score_of_an_answer_is_its_nats_with_the_end_of_the_turn(
    chat: Path, checkpoint: Checkpoint, splits: TokenFolder
) -> None:
    tokenizer, model = splits.tokenizer, text_model(checkpoint, splits, True, 3, chat)
    prompts = [model.chat_prompt([Message("user", text)]) for text in ("Hi", "And you?")]
    end = tokenizer.special_tokens["<|im_end|>"]
    texts = ["stone", "the sea"]
    for prompt, text, found in zip(prompts, texts, model.answer_scores(prompts, texts), strict=True):
        answer = [*tokenizer.encode(text).tolist(), end]
        with torch.no_grad():
            log_p = checkpoint.model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0].double().log_softmax(-1)
        nats = -log_p[-len(answer) :].gather(1, torch.tensor(answer)[:, None]).sum()
        assert found == (pytest.approx(float(nats), rel=1e-5), len(answer))


# ── who speaks ────────────────────────────────────────────────────────────────────────────────────

LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] {{ message['content'] }} "
    "[/INST]{% elif message['role'] == 'assistant' %} {{ message['content'] }}<|endoftext|>{% else %}"
    "{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}<|end|>\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
SAID = [Message("user", "One <|eot|> b"), Message("assistant", "Yes\nno"), Message("user", "Two")]


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Tokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)}
    names = ["<|endoftext|>", "<s>", "<|start|>", "<|end|>", "<|eot|>", "<|im_start|>", "<|im_end|>"]
    return Tokenizer("bytes", r"[\s\S]", ranks, {name: 256 + number for number, name in enumerate(names)})


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, HEADERS], ids=["chatml", "llama-2", "headers"])
def test_who_speaks_is_read_from_the_tokens(bytes_tokenizer: Tokenizer, template: str) -> None:
    tokenizer = replace(bytes_tokenizer, chat_template=template, template_variables={"bos_token": "<s>"})
    speakers = Speakers(tokenizer)
    messages = SAID if template == LLAMA_2 else [Message("system", "Be short."), *SAID, Message("tool", "[]")]
    ids, learn = encode_parts(tokenizer.chat.parts(messages), tokenizer)
    roles = speakers.of(ids, learn != 0)
    text = tokenizer.decode(ids)
    assert len(text) == sum(len(tokenizer.token_bytes[each]) for each in ids)
    starts = np.cumsum([0, *(len(tokenizer.token_bytes[each]) for each in ids)])
    for message in messages:
        place = int(np.flatnonzero(starts == text.index(message.content))[0])
        assert roles[place] == message.role
    turns = speakers.turns(ids)
    if template != LLAMA_2:  # which writes nothing before an answer
        assert turns == [Turn(each.role, each.content) for each in messages]


def test_texts_without_a_template_have_no_roles(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("user: a")
    speakers = Speakers(bytes_tokenizer)
    assert set(speakers.of(ids, np.arange(7) > 4)) == {"", "learnt"}
    assert speakers.turns(ids) == [Turn("", "user: a")]
