"""Tokenizers of characters, and byte-level BPEs made elsewhere: every text comes back, with the maker's own ids."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import Project, made_up_text
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from pipeline.core.errors import DataError
from pipeline.data.patterns import GPT2_PATTERN, cut
from pipeline.data.tokenizer import END_OF_TEXT, Tokenizer
from pipeline.data.tokenizer_file import from_file
from pipeline.data.tokens import TokenFolder
from pipeline.tokenize.vocabulary import characters, published, train_bpe

# ── characters ────────────────────────────────────────────────────────────────────────────────────


@given(st.text(min_size=1))
def test_each_character_is_a_token_in_the_order_of_code_points(text: str) -> None:
    tokenizer = characters([text])
    alphabet = sorted(set(text))
    assert tokenizer.encode(text).tolist() == [alphabet.index(character) for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_of_text == len(alphabet)
    assert int(tokenizer.byte_lengths[tokenizer.encode(text)].sum()) == len(text.encode())


@given(st.text(alphabet="ab é🙂\r\n", min_size=1), st.integers(1, 5))
def test_characters_may_be_cut_anywhere(text: str, size: int) -> None:
    tokenizer = characters(["ab é🙂\r\n"])
    parts = [tokenizer.encode(part).tolist() for part in cut(text, tokenizer.pattern, size)]
    assert [token for part in parts for token in part] == tokenizer.encode(text).tolist()


def test_a_character_that_the_corpus_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"only the 3 characters of its corpus, not 'é' \(U\+00E9\)"):
        characters(["caf"]).encode("café")


def test_tinyshakespeare_has_its_65_characters(test_data: Path) -> None:
    text = (test_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = characters([text])
    assert len(tokenizer.ranks) == 65
    assert tokenizer.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]


def test_a_project_of_characters_trains_exports_and_refuses_a_prompt_it_cannot_read(project: Project) -> None:
    for stage in ("tokenize", "split", "train", "evaluate", "export"):
        chosen = ["tokenize.tokenizer.name=characters", "train.eval_callbacks.sample_text.prompt=the river"]
        project.succeed(stage, *(part for value in chosen for part in ("--set", value)))
    result = project.run("generate", "Ω and on")
    assert result.code == 1
    assert "not 'Ω' (U+03A9)" in result.err
    assert result.err.count("\n") == 1
    proof = json.loads((project.root / "artifacts" / "export" / "verification.json").read_text())
    assert proof["reader"].startswith("transformers ")


# ── made elsewhere ────────────────────────────────────────────────────────────────────────────────

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def made_elsewhere(before: Any, special: list[str], size: int = 400) -> tokenizers.Tokenizer:
    """A BPE as the tokenizers library trains it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = before
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator([made_up_text(seed, 300) + " It's 1234567!\n\n  é語" for seed in range(8)], trainer)
    return made


def split_by(pattern: str, use_regex: bool = False) -> Any:
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)])


@pytest.mark.parametrize(
    ("before", "special"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), [END_OF_TEXT]),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), []),
        (split_by(LLAMA3), ["<|begin|>", "</s>"]),
    ],
    ids=["gpt2's words", "no special token", "llama's words"],
)
def test_a_tokenizer_json_gives_its_makers_ids(tmp_path: Path, before: Any, special: list[str]) -> None:
    made = made_elsewhere(before, special)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    end = special[-1] if special else END_OF_TEXT
    tokenizer = from_file(path, "gpt2", end)
    for seed in range(20, 40):
        text = made_up_text(seed, 200) + "\n Don't! 20 + 3 = 23\n語言 🙂"
        assert tokenizer.encode(text).tolist() == made.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_of_text == (made.token_to_id(end) if special else made.get_vocab_size())
    assert tokenizer.end_of_text not in tokenizer.encode(f"text {end} text")


def as_tiktoken(tokenizer: Tokenizer) -> str:
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in tokenizer.ranks.items()]
    return "\n".join(lines) + "\n"


def test_a_tiktoken_file_gives_the_ids_of_the_tokenizer_that_wrote_it(tmp_path: Path) -> None:
    trained = train_bpe([made_up_text(0, 500)], 350)
    path = tmp_path / "mine.tiktoken"
    path.write_text(as_tiktoken(trained))
    read = from_file(path, "gpt2", "</s>")
    assert (read.ranks, read.pattern, read.special_tokens) == (
        trained.ranks,
        GPT2_PATTERN,
        {"</s>": len(trained.ranks)},
    )
    read.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json", "").end_of_text == len(trained.ranks)


def test_gpt2_from_its_file_is_gpt2(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(test_data / "tiktoken"))
    gpt2 = published("gpt2")
    path = tmp_path / "gpt2.tiktoken"
    path.write_text(as_tiktoken(gpt2))
    read = from_file(path, "gpt2", END_OF_TEXT)
    assert (read.ranks, read.special_tokens) == (gpt2.ranks, gpt2.special_tokens)


def without_a_byte(saved: dict[str, Any]) -> None:
    del saved["model"]["vocab"]["Q"]


def with_a_merge_out_of_order(saved: dict[str, Any]) -> None:
    merges = saved["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def with_two_of_one_id(saved: dict[str, Any]) -> None:
    saved["added_tokens"][0]["id"] = 7


REFUSED: dict[str, tuple[Any, str]] = {
    "no model": (lambda saved: saved.pop("model"), "is not a tokenizer.json"),
    "normalizer": (lambda saved: saved.update(normalizer={"type": "NFC"}), "NFC"),
    "prefix space": (lambda saved: saved["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
    "whitespace": (lambda saved: saved.update(pre_tokenizer={"type": "Whitespace"}), "choose a byte-level BPE"),
    "a byte missing": (without_a_byte, "no token for the byte 0x51"),
    "merges out of order": (with_a_merge_out_of_order, "the tokenizers library give different ids"),
    "one id twice": (with_two_of_one_id, "the same id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_json_that_would_give_other_ids_is_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    path = tmp_path / "tokenizer.json"
    made_elsewhere(pre_tokenizers.ByteLevel(add_prefix_space=False), [END_OF_TEXT]).save(str(path))
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match=message):
        from_file(path, "gpt2", END_OF_TEXT)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\w+", "does not match all characters"),
        (r"(a+)+(a+)+(a+)+(?=!)|[\s\S]", r"mine.tiktoken.*\(a\+\)\+.*takes over 3 s"),
        ("(", "not a valid regular expression"),
        ("a*", r"a\*"),
    ],
)
def test_a_pattern_that_loses_text_or_never_ends_is_refused(
    tmp_path: Path, pattern: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.tokenizer_file.SECONDS", 3)
    path = tmp_path / "mine.tiktoken"
    trained = train_bpe([made_up_text(0, 500)], 350)
    over_a_space = {**trained.ranks, b"b ": 1000, b"ab": 1001, b"ba": 1002}
    path.write_text(as_tiktoken(replace(trained, ranks=over_a_space)))
    with pytest.raises(DataError, match=message):
        from_file(path, pattern, END_OF_TEXT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": r"[a-z]+"}, r"\[a-z\]\+.*does not match all characters"),
        ({"special_tokens": {END_OF_TEXT: 5}}, "the same id"),
        ({"special_tokens": {END_OF_TEXT: 2**60}}, "16,777,216"),
        ({"special_tokens": {END_OF_TEXT: -1}}, "below 0"),
        ({"end": "</s>"}, "</s>"),
    ],
)
def test_a_checkpoints_tokenizer_with_a_new_fingerprint_is_proven_too(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    replace(train_bpe([made_up_text(0, 500)], 350), **change).save(path)
    with pytest.raises(DataError, match=rf"tokenizer.json.*{message}"):
        from_file(path, "gpt2", END_OF_TEXT)


def test_a_project_trains_with_a_tokenizer_made_elsewhere(project: Project) -> None:
    made = made_elsewhere(pre_tokenizers.ByteLevel(add_prefix_space=False), ["</s>"])
    made.save(str(project.root / "data" / "tokenizer.json"))
    chosen = ["--set", "tokenize.tokenizer.name=file", "--set", "tokenize.tokenizer.file.end_of_text=</s>"]
    for stage in ("tokenize", "split", "train", "export"):
        project.succeed(stage, *chosen)
    tokens = TokenFolder(project.root / "artifacts" / "tokens", "")
    text = (project.root / "data" / "raw" / "text-00.txt").read_text()
    entry = next(iter(tokens.documents("tokens")))
    assert tokens.ids("tokens")[: entry.tokens].tolist() == [*made.encode(text).ids, made.token_to_id("</s>")]
    config = json.loads((project.root / "artifacts" / "export" / "config.json").read_text())
    assert config["eos_token_id"] == made.token_to_id("</s>")


def test_the_notes_of_the_corpus_come_once_though_the_tokenizer_is_trained_on_it(project: Project) -> None:
    (project.root / "data" / "raw" / "text-00.txt").write_bytes(b"caf\xe9 au lait")
    out = project.succeed("tokenize", "--set", "tokenize.corpus.files.errors=replace").out
    assert out.count("U+FFFD") == 1
    assert "bpe" in out
