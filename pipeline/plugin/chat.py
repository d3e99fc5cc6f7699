"""Chat templates: a conversation as the text that a model reads, and which parts of it a model learns to say.

A template has the form of Hugging Face's `chat_template`: Jinja, with the variables `messages` and
`add_generation_prompt`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline.plugin.components.corpus import ROLES, Message, Part

if TYPE_CHECKING:
    from jinja2 import Template

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The ChatML template: each turn between <|im_start|> and <|im_end|>."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

_LARGEST, _EXPONENT = 10_000, 64
"""The largest factor, and the largest exponent, in a template."""
_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)
"""What the code of a template may raise, beside Jinja's own errors."""
_MARKS = range(0xF0000, 0xFFFFE)  # private use characters
_TOKEN_LIKE = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_PROBE = (Message("user", "a"), Message("assistant", "b"))


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        source: The Jinja source.
        special_tokens: The names of the tokenizer's special tokens. In the text of a message they are plain text.
        variables: Further variables of the template, such as `bos_token` and `eos_token`.
    """

    source: str
    special_tokens: Collection[str]
    variables: Mapping[str, str] = field(default_factory=dict)

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """The parts of a conversation: what the assistant says is learnt, the token that ends its turn included.

        Raises:
            ValueError: the template cannot render the conversation, or does not show where the assistant speaks.
        """
        marks = _unused_characters(messages, 3)
        texts = _Renderer(self, marks)
        whole = texts.render(messages)
        if marks[1] in whole:  # the template has {% generation %}
            return self._split(whole, _marked(whole, marks), marks)
        spans = []
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = texts.render(messages[:number], add_generation_prompt=True)
            after = texts.render(messages[: number + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                raise ValueError(
                    f"the chat template writes the turns before message {number + 1} differently once it is said: "
                    "mark what the assistant says with {% generation %} and {% endgeneration %}"
                )
            spans.append((len(before), self._end_of_turn(after, len(before))))
        return self._split(whole, spans, marks)

    def prompt(self, messages: Sequence[Message]) -> list[Part]:
        """The parts of a conversation up to the point where the assistant begins to speak; nothing is learnt.

        Raises:
            ValueError: the template cannot render the conversation.
        """
        marks = _unused_characters(messages, 3)
        whole = _Renderer(self, marks).render(messages, add_generation_prompt=True)
        return self._split(whole, [], marks)

    @cached_property
    def end_of_turn(self) -> str:
        """The special token that ends the assistant's turn; empty if the template has none."""
        learnt = [part for part in self.parts(_PROBE) if part.learn]
        return learnt[-1].text if learnt and learnt[-1].special else ""

    def check(self) -> None:
        """Raises ValueError if the template has an error, names special tokens that the tokenizer lacks, or cannot
        end a turn because it reads an `eos_token` that is not set; or if a special token is a single character, for
        which the text of a message would be taken."""
        self.parts(_PROBE)
        if single := [name for name in self.special_tokens if len(name) == 1]:
            raise ValueError(
                f"the special token {single[0]!r} is a single character, which messages may have: give it a longer "
                "name"
            )
        for name, token in self.variables.items():
            if token and token not in self.special_tokens and name in self.source:
                raise ValueError(
                    f"the chat template writes {name}, {token!r}, which is no special token of the tokenizer: add "
                    "it to tokenize.tokenizer.special_tokens"
                )
        if "eos_token" in self.source and not self.variables.get("eos_token"):
            raise ValueError("the chat template reads eos_token: set it in tokenizer_config.json")
        if missing := sorted(set(_TOKEN_LIKE.findall(self.source)) - set(self.special_tokens)):
            raise ValueError(
                f"the chat template has {', '.join(missing)}, which the tokenizer lacks: add to "
                "tokenize.tokenizer.special_tokens"
            )

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = sorted(filter(None, self.special_tokens), key=len, reverse=True)  # the longest match first
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _end_of_turn(self, text: str, start: int) -> int:
        """The end of what the assistant says: behind the last special token, if only white space follows it."""
        last = start
        for match in self._names.finditer(text, start):
            last = match.end()
        return last if last > start and not text[last:].strip() else len(text)

    def _split(self, whole: str, spans: Sequence[tuple[int, int]], marks: Sequence[str]) -> list[Part]:
        """Divides a text at special tokens and at the ends of `spans`, which are learnt; removes the marks."""
        parts: list[Part] = []
        plain = str.maketrans("", "", "".join(marks))
        for start, end, learn in _alternating(spans, len(whole)):
            position = start
            for match in self._names.finditer(whole, start, end):
                parts.append(Part(whole[position : match.start()].translate(plain), learn))
                parts.append(Part(match.group(), learn, special=True))
                position = match.end()
            parts.append(Part(whole[position:end].translate(plain), learn))
        return [part for part in parts if part.text]


class _Renderer:
    """Renders a template so that special tokens in the text of messages stay plain text.

    marks[0] is put into them, and removed once the result is divided; marks[1] and marks[2] are the ends of
    {% generation %} blocks.
    """

    def __init__(self, template: ChatTemplate, marks: Sequence[str]) -> None:
        self._template, self._marks = template, marks
        self._names = template._names
        self._beginnings = {name[:size] for name in template.special_tokens if name for size in range(1, len(name))}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of the messages."""
        from jinja2 import TemplateError

        shown = [{"role": each.role, "content": self._protected(each.content)} for each in messages]
        compiled = _compiled(self._template.source)
        try:
            return compiled.render(
                **self._template.variables,
                messages=shown,
                add_generation_prompt=add_generation_prompt,
                tools=None,  # set, as by transformers: templates ask for it
                documents=None,
                raise_exception=_refuse,
                _generation=self._marks[1:],
            )
        except (TemplateError, *_FAULTS) as error:
            raise ValueError(f"the chat template cannot write a conversation: {_shown(error)}") from None

    def _protected(self, text: str) -> str:
        """A text with a mark inside each name of a special token, also inside one that is cut at the end: the
        template might complete it."""
        end = len(text.rstrip())
        sizes = range(1, min(end, max(map(len, self._beginnings), default=0)) + 1)
        cuts = {end - size + 1 for size in sizes if text[end - size : end] in self._beginnings}
        match = self._names.search(text)
        while match:  # names may overlap
            cuts.add(match.start() + 1)
            match = self._names.search(text, match.start() + 1)
        return self._marks[0].join(text[first:last] for first, last in pairwise([0, *sorted(cuts), len(text)]))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    from jinja2 import TemplateError

    try:
        template: Template = _environment().from_string(source)
    except TemplateError as error:
        raise ValueError(f"the chat template has an error: {_shown(error)}") from None
    return template


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} … {% endgeneration %}: what the assistant says."""

        tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_mark", [nodes.Name("_generation", "load")])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, marks: Sequence[str], caller: Callable[[], str]) -> str:
            return f"{marks[0]}{caller()}{marks[1]}"

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also refuses products that would fill the memory."""

        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(each) if isinstance(each, Sized) else abs(each) for each in (left, right)]
            if max(sizes) > _LARGEST or (operator == "**" and min(sizes) > _EXPONENT):
                raise SecurityError(f"{operator} of so large values is not allowed")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    return environment


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _shown(error: Exception) -> str:
    number = getattr(error, "lineno", None)
    line = f"line {number}: " if number else ""
    return line + " ".join((str(error) or type(error).__name__).split())


def _unused_characters(messages: Sequence[Message], count: int) -> list[str]:
    """Characters that no message has."""
    used = set[str]().union(*(message.content for message in messages))
    if not messages:
        raise ValueError("a conversation without messages")
    for message in messages:
        if message.role not in ROLES:
            raise ValueError(f"there is no role {message.role!r} (there are: {', '.join(ROLES)})")
    unused = (character for character in map(chr, _MARKS) if character not in used)
    return [next(unused) for _ in range(count)]


def _marked(whole: str, marks: Sequence[str]) -> list[tuple[int, int]]:
    """The spans between marks[1] and marks[2], marks included."""
    return [match.span() for match in re.finditer(f"{marks[1]}[^{marks[2]}]*{marks[2]}", whole)]


def _alternating(spans: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int, bool]]:
    """The spans and what is between them, with whether it is a span."""
    position = 0
    for first, last in spans:
        yield position, first, False
        yield first, last, True
        position = last
    yield position, end, False
