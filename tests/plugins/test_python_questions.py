"""The corpus python_questions: its answers are right, and its held-out modules are those of the default run."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.plugin import Document, split_of
from pipeline.plugin.components import Corpus
from pipeline.plugin.registry import Registry

REGISTRY = Registry.load(REPOSITORY / "plugins", ["corpora"])
QUESTIONS = sys.modules["plugins.corpora.python_docs.questions"]

SHARED = "Return the shared text of two modules."
MODULE = '''"""Read and write {0} files."""

class {0}Reader:
    """A reader that is {0}. It raises ValueError at the end."""

    def read(self, size=-1, *, {0}=None):
        """Read up to {0} size bytes from the file and return them.

        Raises KeyError or OSError if the file was closed by {0} before.
        """

    def close(self):
        """Close the {0} file; nothing can be read after that."""

def find(path, *names, **options):
    """Find every {0} below the path that has one of the names."""

def shared():
    """{1}"""
'''


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """The corpus of a small library: 60 modules, and one whose text is in another, too."""
    for number in range(60):
        text = SHARED if number % 2 else f"Return the text of module {number} and no other."
        (tmp_path / f"m{number}.py").write_text(MODULE.format(f"color{number}", text))
    monkeypatch.setattr(QUESTIONS, "standard_library", lambda: tmp_path)
    return made()


def made(**options: Any) -> Corpus:
    built: Corpus = REGISTRY.build("corpora", "python_questions", {"python_questions": options}, "tokenize.corpus")
    return built


def kind(document: Document) -> str:
    found = re.fullmatch(r"library/.+\.py#([a-z-]+)-\d+", document.name)
    assert found, document.name
    return found[1]


def turns(document: Document) -> list[tuple[str, str, str]]:
    """Everything that was said before an answer, the question, and the answer."""
    assert document.messages is not None
    said = [message.content for message in document.messages]
    roles = [message.role for message in document.messages]
    first = roles.index("user")
    assert roles[first:] == ["user", "assistant"] * (len(roles[first:]) // 2)
    assert roles[:first] in ([], ["system"])
    return [("\n".join(said[:at]), said[at - 1], said[at]) for at in range(first + 1, len(said), 2)]


def parameters(said: str) -> list[str]:
    """The parameters of the signature in a quote."""
    found = re.search(r"\((.*)\)", said)
    assert found, said
    return found[1].split(", ")


def test_it_makes_the_same_conversations_again(corpus: Corpus, tmp_path: Path) -> None:
    documents = list(corpus.documents(tmp_path))
    assert documents == list(corpus.documents(tmp_path))
    assert len({each.name for each in documents}) == len(documents)
    assert {kind(each) for each in documents} == {
        "signature", "sentence", "exceptions", "count", "repeat", "reverse", "turns",
        "choose-exception", "choose-parameter", "choose-word", "choose-function",
    }  # fmt: skip


def test_a_module_is_in_the_split_that_it_has_in_the_default_run(corpus: Corpus, tmp_path: Path) -> None:
    for document in corpus.documents(tmp_path):
        assert document.split == split_of(document.name.partition("#")[0], seed=2, val=0.05, test=0.05)
    other = {each.split for each in made(test=0.0, val=0.5, seed=3).documents(tmp_path)}
    assert other == {"train", "val"}


def test_no_text_is_quoted_in_two_splits(corpus: Corpus, tmp_path: Path) -> None:
    quoting = [
        each
        for each in corpus.documents(tmp_path)
        if any(SHARED.removesuffix(".") in said for said, _, _ in turns(each))
    ]
    assert {each.split for each in quoting} == {"train"}
    assert len({each.name.partition("#")[0] for each in quoting}) == 1


def test_the_answers_are_right(corpus: Corpus, tmp_path: Path) -> None:
    answered: Counter[str] = Counter()
    for document in corpus.documents(tmp_path):
        for said, question, answer in turns(document):
            asked = question.rpartition("\n\n")[2]
            match kind(document):
                case "signature":
                    assert answer in said
                    assert re.search(rf"\b{answer.partition('(')[0]}\b", asked)
                case "sentence":
                    assert answer in said
                    assert re.fullmatch(r"[^.]+[.;]", answer)
                case "exceptions":
                    named = re.findall(r"\b\w+Error\b", said)
                    assert answer == (", ".join(dict.fromkeys(named)) or "none")
                case "count":
                    names = [each for each in parameters(said) if each not in ("", "*")]
                    assert answer == str(len(names))
                case "repeat":
                    assert asked.endswith(f": {answer}")
                case "reverse":
                    assert asked.endswith(": " + " ".join(reversed(answer.split())))
                case "choose-function":
                    assert f"\n- {answer}" in question
                    assert answer not in question.partition("\n-")[0].split()
                case chosen if chosen.startswith("choose"):
                    options = re.findall(r"^- (.+)$", asked, re.MULTILINE)
                    text = said.removesuffix(asked)
                    if chosen == "choose-parameter":
                        text = " ".join(parameters(text))
                    assert len(set(options)) == 4
                    assert [each for each in options if re.search(rf"\b{each}\b", text)] == [answer]
            answered[kind(document)] += 1
    assert min(answered.values()) > 20


def test_a_signature_is_written_as_it_is_called() -> None:
    code = "def f(self, a, /, b=1, *, c='x', d): 'Text of three words.'\nclass C: 'Text of three words too.'"
    (tree,) = [compile(code, "", "exec", flags=1 << 10)]
    docstrings = [(node, "Text of three words.") for node in tree.body]
    function, other = QUESTIONS.quotes("library/m.py", docstrings)
    assert (function.signature, function.parameters) == ("f(a, b=1, *, c='x', d)", ("a", "b", "c", "d"))
    assert (other.kind, other.signature) == ("class", "")


def test_a_long_text_is_quoted_up_to_the_end_of_a_sentence() -> None:
    sentences = [f"Sentence {number} says {'much ' * 10}here." for number in range(9)]
    tree = compile("class C: 'x'", "", "exec", flags=1 << 10)
    (quote,) = QUESTIONS.quotes("library/m.py", [(tree.body[0], "\n".join(sentences))])
    assert quote.text == " ".join(sentences[:3])
    assert list(QUESTIONS.quotes("library/m.py", [(tree.body[0], "word " * 100)])) == []


def test_code_is_not_quoted() -> None:
    tree = compile("class C: 'x'", "", "exec", flags=1 << 10)
    for docstring in (">>> raise ValueError for this", "- one item raises it", "| a table raises it"):
        assert list(QUESTIONS.quotes("library/m.py", [(tree.body[0], docstring)])) == [], docstring
