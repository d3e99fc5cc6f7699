"""Conversations about Python's documentation: questions whose answers stand in the prompt or follow from it."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.plugin import Corpus, Document, Message, split_of

from .library import Documented, modules, standard_library

_TEXT, _SIGNATURE = 240, 60
"""The longest quoted text and the longest signature in characters: with four options they fit into 256 tokens."""
_FEWEST_WORDS, _MOST_REVERSED, _MOST_REPEATED, _OPTIONS = 2, 4, 9, 4
_TURNS, _SYSTEM_SHARE = 0.5, 0.2
"""The shares of texts with several questions in one conversation, and of those in a system message."""
_EXCEPTION = re.compile(r"\b(?:[A-Z]\w*(?:Error|Exception|Warning)|StopIteration|KeyboardInterrupt|SystemExit)\b")
_SENTENCE = re.compile(r"(.+?\w{2}[)\"'`]*[.!?])(?=\s|$)")
_WORD = re.compile(r"(?<![\w.'-])[a-z]{4,10}(?![\w.'(-])")
_BLOCK = re.compile(r"^ |^(?:>>>|\.\.|[-*+|=])", re.MULTILINE)
_EXCEPTIONS = frozenset(
    {
        "ArithmeticError", "AttributeError", "EOFError", "ImportError", "IndexError", "KeyError", "LookupError",
        "MemoryError", "NameError", "NotImplementedError", "OSError", "OverflowError", "RuntimeError",
        "StopIteration", "SyntaxError", "TimeoutError", "TypeError", "UnicodeError", "ValueError",
    }
)  # fmt: skip
_PARAMETERS = frozenset({"name", "value", "path", "data", "key", "size", "mode", "encoding", "timeout", "default"})
"""Wrong options for modules that have too few others."""
_SYSTEM = "Answer questions about this text.\n\n"


@dataclass(frozen=True)
class Quote:
    """A quoted docstring, or a paragraph of one.

    Attributes:
        module: The module's name in the corpus python_docs.
        kind: "function", "class" or "module".
        name: The name of what the text describes.
        parameters: The names of a function's parameters, without self and cls.
        signature: The signature of a function.
        text: The text, without line breaks.
    """

    module: str
    kind: str
    name: str
    parameters: tuple[str, ...]
    signature: str
    text: str

    @property
    def exceptions(self) -> list[str]:
        """The exceptions that the text names, in order."""
        return list(dict.fromkeys(_EXCEPTION.findall(self.text)))

    @property
    def words(self) -> list[str]:
        """The plain words of the text, in order."""
        return _WORD.findall(self.text)

    def written(self, random: Random) -> str:
        """The quote as the prompt shows it."""
        first = self.signature if self.kind == "function" else f"{self.kind} {self.name}"
        if self.kind == "function" and random.random() < 0.5:
            return f'def {first}:\n    """{self.text}"""'
        return f"{first}\n{self.text}"


@dataclass(frozen=True)
class Module:
    """What the wrong options of a module's questions are drawn from: names of parameters, words, names of functions
    that do not begin with an underscore."""

    parameters: frozenset[str]
    words: frozenset[str]
    functions: frozenset[str]

    @classmethod
    def of(cls, quotes: Sequence[Quote]) -> "Module":
        names = (each.name for each in quotes if each.kind == "function" and not each.name.startswith("_"))
        parameters = (name for each in quotes for name in each.parameters)
        words = (word for each in quotes for word in each.words)
        return cls(frozenset([*_PARAMETERS, *parameters]), frozenset(words), frozenset(names))


@dataclass(frozen=True)
class Question:
    """A question with its answer; `kind` is its kind."""

    kind: str
    text: str
    answer: str


# ── kinds of questions ────────────────────────────────────────────────────────────────────────────


def _signature(quote: Quote, module: Module, random: Random) -> Question | None:
    if quote.kind != "function":
        return None
    asked = random.choice(("What is the signature of {}?", "Give the signature of {}.", "How is {} called?"))
    return Question("signature", asked.format(quote.name), quote.signature)


def _sentence(quote: Quote, module: Module, random: Random) -> Question | None:
    found = _SENTENCE.match(quote.text)
    if not found or len(found[1]) > _TEXT // 2:
        return None
    asked = ("What is the first sentence?", "Give the first sentence.", "Quote the first sentence of the text.")
    return Question("sentence", random.choice(asked), found[1])


def _exceptions(quote: Quote, module: Module, random: Random) -> Question | None:
    if not quote.exceptions and random.random() < 0.95:  # most texts name none
        return None
    asked = ("Which exceptions are named?", "Name the exceptions in the text.", "What exceptions does it mention?")
    return Question("exceptions", random.choice(asked), ", ".join(quote.exceptions) or "none")


def _count(quote: Quote, module: Module, random: Random) -> Question | None:
    if quote.kind != "function":
        return None
    asked = random.choice(("How many parameters does {} have?", "Count the parameters of {}."))
    return Question("count", asked.format(quote.name), str(len(quote.parameters)))


def _repeat(quote: Quote, module: Module, random: Random) -> Question | None:
    """Words of the module in any order, which no knowledge of the language can complete."""
    if len(module.words) < _MOST_REPEATED:
        return None
    asked = random.choice(("Repeat these words: {}", "Repeat: {}", "Say this again: {}"))
    words = " ".join(random.sample(sorted(module.words), random.randint(_FEWEST_WORDS, _MOST_REPEATED)))
    return Question("repeat", asked.format(words), words)


def _reverse(quote: Quote, module: Module, random: Random) -> Question | None:
    words = list(dict.fromkeys(quote.words))
    count = random.randint(_FEWEST_WORDS, _MOST_REVERSED)
    if len(words) < count:
        return None
    start = random.randint(0, len(words) - count)
    words = words[start : start + count]
    asked = random.choice(("Reverse the order of these words: {}", "Reverse: {}", "Say these words backwards: {}"))
    return Question("reverse", asked.format(" ".join(words)), " ".join(reversed(words)))


def _choose(kind: str, asked: str, answer: str, others: Iterable[str], random: Random) -> Question | None:
    """A question with options, of which one is right: each on a line of its own that begins with a dash."""
    wrong = sorted({*others} - {answer})
    if len(wrong) < _OPTIONS - 1:
        return None
    options = [answer, *random.sample(wrong, _OPTIONS - 1)]
    random.shuffle(options)
    return Question(f"choose-{kind}", "\n".join([asked, *(f"- {each}" for each in options)]), answer)


def _choose_exception(quote: Quote, module: Module, random: Random) -> Question | None:
    if not quote.exceptions:
        return None
    asked = random.choice(("Which of these exceptions is named?", "Which exception does the text mention?"))
    others = _EXCEPTIONS - {*quote.exceptions}
    return _choose("exception", asked, random.choice(quote.exceptions), others, random)


def _choose_parameter(quote: Quote, module: Module, random: Random) -> Question | None:
    if not quote.parameters:
        return None
    asked = random.choice(("Which of these is a parameter of {}?", "Which parameter does {} have?"))
    others = module.parameters - {*quote.parameters}
    return _choose("parameter", asked.format(quote.name), random.choice(quote.parameters), others, random)


def _choose_word(quote: Quote, module: Module, random: Random) -> Question | None:
    if not quote.words:
        return None
    asked = random.choice(("Which of these words is in the text?", "Which word does the text contain?"))
    shown = f"{_SYSTEM} {quote.kind} {quote.name} {quote.signature} {quote.text}"
    others = {word for word in module.words if word not in shown}
    return _choose("word", asked, random.choice(quote.words), others, random)


def _choose_function(quote: Quote, module: Module, random: Random) -> Question | None:
    """The only kind whose prompt does not hold the answer: the text describes the function."""
    if quote.kind != "function" or quote.name in quote.text or quote.name not in module.functions:
        return None
    asked = random.choice(("Which function is described: {}", "Which of these functions does this describe: {}"))
    return _choose("function", asked.format(quote.text), quote.name, module.functions, random)


_ABOUT = (_signature, _sentence, _exceptions, _choose_exception, _count, _choose_parameter, _choose_word)
"""Questions about a quote that stands before them."""
_ALONE = (_repeat, _reverse, _choose_function)
"""Questions without the quote."""
_RARE = ("exceptions", "choose-exception")
"""The kinds that are always asked: few texts name exceptions."""


# ── the corpus ────────────────────────────────────────────────────────────────────────────────────


class PythonQuestions(Corpus):
    """Conversations about the standard library's docstrings, made by rule: about 1.5 million tokens.

    The prompt quotes a docstring and asks for its signature, its first sentence, the exceptions that it names, the
    number of parameters, or for one of four options; other prompts ask to repeat or to reverse words. A document's
    name tells its module and its kind: library/asyncio/tasks.py#signature-12. All questions about a module are in
    the split in which the corpus python_docs has the module with `split.by: document` and the same three numbers,
    so that a model which was trained on python_docs has not seen the texts of val and test.
    """

    name: ClassVar[str] = "python_questions"
    chat: ClassVar[bool] = True

    seed: int = 2
    """As `split.seed` of the run on python_docs."""
    val: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """As `split.val` of it."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """As `split.test` of it."""
    questions: Annotated[int, Field(ge=1, le=9)] = 3
    """The number of questions about each docstring."""

    def documents(self, root: Path) -> Iterator[Document]:
        found = {name: list(quotes(name, docstrings)) for name, docstrings in modules(standard_library())}
        splits = {name: split_of(name, self.seed, self.val, self.test) for name in found}
        learnt = {each.text for name, split in splits.items() if split == "train" for each in found[name]}
        seen: set[str] = set()
        for name, split in splits.items():
            kept = []
            for quote in found[name]:
                if quote.text not in seen and (split == "train" or quote.text not in learnt):
                    kept.append(quote)
                    seen.add(quote.text)
            random, module, number = Random(name), Module.of(kept), 0
            for quote in kept:
                for kind, messages in self._conversations(quote, module, random):
                    asked = messages[-2].content
                    if len(messages) > 2 or asked not in seen:  # words to reverse may be those of another text
                        seen.add(asked)
                        yield Document(f"{name}#{kind}-{number}", messages=messages, split=split)
                        number += 1

    def _conversations(self, quote: Quote, module: Module, random: Random) -> Iterator[tuple[str, list[Message]]]:
        """The conversations about a quote, each with its kind."""
        about = [question for ask in _ABOUT if (question := ask(quote, module, random))]
        alone = [question for ask in _ALONE if (question := ask(quote, module, random))]
        chosen = [each for each in about if each.kind in _RARE]
        others = [each for each in (*about, *alone) if each not in chosen]
        chosen += random.sample(others, min(len(others), max(self.questions - len(chosen), 1)))
        shown = [each for each in chosen if each in about]
        if len(shown) > 1 and random.random() < _TURNS:
            yield "turns", _conversation(quote, shown, random)
        else:
            for question in shown:
                yield question.kind, _conversation(quote, [question], random)
        for question in chosen:
            if question not in shown:
                yield question.kind, [Message("user", question.text), Message("assistant", question.answer)]


def _conversation(quote: Quote, questions: Sequence[Question], random: Random) -> list[Message]:
    """A conversation about a quote, which is in the first question or in a system message."""
    text, messages = quote.written(random), []
    if random.random() < _SYSTEM_SHARE:
        messages.append(Message("system", _SYSTEM + text))
        text = ""
    for question in questions:
        messages.append(Message("user", f"{text}\n\n{question.text}" if text else question.text))
        messages.append(Message("assistant", question.answer))
        text = ""
    return messages


def quotes(module: str, docstrings: Iterable[tuple[Documented, str]]) -> Iterator[Quote]:
    """The quotes from a module's docstrings: the beginning of each, and later paragraphs that name exceptions."""
    for node, docstring in docstrings:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kind, name, parameters = "function", node.name, _parameters(node.args)
            signature = f"{name}({', '.join(parameters.values())})"
        else:
            kind = "class" if isinstance(node, ast.ClassDef) else "module"
            name = node.name if isinstance(node, ast.ClassDef) else Path(module).stem
            parameters, signature = {}, ""
        if len(signature) > _SIGNATURE:
            continue
        for number, paragraph in enumerate(docstring.split("\n\n")):
            text = _shortened(" ".join(paragraph.split()))
            if len(text.split()) < 3 or _BLOCK.search(paragraph):
                continue
            if number == 0 or _EXCEPTION.search(text):
                yield Quote(module, kind, name, tuple(parameters), signature, text)


def _parameters(arguments: ast.arguments) -> dict[str, str]:
    """The parameters of a function by name, each as it stands in the signature, without self and cls."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = [*zip(positional, defaults, strict=True)]
    if pairs and pairs[0][0].arg in ("self", "cls"):
        pairs = pairs[1:]
    written = {each.arg: _with_default(each.arg, default) for each, default in pairs}
    if arguments.vararg:
        written[arguments.vararg.arg] = f"*{arguments.vararg.arg}"
    elif arguments.kwonlyargs:
        # A bare star separates keyword-only parameters: it is written with the first of them.
        first, default = arguments.kwonlyargs[0], arguments.kw_defaults[0]
        written[first.arg] = f"*, {_with_default(first.arg, default)}"
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        written.setdefault(each.arg, _with_default(each.arg, default))
    if arguments.kwarg:
        written[arguments.kwarg.arg] = f"**{arguments.kwarg.arg}"
    return written


def _with_default(name: str, default: ast.expr | None) -> str:
    return f"{name}={ast.unparse(default)}" if default else name


def _shortened(text: str) -> str:
    """The text, or its first sentences if it is too long; empty if they are too long as well."""
    while len(text) > _TEXT:
        text = text[: text.rfind(". ", 0, len(text) - 1) + 1]
    return text
