"""Checks for `Exporter.verify`: ids of texts, logits and loss of held-out text, and greedy text. Those of
conversations are in `pipeline.exporting.chat_proof`.

Each check compares a reader of the export with the checkpoint, and raises ValueError if they differ, which rejects
the export. `reader` is the name of the program in the message.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.exporting.tokenizer_json import is_byte_level
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.components import ExportSource

if TYPE_CHECKING:
    import torch

PROOF_TOKENS = 20_000
"""The number of held-out tokens to verify an export with."""
LARGEST_LOGIT_DIFFERENCE = 1e-4
"""The tolerance for logits of a reader that computes in float32."""
_GREEDY_TOKENS = 32
_RANDOM_STRINGS = 2000
_TOKENS_OF_LOSS = 2048

Logits = Callable[["torch.Tensor"], "torch.Tensor"]
"""ids [B, T] → logits [B, T, V]."""


def missing_package(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The same error with the command that installs the missing package."""
    return ModuleNotFoundError(f"{error}: install it with pip install -c constraints.txt -e '.[{extra}]'")


@contextmanager
def reader_errors(file: Path, reader: str) -> Iterator[None]:
    """Context manager: turns any exception of a reader into a ValueError, which rejects the export."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{reader} cannot read {file.name} ({type(error).__name__}: {reason})") from error


# ── ids ───────────────────────────────────────────────────────────────────────────────────────────


def check_ids(
    source: ExportSource,
    encode: Callable[[str], list[int]],
    reader: str,
    decode: Callable[[list[int]], str] | None = None,
) -> int:
    """Checks that `encode` gives the checkpoint's ids, and that `decode` gives the text back.

    The texts are held-out text, every token, every code point, and thousands of random strings.

    Returns:
        The number of texts.
    """
    texts = _texts(source)
    for text in texts:
        expected, got = source.encode(text).tolist(), encode(text)
        if got != expected:
            raise ValueError(f"{reader} encodes {text[:40]!r} as {got[:8]}, not {expected[:8]}")
        if decode is not None and decode(got) != text:
            raise ValueError(f"{reader} does not decode the ids of {text[:40]!r} to this text")
    return len(texts)


def check_tokenizer_json(source: ExportSource, path: Path) -> int:
    """`check_ids` for a tokenizer.json, read with the library `tokenizers`."""
    from tokenizers import Tokenizer

    with reader_errors(path, "tokenizers"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return check_ids(source, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, path.name)


def _texts(source: ExportSource) -> list[str]:
    """Held-out text and thousands of difficult texts; for a character tokenizer, random strings of its
    characters."""
    if not is_byte_level(source):
        known, generator = [sequence.decode() for sequence in source.ranks], random.Random(0)
        strings = ["".join(generator.choices(known, k=generator.randint(1, 40))) for _ in range(_RANDOM_STRINGS)]
        return [source.text, "".join(known), *strings]
    names = " ".join(source.special_tokens)
    return [source.text, f"{names} as text", *_every_token(source), *awkward_texts(_RANDOM_STRINGS)]


def _every_token(source: ExportSource) -> list[str]:
    """Texts with every token on a separate line: elsewhere, many tokens only occur inside longer ones."""
    tokens = [sequence.decode(errors="ignore") for sequence in source.ranks]
    return ["\n".join(tokens[start : start + 1000]) for start in range(0, len(tokens), 1000)]


# ── logits ────────────────────────────────────────────────────────────────────────────────────────


def real_rows(source: ExportSource, rows: int = 4) -> torch.Tensor:
    """Ids of held-out text [B, T]: up to `rows` full contexts, or one shorter row if the text is shorter."""
    import torch

    length = source.config["context_length"]
    ids = torch.from_numpy(source.encode(source.text)[: rows * length].astype("int64"))
    full_rows = len(ids) // length
    return ids[: full_rows * length].view(full_rows, length) if full_rows else ids[None]


def real_batches(source: ExportSource) -> list[torch.Tensor]:
    """Ids of held-out text in several batch sizes and lengths, including 1 and the full context. The last batch
    also has end-of-text ids."""
    import torch

    length = source.config["context_length"]
    ids = torch.from_numpy(source.encode(source.text).astype("int64"))
    shapes = [(1, 1), (1, length), (2, max(length - 1, 1)), (3, max(length // 2, 1)), (5, min(length, 3))]
    batches = [ids.repeat(-(-b * t // len(ids)))[: b * t].view(b, t).clone() for b, t in shapes]
    batches[-1][:, batches[-1].shape[1] // 2] = source.special_tokens[source.end_of_text]
    return batches


def check_logits(
    source: ExportSource,
    logits: Logits,
    reader: str,
    batches: Sequence[torch.Tensor] | None = None,
    tolerance: float = LARGEST_LOGIT_DIFFERENCE,
) -> float:
    """Compares logits over `batches` of ids [B, T] (default: `real_rows`); returns the largest absolute
    difference."""
    import torch

    difference = 0.0
    for tokens in [real_rows(source)] if batches is None else batches:
        with torch.inference_mode():
            got, expected = logits(tokens).float(), source.logits(tokens)
        if got.shape != expected.shape:
            raise ValueError(f"{_of(reader)} logits are {list(got.shape)}, not {list(expected.shape)}")
        here = float((got - expected).abs().max())
        if not here <= tolerance:
            raise ValueError(f"{_of(reader)} logits differ by {here:.2e}, more than {tolerance:.0e}")
        difference = max(difference, here)
    return difference


def check_loss(source: ExportSource, logits: Logits, reader: str, most: float) -> tuple[float, float]:
    """Compares the loss of held-out text, for a reader with rounded weights; it may increase by at most `most`
    nats.

    Returns:
        The losses of the checkpoint and of the reader, in nats per token.
    """
    import torch
    from torch.nn.functional import cross_entropy

    rows = real_rows(source, max(4, _TOKENS_OF_LOSS // source.config["context_length"]))
    targets = rows[:, 1:].flatten()
    with torch.inference_mode():
        expected, actual = (
            float(cross_entropy(each(rows)[:, :-1].float().flatten(0, 1), targets, reduction="sum"))
            / max(len(targets), 1)
            for each in (source.logits, logits)
        )
    if not actual - expected <= most:
        raise ValueError(
            f"the loss of {reader} on held-out text is {actual:.4f} nats per token, and {expected:.4f} with the "
            f"checkpoint: it may increase by {most:g} at most"
        )
    return expected, actual


# ── greedy text ───────────────────────────────────────────────────────────────────────────────────


def check_greedy(source: ExportSource, continued: Callable[[list[int], int], list[int]], reader: str) -> int:
    """Checks that `continued(ids, n)` gives the checkpoint's greedy ids, up to the end of a document or a turn;
    returns their number."""
    length = source.config["context_length"]
    prompt = real_rows(source)[0, : max(1, min(8, length // 2))].tolist()
    count = min(_GREEDY_TOKENS, length - len(prompt))
    expected = source.greedy(prompt, count)
    generated = continued(prompt, count) if count else []
    shared = next((place for place, token in enumerate(expected) if token in source.ends), count)
    if generated[:shared] != expected[:shared]:
        raise ValueError(f"{_of(reader)} greedy text differs from the checkpoint's")
    return shared


def greedy_from_logits(logits: Logits) -> Callable[[list[int], int], list[int]]:
    """The greedy continuation for `check_greedy`, from a reader that only computes logits."""
    import torch

    def continued(prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(count):
                ids.append(int(logits(torch.tensor([ids]))[0, -1].argmax()))
        return ids[len(prompt) :]

    return continued


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────


def check_graph(source: ExportSource, logits: Logits, reader: str, tokenizer_file: Path) -> dict[str, Any]:
    """Runs all checks for an exported graph and its tokenizer.json: logits in several shapes, greedy text, and ids.

    Returns:
        The entries for verification.json.
    """
    batches = real_batches(source)
    return {
        "largest_logit_difference": check_logits(source, logits, reader, batches),
        "batches": ", ".join(f"{len(each)} x {each.shape[1]}" for each in batches),
        "equal_greedy_tokens": check_greedy(source, greedy_from_logits(logits), reader),
        "texts_with_equal_ids": check_tokenizer_json(source, tokenizer_file),
    }


def _of(reader: str) -> str:
    return f"{reader}'" if reader.endswith("s") else f"{reader}'s"
