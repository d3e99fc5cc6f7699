"""Tokens and splits record the effective params that made them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Project

from pipeline.core.errors import DataError
from pipeline.core.files import write_manifest
from pipeline.data.tokens import TokenFolder

NO_CHAT = {"special_tokens": [], "chat_template": ""}


def recorded(project: Project, folder: str) -> dict[str, Any]:
    params: dict[str, Any] = TokenFolder(project.root / "artifacts" / folder, "").meta["params"]
    return params


def test_tokenize_records_the_values_of_set_and_no_option_of_what_is_not_chosen(project: Project) -> None:
    project.succeed("tokenize", "--set", "tokenize.tokenizer.bpe.vocab_size=300")
    assert set(recorded(project, "tokens")) == {"tokenize"}
    tokenize = recorded(project, "tokens")["tokenize"]
    assert tokenize["tokenizer"] == {"name": "bpe", "bpe": {"vocab_size": 300}, **NO_CHAT}
    assert set(tokenize["corpus"]) == {"name", "files"}
    assert tokenize["corpus"]["name"] == "files"
    assert tokenize["end_of_text"] is True


def test_an_option_that_params_yaml_leaves_out_is_recorded_with_its_default(project: Project) -> None:
    project.succeed("tokenize", "--set", "tokenize.corpus.files={separator: STOP}")
    options = recorded(project, "tokens")["tokenize"]["corpus"]["files"]
    assert (options["separator"], options["encoding"], options["newlines"]) == ("STOP", "utf-8", "keep")


def test_a_corpus_without_a_section_of_its_own_is_recorded(project: Project) -> None:
    corpus = project.root / "plugins" / "corpora" / "letters.py"
    corpus.write_text(
        "from typing import ClassVar\n"
        "from pipeline.plugin import Corpus, Document, hookimpl\n"
        "class Letters(Corpus):\n"
        '    """A letter, again and again."""\n'
        '    name: ClassVar[str] = "letters"\n'
        '    letter: str = "a"\n'
        "    def documents(self, root):\n"
        "        yield Document('one', self.letter * 99)\n"
        "@hookimpl\n"
        "def register_corpora():\n"
        "    return [Letters]\n"
    )
    project.succeed("tokenize", "--set", "tokenize.corpus.name=letters")
    assert recorded(project, "tokens")["tokenize"]["corpus"] == {"name": "letters", "letters": {"letter": "a"}}


def test_split_records_its_own_params_beside_those_of_the_tokens(project: Project) -> None:
    project.succeed("tokenize", "--set", "tokenize.tokenizer.name=bytes")
    project.succeed("split", "--set", "split.seed=5")  # params.yaml says bpe, which did not make these tokens
    splits = recorded(project, "splits")
    assert set(splits) == {"tokenize", "split"}
    assert splits["tokenize"] == recorded(project, "tokens")["tokenize"]
    assert splits["tokenize"]["tokenizer"] == {"name": "bytes", **NO_CHAT}
    assert (splits["split"]["seed"], splits["split"]["val"]) == (5, 0.2)


def test_the_same_params_record_the_same_bytes(project: Project) -> None:
    contents = []
    for _ in range(2):
        project.succeed("tokenize")
        project.succeed("split")
        contents.append([path.read_bytes() for path in sorted(project.root.glob("artifacts/*/meta.json"))])
    assert len(contents[0]) == 2
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("folder", "stage"), [("tokens", "tokenize"), ("splits", "split")])
def test_a_folder_without_params_is_an_older_versions(trained_project: Project, folder: str, stage: str) -> None:
    path = trained_project.root / "artifacts" / folder / "meta.json"
    meta = json.loads(path.read_text())
    del meta["params"]
    path.write_text(json.dumps(meta))
    write_manifest(path.parent)
    with pytest.raises(DataError, match=rf"{folder}/meta.json is damaged .params: is missing.*run {stage}"):
        TokenFolder(path.parent, f"run {stage}")
