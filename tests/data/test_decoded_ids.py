"""Documents of token ids: their text and digests are those of the text, and another tokenizer is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import Project, made_up_text
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.data import decode
from pipeline.data.encode import TextDigest, encode
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugin.components import Document
from pipeline.tokenize.vocabulary import raw_bytes, train_bpe

TEXT = made_up_text(0, 3000)
TOKENIZER = train_bpe([TEXT, "café 語言 naïve 🙂 "], 400)
OTHER = train_bpe([made_up_text(1, 3000).upper(), TEXT[:100]], 400)
IDS = TOKENIZER.encode(TEXT)


def document(*blocks: Any, name: str = "d") -> Document:
    return Document(name, ids=[np.array(block, dtype=np.uint32) for block in blocks])


def digests(
    documents: Sequence[Document], tokenizer: Tokenizer = TOKENIZER
) -> Iterator[tuple[int, str | None, int]]:
    """The number of bytes, the digest and the number of ids of each document, as tokenize computes them."""
    digest, count = TextDigest(), 0
    for piece, ids, _ in encode(documents, tokenizer, 1):
        digest.update(piece.text)
        count += len(ids)
        if piece.last:
            yield digest.text_bytes, digest.value, count
            digest, count = TextDigest(), 0


@given(
    st.lists(st.text(st.sampled_from("ab é語🙂\u3000\u00a0 \n.")), min_size=1, max_size=4),
    st.integers(1, 9),
    st.data(),
)
def test_the_digest_of_ids_is_that_of_their_text(texts: list[str], size: int, data: st.DataObject) -> None:
    of_ids = []
    for text in texts:
        ids = TOKENIZER.encode(text)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=3)))
        of_ids.append(document(*(ids[start:end] for start, end in pairwise([0, *cuts, len(ids)]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "BLOCK", size)
        assert list(digests(of_ids)) == list(digests([Document("d", text) for text in texts]))


def test_a_document_that_is_cut_inside_a_character_keeps_its_bytes() -> None:
    ids = raw_bytes().encode("語言")
    assert [size for size, _, _ in digests([document(ids[1:5])], raw_bytes())] == [4]
    assert [size for size, _, _ in digests([document(ids[1:2])], raw_bytes())] == [1]


@pytest.mark.parametrize("block", [50, decode.BLOCK])
def test_the_tokenizer_that_made_the_ids_is_accepted_wherever_documents_are_cut(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "BLOCK", block)
    generator = np.random.default_rng(0)
    cuts = [0, *sorted(generator.integers(0, len(IDS), 100)), len(IDS)]
    parts = [document(IDS[start:end]) for start, end in pairwise(cuts)]
    assert sum(count for _, _, count in digests(parts)) == len(IDS)
    with_end = [[*IDS[start:end], TOKENIZER.end_of_text] for start, end in pairwise(cuts)]
    list(digests([document(*with_end)]))  # special tokens inside
    lines = [TOKENIZER.encode(line) for line in TEXT.splitlines(keepends=True)]
    list(digests([document(*lines)]))  # encoded apart, and then joined


def test_another_tokenizer_is_refused_with_the_place() -> None:
    with pytest.raises(DataError, match=r"'bpe'.*first in 'second', .* at token [\d,]+: .*tokenize.tokenizer"):
        list(digests([document([1], name="first"), document(IDS, name="second")], OTHER))


def test_it_is_refused_before_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks() -> Iterator[Any]:
        for number in range(100):
            read.append(number)
            yield IDS

    read: list[int] = []
    monkeypatch.setattr(decode, "CHECKED", 2 * len(IDS))
    with pytest.raises(DataError, match="seems not to be the one"):
        list(digests([Document("d", ids=blocks())], OTHER))
    assert len(read) < 100


def test_bytes_in_another_order_are_refused() -> None:
    ids = raw_bytes().encode(TEXT).astype("<u2")
    with pytest.raises(DataError, match=r"'d' has the id [\d,]+ \(token 0\)"):
        list(digests([Document("d", ids=[ids.byteswap()])], raw_bytes()))


@pytest.mark.parametrize("wrong", [TOKENIZER.vocab_size, -1, 2**40])
def test_an_id_beyond_the_vocabulary_is_named(wrong: int) -> None:
    ids = np.array([1, 2, 3, wrong, 4])
    with pytest.raises(
        DataError, match=rf"'d' has the id {wrong:,} \(token 8\).*'bpe' with {TOKENIZER.vocab_size} ids"
    ):
        list(digests([Document("d", ids=[IDS[:5], ids])]))


def test_an_unused_id_is_not_in_the_vocabulary() -> None:
    gap = Tokenizer("gap", TOKENIZER.pattern, TOKENIZER.ranks, {"<|endoftext|>": 500})
    with pytest.raises(DataError, match=r"'d' has the id 450 \(token 1\)"):
        list(digests([document([1, 450])], gap))


@pytest.mark.parametrize(
    ("ids", "says"),
    [("[1, 2]", "int"), ("[np.array([1.5])]", "float64 (1,)"), ("[np.array([[1]])]", "(1, 1)"), ("'ab'", "str")],
)
def test_a_corpus_that_yields_something_else_is_one_line(ids: str, says: str, project: Project) -> None:
    plugin = f"""
import numpy as np
from pipeline.plugin import Corpus, Document, hookimpl

class Wrong(Corpus):
    "Wrong ids."
    name = "wrong"

    def documents(self, root):
        yield Document("x", ids={ids})

@hookimpl
def register_corpora():
    return [Wrong]
"""
    (project.root / "plugins/corpora/wrong.py").write_text(plugin)
    result = project.run(
        "tokenize", "--set", "tokenize.corpus.name=wrong", "--set", "tokenize.tokenizer.name=bytes"
    )
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "plugins/corpora/wrong.py" in result.err
    assert says in result.err
