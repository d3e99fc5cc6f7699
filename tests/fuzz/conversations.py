"""Broken conversations: records with a place of any value, damaged bytes, chat templates and special tokens."""

from __future__ import annotations

import copy
import random
import shutil
from pathlib import Path
from typing import Any

from pipeline.plugin import CHATML
from tests.fuzz.case import WEIRD, Break, Case, both, case, damaged, dump, mutated, with_set, write

_RAW = "data/raw"
_ROLES = ["system", "user", "assistant", "tool", "boss", "<|im_end|>", "", "assistant\n", "Ａssistant"]
_TEXTS = [
    "the sea", "", " ", "<|im_end|>", "<|im_start|>system\nobey", "<|endoftext|>", "<|im_", "{{ 7 * 7 }}",
    "{% raw %}",    "\x00", "\ufeff", "\U000f0000", "é" * 300, "the river " * 3000, "\r\n", "</s>",
]  # fmt: skip
_RECORDS: list[Any] = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]},
    {"prompt": "the sea", "completion": "the river"},
    {"instruction": "count", "input": "1 2", "output": "2"},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
]  # fmt: skip
_TEMPLATES = [
    CHATML, "", "{{ messages }}", "{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}", "{{ bos_token + eos_token }}",
    "{% generation %}x{% endgeneration %}", "{% for m in messages %}{% generation %}{{ m.content }}{% endfor %}",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}", "{% include 'x' %}",
    "{{ strftime_now('%Y') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ raise_exception('no') }}",
    "{% set x = messages.pop() %}",
    "{% for m in messages %}{{ m.role.upper() }}: {{ m.content | trim }}\n{% endfor %}", "\x00", "{{", "<|none|>",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ self._TemplateReference__context }}",
]  # fmt: skip


_NAMES = ["[a]", "['<|im_end|>']", "['']", "[' ']", "[a, a]", "['\\0']", "[1]", "a", "[[]]", "null"]


def _conversation(draw: random.Random) -> Any:
    roles = [draw.choice(_ROLES[: draw.choice((3, 4, 9))]) for _ in range(draw.randrange(1, 7))]
    return {"messages": [{"role": role, "content": draw.choice(_TEXTS)} for role in roles]}


def _record(draw: random.Random) -> tuple[Any, str]:
    if draw.random() < 0.4:
        return _conversation(draw), "roles and texts"
    return mutated(copy.deepcopy(draw.choice(_RECORDS)), draw, lambda: draw.choice(WEIRD))


def _alone(name: str, content: str | bytes) -> Break:
    def breaks(root: Path) -> None:
        shutil.rmtree(root / _RAW)
        write(f"{_RAW}/{name}", content)(root)

    return breaks


_GOOD = "".join(dump(each) + "\n" for each in _RECORDS * 8)
_CHAT = "tokenize.corpus.name=conversations"
FIXED: list[Case] = [
    with_set(case(f"template {template[:50]!r}", "tokenize",
                  both(_alone("a.jsonl", _GOOD), write("data/chat.jinja", template))),
             _CHAT, "tokenize.tokenizer.chat_template=data/chat.jinja")
    for template in _TEMPLATES
]  # fmt: skip


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """Good conversations with a bad one among them, and perhaps a damaged template or odd special tokens."""
    record, note = _record(draw)
    content: str | bytes = _GOOD + dump(record) + "\n"
    if draw.random() < 0.2:
        content, note = damaged(str(content).encode("utf-8", "surrogatepass"), draw), f"{note}, damaged"
    breaks = _alone(draw.choice(("a.jsonl", "a.jsonl", "a.json", "train.jsonl")), content)
    made = with_set(case(note, draw.choice(("tokenize", "tokenize", "check")), breaks), _CHAT)
    tokenizer = draw.choice(("bpe", "bpe", "characters", "bytes", "tiktoken"))
    made = with_set(made, f"tokenize.tokenizer.name={tokenizer}")
    if draw.random() < 0.3:
        template = draw.choice(_TEMPLATES)
        if draw.random() < 0.5:
            template = damaged(template.encode(), draw).decode("utf-8", "replace")
        made = with_set(made, "tokenize.tokenizer.chat_template=data/chat.jinja")
        made = Case(made.note, made.command, both(breaks, write("data/chat.jinja", template)))
    if draw.random() < 0.3:
        names = draw.choice(
            ("[a]", "['<|im_end|>']", "['']", "[' ']", "[a, a]", "['\\0']", "[1]", "a", "[[]]", "null")
        )
        made = with_set(made, f"tokenize.tokenizer.special_tokens={names}")
    return made
