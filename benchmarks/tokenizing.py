"""The tokenize stage compared with tiktoken alone, and the memory of tokenize and split for growing corpora."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.measure import Measured, Side, Work, measured
from benchmarks.ours import TemporaryProject
from benchmarks.results import Row, compared

_SETTINGS = (
    "tokenize.corpus.name=files",
    "tokenize.tokenizer.name=tiktoken",
    "tokenize.tokenizer.tiktoken.encoding=gpt2",
    "split.by=position",
)
_FORGET = "import shutil; shutil.rmtree('.resume', ignore_errors=True)"
"""Removes the shards of the round before."""


def run(context: Context) -> None:
    """Speed on 100 texts of 1 MB; memory for one text of 1, 10 and 100 MB."""
    text = context.text("tinyshakespeare.txt")
    if text is None:
        return
    whole = text.read_text(encoding="utf-8")
    for threads, copies in ((2, 10 if context.quick else 100), (1, 5 if context.quick else 25)):
        _speed(context, whole, threads, copies)
    _memory(context, whole, (1, 10) if context.quick else (1, 10, 100))


def _copies(text: str, count: int) -> list[str]:
    """Copies of the text with small differences, so that they are not removed as duplicates."""
    return [f"Copy {number}.\n\n{text}" for number in range(count)]


def _speed(context: Context, text: str, threads: int, copies: int) -> None:
    project = TemporaryProject(context.folder / f"speed-{threads}")
    for number, copy in enumerate(_copies(text, copies)):
        (project.raw / f"{number:03}.txt").write_text(copy, encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in project.raw.iterdir()) / 1e6
    settings = {"raw": str(project.raw), "out": str(context.folder), "threads": threads, "megabytes": megabytes}
    ours = project.side("ours", ["tokenize"], _SETTINGS, megabytes, threads, context.vocabulary)
    ours.settings["commands"].insert(0, ["python", "-c", _FORGET])
    sides = [
        ours,
        Side("tiktoken", "benchmarks.tokenizing:bare_side", settings, threads, environment=context.vocabulary),
    ]
    done = context.take_turns(sides)
    what = f"tokenizing {megabytes:,.0f} MB, {threads} thread{'s' * (threads > 1)}"
    if "tiktoken" in done:
        goal = "tokenize against tiktoken"
        context.add(compared(what, "tiktoken", done["ours"], done["tiktoken"], "MB per processor-second", goal))


def bare_side(raw: str, out: str, threads: int, megabytes: float) -> tuple[Work, dict[str, Any]]:
    """The side of tiktoken with its faster API, chosen on a part of the texts; whole processes are measured."""
    from benchmarks.measure import command

    ways = {way: _process(way, raw, out, threads, 4) for way in WAYS}
    times = {way: measured(command(*line, 1.0, threads)[0]).processor for way, line in ways.items()}
    chosen = min(times, key=lambda way: times[way])
    work, _ = command(*_process(chosen, raw, out, threads, 0), megabytes, threads)
    return work, {"setting": chosen, "tried": times}


def _process(way: str, raw: str, out: str, threads: int, files: int) -> tuple[list[list[str]], str]:
    code = f"from benchmarks.tokenizing import bare; bare({way!r}, {raw!r}, {out!r}, {threads}, {files})"
    return [["python", "-c", code]], "."


def bare(way: str, raw: str, out: str, threads: int, files: int) -> None:
    """Reads the texts, encodes them with tiktoken, and writes uint16; `files` of them, 0 for all."""
    import numpy as np
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    paths = sorted(Path(raw).iterdir())[: files or None]
    with (Path(out) / "bare.bin").open("wb") as file:
        for first in range(0, len(paths), 8):
            texts = [path.read_text(encoding="utf-8") for path in paths[first : first + 8]]
            for ids in WAYS[way](encoding, texts, threads):
                file.write(np.asarray(ids, dtype=np.uint16).tobytes())


def _batch(encoding: Any, texts: list[str], threads: int) -> list[Any]:
    found: list[Any] = encoding.encode_ordinary_batch(texts, num_threads=threads)
    return found


def _numpy(encoding: Any, texts: list[str], threads: int) -> list[Any]:
    if threads == 1:  # tiktoken is slower in threads other than the first one that used the encoding
        return [encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda text: encoding.encode_to_numpy(text, disallowed_special=()), texts))


WAYS: dict[str, Callable[[Any, list[str], int], list[Any]]] = {
    "encode_ordinary_batch": _batch,
    "encode_to_numpy in threads": _numpy,
}


def _memory(context: Context, text: str, sizes: tuple[int, ...]) -> None:
    """The ratio of the peak memory of each stage at the largest size to that at ten copies."""
    peaks: dict[str, list[Measured]] = {"tokenize": [], "split": []}
    for copies in sizes:
        project = TemporaryProject(context.folder / f"memory-{copies}")
        (project.raw / "all.txt").write_text("".join(_copies(text, copies)), encoding="utf-8")
        for stage, measured_so_far in peaks.items():
            side = project.side(stage, [stage], _SETTINGS, 1.0, 0, context.vocabulary)
            measured_so_far.append(_once(side))
    for stage, each in peaks.items():
        memory = [one.peak_memory for one in each]
        shown = " → ".join(f"{peak / 1e6:,.0f}" for peak in memory)
        times = " → ".join(f"{copies}×" for copies in sizes)
        context.add(
            Row(
                f"peak memory of {stage}, {sizes[-1]}× the corpus beside {sizes[-2]}×", "", memory[-1] / memory[-2],
                "times", "MB", memory[-1] / 1e6, memory[-2] / 1e6, rounds=[float(peak) for peak in memory],
                goal="memory does not grow with the corpus", note=f"{shown} MB for {times} the text",
            )
        )  # fmt: skip


def _once(side: Side) -> Measured:
    from benchmarks.measure import take_turns

    return take_turns([side], 1)[side.name]
