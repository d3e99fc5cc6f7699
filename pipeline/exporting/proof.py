"""The parts of a proof: ids over texts, logits over real text, what the text costs, and greedy text.

Each compares a reader of the export with the checkpoint, and raises ValueError where they differ, which refuses the
export. `reader` names the program in that message.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.exporting.tokenizer_json import reads_any_text
from pipeline.plugin.bytelevel import awkward_texts
from pipeline.plugin.components import ExportSource

if TYPE_CHECKING:
    import torch

PROOF_TOKENS = 20_000
"""Of held-out text that an export is proven with."""
LARGEST_LOGIT_DIFFERENCE = 1e-4
"""Between a reader that computes in float32 and the checkpoint."""
_GREEDY_TOKENS = 32
_RANDOM_STRINGS = 2000
_TOKENS_OF_LOSS = 2048

Logits = Callable[["torch.Tensor"], "torch.Tensor"]
"""ids [B, T] → logits [B, T, V]."""


def needed(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The same error, which also says how to install what is missing."""
    return ModuleNotFoundError(f"{error}: install it with pip install -c constraints.txt -e '.[{extra}]'")


@contextmanager
def understood(file: Path, reader: str) -> Iterator[None]:
    """Whatever a reader raises over a damaged file refuses the export."""
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
    """Over a real text, every token, every code point and thousands of random strings, `encode` gives the
    checkpoint's ids, and `decode` the text. Returns how many texts that were."""
    texts = _texts(source)
    for text in texts:
        expected, got = source.encode(text).tolist(), encode(text)
        if got != expected:
            raise ValueError(f"{reader} reads {text[:40]!r} as other ids: {got[:8]}, not {expected[:8]}")
        if decode is not None and decode(got) != text:
            raise ValueError(f"{reader} does not give {text[:40]!r} back from its ids")
    return len(texts)


def check_tokenizer_json(source: ExportSource, path: Path) -> int:
    """`check_ids` of a tokenizer.json, as its own library reads it."""
    from tokenizers import Tokenizer

    with understood(path, "tokenizers"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return check_ids(source, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, path.name)


def _texts(source: ExportSource) -> list[str]:
    """A real text and thousands of awkward ones; where only some characters are known, random strings of those."""
    if not reads_any_text(source):
        known, generator = [sequence.decode() for sequence in source.ranks], random.Random(0)
        strings = ["".join(generator.choices(known, k=generator.randint(1, 40))) for _ in range(_RANDOM_STRINGS)]
        return [source.text, "".join(known), *strings]
    return [source.text, f"{source.end_of_text} as text", *_every_token(source), *awkward_texts(_RANDOM_STRINGS)]


def _every_token(source: ExportSource) -> list[str]:
    """Every token that is text, each on a line of its own: in other texts, longer tokens hide many of them."""
    tokens = [sequence.decode(errors="ignore") for sequence in source.ranks]
    return ["\n".join(tokens[start : start + 1000]) for start in range(0, len(tokens), 1000)]


# ── logits ────────────────────────────────────────────────────────────────────────────────────────


def real_rows(source: ExportSource, rows: int = 4) -> torch.Tensor:
    """Ids of held-out text [B, T]: as many whole contexts as there are, at most `rows`; else one shorter row."""
    import torch

    length = source.config["context_length"]
    ids = torch.from_numpy(source.encode(source.text)[: rows * length].astype("int64"))
    whole = len(ids) // length
    return ids[: whole * length].view(whole, length) if whole else ids[None]


def real_batches(source: ExportSource) -> list[torch.Tensor]:
    """Ids of held-out text in several batch sizes and lengths, 1 and the whole context among them; the last batch
    also holds ends of text."""
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
    """The largest difference from the checkpoint's logits, over `batches` of ids [B, T] (else `real_rows`)."""
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
    """What held-out text costs in nats a token, by the checkpoint and by a reader whose weights are rounded; there
    it may not cost `most` more."""
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
            f"by {reader} the held-out text costs {actual:.4f} nats a token, and by the checkpoint {expected:.4f}: "
            f"more than {most:g} are lost"
        )
    return expected, actual


# ── greedy text ───────────────────────────────────────────────────────────────────────────────────


def check_greedy(source: ExportSource, continued: Callable[[list[int], int], list[int]], reader: str) -> int:
    """`continued(ids, n)` are the checkpoint's n ids. Returns how many were compared: up to an end of text."""
    length = source.config["context_length"]
    prompt = real_rows(source)[0, : max(1, min(8, length // 2))].tolist()
    count = min(_GREEDY_TOKENS, length - len(prompt))
    expected = source.greedy(prompt, count)
    generated = continued(prompt, count) if count else []
    end = source.special_tokens[source.end_of_text]
    shared = expected.index(end) if end in expected else count
    if generated[:shared] != expected[:shared]:
        raise ValueError(f"{_of(reader)} greedy text differs from the checkpoint's")
    return shared


def greedily(logits: Logits) -> Callable[[list[int], int], list[int]]:
    """Greedy text of a reader that knows logits only: what `check_greedy` needs."""
    import torch

    def continued(prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(count):
                ids.append(int(logits(torch.tensor([ids]))[0, -1].argmax()))
        return ids[len(prompt) :]

    return continued


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────


def check_graph(source: ExportSource, logits: Logits, reader: str, words: Path) -> dict[str, Any]:
    """The whole proof of the model as a graph, with the tokenizer.json beside it: batches of several shapes, greedy
    text, and ids. Returns what verification.json says of it."""
    batches = real_batches(source)
    return {
        "largest_logit_difference": check_logits(source, logits, reader, batches),
        "batches": ", ".join(f"{len(each)} x {each.shape[1]}" for each in batches),
        "equal_greedy_tokens": check_greedy(source, greedily(logits), reader),
        "texts_with_equal_ids": check_tokenizer_json(source, words),
    }


def _of(reader: str) -> str:
    return f"{reader}'" if reader.endswith("s") else f"{reader}'s"
