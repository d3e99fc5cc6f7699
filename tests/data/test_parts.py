"""Texts in parts: ids, special tokens, and which tokens are learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.data.encode import encode
from pipeline.data.masked import MaskedIds
from pipeline.data.parts import encode_parts
from pipeline.data.token_writer import TokenWriter, learn_name
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.tokens import TokenFolder, finish_folder
from pipeline.plugin.components import IGNORED, Document, Part
from pipeline.tokenize.documents import end_ids, write_documents
from pipeline.tokenize.vocabulary import raw_bytes, train_bpe

BPE = train_bpe(["the river runs to the sea\n\n" * 50], 300).with_special_tokens(["<|user|>"])


@pytest.mark.parametrize("tokenizer", [BPE, raw_bytes().with_special_tokens(["<|user|>"])], ids=["bpe", "bytes"])
def test_text_between_special_tokens_is_encoded_as_one_string(tokenizer: Tokenizer) -> None:
    parts = [Part("<|user|>", special=True), Part("the ri", learn=False), Part("ver\n"), Part("\nruns <|user|>")]
    ids, learn = encode_parts(parts, tokenizer)
    assert ids.tolist() == [tokenizer.special_tokens["<|user|>"], *tokenizer.encode("the river\n\nruns <|user|>")]
    size = 0
    for token, learnt in zip(ids[1:].tolist(), learn[1:].tolist(), strict=True):
        size += len(tokenizer.token_bytes[token])
        assert learnt == (size > len("the ri"))  # a token is learnt if one of its bytes is


def test_reserved_ids_follow_the_vocabulary() -> None:
    assert BPE.special_tokens["<|user|>"] == BPE.end_of_text + 1 == BPE.vocab_size - 1
    assert BPE.with_special_tokens(["<|user|>", "<|tool|>"]).special_tokens["<|tool|>"] == BPE.vocab_size


def test_an_unknown_special_token_is_named() -> None:
    with pytest.raises(DataError, match=r"<\|nobody\|>.*special_tokens"):
        encode_parts([Part("<|nobody|>", special=True)], BPE)


def written(folder: Path, documents: list[Document]) -> TokenFolder:
    with TokenWriter(folder, "tokens", BPE) as writer:
        write_documents(writer, encode(documents, BPE, 1), end_ids(BPE.end_of_text, True))
    finish_folder(folder, BPE, {"tokens": writer.summary()}, params={})
    return TokenFolder(folder, "fix")


QUESTION = [Part("the river", learn=False), Part(" runs")]


def test_what_is_learnt_is_written_beside_the_ids(tmp_path: Path) -> None:
    folder = written(tmp_path, [Document("plain", "the sea"), Document("asked", QUESTION), Document("end", "to")])
    masked, plain = folder.masked("tokens"), BPE.encode("the sea").tolist()
    read, said = BPE.encode("the river").tolist(), BPE.encode(" runs").tolist()
    end = BPE.end_of_text
    expected = [*plain, end, *[IGNORED] * len(read), *said, end, *BPE.encode("to").tolist(), end]
    assert masked.targets(0, len(masked)).tolist() == expected
    assert (tmp_path / learn_name("tokens")).stat().st_size == len(masked)
    assert folder.meta["files"]["tokens"]["learnt"] == sum(target != IGNORED for target in expected)


def test_the_end_of_a_document_is_learnt_if_its_last_part_is(tmp_path: Path) -> None:
    masked = written(tmp_path, [Document("a", [*QUESTION, Part("\n", learn=False)])]).masked("tokens")
    assert masked.targets(0, len(masked))[-2:].tolist() == [IGNORED, IGNORED]


def test_files_in_which_all_is_learnt_have_no_mask(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "parts").mkdir()
    plain = written(tmp_path / "plain", [Document("a", "the river runs")])
    parts = written(tmp_path / "parts", [Document("a", [Part("the river"), Part(" runs")])])
    assert plain.digest == parts.digest
    assert not parts.has_mask("tokens")
    assert not (tmp_path / "parts" / learn_name("tokens")).exists()


@pytest.mark.parametrize("damage", ["missing", "short", "unlisted"])
def test_a_damaged_mask_is_an_error(tmp_path: Path, damage: str) -> None:
    from pipeline.core.files import write_manifest

    written(tmp_path, [Document("a", QUESTION)])
    path = tmp_path / learn_name("tokens")
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        path.unlink()
    if damage != "missing":
        write_manifest(tmp_path)
    with pytest.raises(DataError, match=r"learn.bin.*fix"):
        TokenFolder(tmp_path, "fix")


def test_targets_past_the_end_are_cut_off() -> None:
    masked = MaskedIds(np.array([5, 6, 7], np.uint16), np.array([1, 0, 1], np.uint8))
    assert masked.targets(1, 9).tolist() == [IGNORED, 7]
    assert masked.learnt(0, 9).tolist() == [True, False, True]
    assert MaskedIds(masked.ids).learnt(1, 9).tolist() == [True, True]
