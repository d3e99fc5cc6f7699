"""Exceptions and invalid results of samplers, corpora and classes become one line that names the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Project

from pipeline.core.errors import PipelineError, PluginError
from pipeline.core.paths import Paths
from pipeline.model.generate import draw
from pipeline.plugin.components import Corpus, Document, Sampler
from pipeline.plugin.registry import Registry
from pipeline.tokenize.documents import read_corpus

HERE = Path(__file__).name


def leave() -> Any:
    raise SystemExit(0)


SAMPLERS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "leaves": (lambda logits: leave(), "raised SystemExit: 0"),
    "None": (lambda logits: None, "must return logits, not NoneType"),
    "whole numbers": (lambda logits: logits.long(), "torch.int64"),
    "narrower": (lambda logits: logits[:, 1:], "returned [2, 4]"),
    "flat": (lambda logits: logits.flatten(), "returned [10]"),
    "elsewhere": (lambda logits: logits.to("meta"), "on meta"),
    "+inf": (lambda logits: logits.fill_(math.inf), "+inf"),
    "one +inf": (lambda logits: logits.scatter(1, torch.zeros(2, 1).long(), math.inf), "+inf"),
    "all -inf": (lambda logits: logits.fill_(-math.inf), "no token to draw"),
    "nan": (lambda logits: logits.scatter(1, torch.zeros(2, 1).long(), math.nan), "NaN"),
}


def blocks() -> Iterator[str]:
    yield "one"
    leave()


CORPORA: dict[str, tuple[Callable[[], Any], str]] = {
    "leaves": (leave, "raised SystemExit: 0"),
    "None": (lambda: None, "'NoneType' object is not iterable"),
    "texts": (lambda: ["text"], "not str"),
    "no name": (lambda: [Document("", "text")], "without a name"),
    "a number for a name": (lambda: [Document(5, "text")], "must yield Document"),  # type: ignore[arg-type]
    "no text": (lambda: [Document("a", None)], "not NoneType"),  # type: ignore[arg-type]
    "bytes": (lambda: [Document("a", b"text")], "not bytes"),  # type: ignore[arg-type]
    "a block of bytes": (lambda: [Document("a", ["text", b"text"])], "not bytes"),  # type: ignore[list-item]
    "surrogate": (lambda: [Document("a", "\ud800")], r"'\ud800'"),
    "surrogate in a block": (lambda: [Document("a", ["text", "\udfff"])], r"'\udfff'"),
    "odd side": (lambda: [Document("a", "text", "dev")], "'dev'"),
    "leaves in a block": (lambda: [Document("a", blocks())], "raised SystemExit: 0"),
}


class OddSampler(Sampler):
    """Returns an invalid result."""

    name: ClassVar[str] = "odd"
    case: str

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = SAMPLERS[self.case][0](logits.clone())
        return result


class OddCorpus(Corpus):
    """Yields invalid documents."""

    name: ClassVar[str] = "odd"
    case: str

    def documents(self, root: Path) -> Iterator[Document]:
        documents: Iterator[Document] = CORPORA[self.case][0]()
        return documents


@pytest.mark.parametrize("case", SAMPLERS)
def test_a_sampler_that_fails_is_one_line(case: str) -> None:
    with pytest.raises(PluginError) as error:
        draw(torch.zeros(2, 5), torch.zeros(2, 1).long(), [OddSampler(case=case)], None)
    for part in ("the sampler 'odd'", HERE, SAMPLERS[case][1]):
        assert part in str(error.value)


@pytest.mark.parametrize("case", CORPORA)
def test_a_corpus_that_fails_is_one_line(tmp_path: Path, case: str) -> None:
    documents = read_corpus(OddCorpus(case=case), Paths(tmp_path))
    with pytest.raises(PipelineError) as error:
        list(chain.from_iterable(document.text for document in documents))
    for part in ("the corpus 'odd'", HERE, CORPORA[case][1]):
        assert part in str(error.value)


SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar
from pydantic import Field, field_serializer
from pipeline.plugin import Loss, hookimpl
{decorator}
class Mine(Loss):
    """Mine."""
    name: ClassVar[str] = "mine"
    {body}
    def __call__(self, output, targets):
        return output.cross_entropy(targets)
@hookimpl
def register_losses():
    return [Mine]
'''
CLASSES = {
    "post init": ("", "def model_post_init(self, context): raise KeyError('absent')", "KeyError: 'absent'"),
    "leaves": ("", "def model_post_init(self, context): raise SystemExit(0)", "SystemExit: 0"),
    "default factory": ("", "size: int = Field(default_factory=lambda: 1 / 0)", "ZeroDivisionError"),
    "missing package": ("", "def model_post_init(self, context): import nonsense_module", "install the package"),
    "dataclass": ("@dataclass", "size: int = 1", "remove @dataclass"),
    "unwritable": ("", "size: type = int", "params.yaml"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_class_that_fails_is_one_line_and_the_others_are_listed(project: Project, case: str) -> None:
    decorator, body, says = CLASSES[case]
    file = project.root / "plugins" / "losses" / "mine.py"
    file.write_text(SOURCE.format(decorator=decorator, body=body))
    checked = project.run("plugins", "check", "plugins/losses/mine.py")
    assert checked.code == 1
    assert checked.err.count("\n") == 1
    listed = project.succeed("plugins", "list", "losses").out
    assert "focal  ·  plugins/losses/focal.py" in listed
    with pytest.raises(PipelineError) as error:
        Registry.load(project.root / "plugins", ["losses"]).build("losses", "mine", {}, "train.loss")
    for text in (checked.err, listed, str(error.value)):
        assert says in " ".join(text.split())
        assert "plugins/losses/mine.py" in text


def test_a_plugin_does_not_see_the_command_line(project: Project) -> None:
    source = SOURCE.format(decorator="import argparse; argparse.ArgumentParser().parse_args()", body="")
    (project.root / "plugins" / "losses" / "mine.py").write_text(source)
    assert Registry.load(project.root / "plugins", ["losses"]).broken == []


def test_options_of_named_types_are_in_the_schema(project: Project) -> None:
    enum = "from enum import Enum\nclass Color(Enum):\n    RED = 'red'\n    BLUE = 'blue'"
    source = SOURCE.format(decorator=enum, body="color: Color = Color.RED")
    (project.root / "plugins" / "losses" / "mine.py").write_text(source)
    (project.root / "docs").mkdir(exist_ok=True)
    project.succeed("schema")
    assert '"blue"' in (project.root / "params.schema.json").read_text(encoding="utf-8")
    assert '"red" or "blue"' in project.succeed("plugins", "show", "mine").out
