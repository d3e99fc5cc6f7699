"""Tokenizing large corpora, compared with what others do: `python -m benchmarks.corpora --megabytes 10 100`.

Measured are copies of tinyshakespeare with gpt2's encoding: as files of 1 MB, and as one file. `--others PYTHON`
names a Python that has the packages datasets and datatrove, if this one has not.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import ROOT
from benchmarks.ours import TemporaryProject

SETTINGS = (
    "tokenize.corpus.name=files",
    "tokenize.tokenizer.name=tiktoken",
    "tokenize.tokenizer.tiktoken.encoding=gpt2",
)
_SECONDS_BETWEEN_SAMPLES = 0.1


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds of processors and of the clock, and the peak memory of all its processes."""

    processor: float
    wall: float
    memory: int


def cost(
    command: Sequence[str], folder: Path, cpus: int, stop_after: float | None = None, code: int = 0
) -> tuple[Cost, str]:
    """Runs a command on some processors; returns what it took, and its output.

    Args:
        command: The command.
        folder: Where it runs.
        cpus: The number of processors.
        stop_after: Seconds after which it is sent SIGINT.
        code: Its exit code.
    """

    def limit() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])

    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    sampled = dict[int, float]()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, preexec_fn=limit, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    output = list[str]()
    reader = threading.Thread(target=lambda: output.append(process.communicate()[0]))
    reader.start()
    while reader.is_alive():
        peak = max(peak, _sample(process.pid, sampled))
        reader.join(_SECONDS_BETWEEN_SAMPLES)
        if stop_after is not None and time.perf_counter() - start > stop_after:
            process.send_signal(signal.SIGINT)
            stop_after = None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in (0, code):
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}: {output[0][-2000:]}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = max(seconds, sum(sampled.values()))  # nobody waits for the processes of some programs
    return Cost(seconds, time.perf_counter() - start, peak), output[0]


def _sample(pid: int, seconds: dict[int, float]) -> int:
    """The memory of a process and all that it started; shared pages count once (PSS). Their processor seconds are
    put into `seconds`."""
    total = 0
    with suppress(psutil.Error, OSError):
        for each in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.Error, OSError):
                times = each.cpu_times()
                seconds[each.pid] = times.user + times.system
                rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="utf-8")
                found = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
                total += int(found[1]) * 1024 if found else 0
    return total


def disk(*folders: Path) -> int:
    """The bytes of all files, hard links once."""
    files = [each.stat() for folder in folders for each in folder.rglob("*") if each.is_file()]
    return sum({each.st_ino: each.st_size for each in files}.values())


def ours(folder: Path, megabytes: int, texts: Iterator[str], one_file: bool) -> Iterator[str]:
    """The rows of the pipeline."""
    project = TemporaryProject(folder)
    write_texts(project.raw, texts, megabytes, one_file)
    size = disk(project.raw)
    options = [part for value in SETTINGS for part in ("--set", value)]
    command = [sys.executable, "-m", "pipeline", "tokenize", *options]
    store, tokens = folder / ".resume", folder / "artifacts" / "tokens"
    what = f"{size / 1e6:,.0f} MB in {'one file' if one_file else 'files of 1 MB'}"

    def fresh(cpus: int) -> Cost:
        shutil.rmtree(store, ignore_errors=True)
        return cost(command, folder, cpus)[0]

    for cpus in (1, 2):
        taken = fresh(cpus)
        yield row(f"{what}, {cpus} process{'es' * (cpus > 1)}", taken, size, disk(store, tokens))
    first = {path.name: path.read_bytes() for path in tokens.iterdir()}
    yield row(f"{what}, again", cost(command, folder, 2)[0], size)
    shutil.rmtree(store, ignore_errors=True)
    taken_by_dask, _ = cost([sys.executable, "-c", DASK, *command], folder, 2)
    same = first == {path.name: path.read_bytes() for path in tokens.iterdir()}
    yield row(
        f"{what}, 2 Dask workers, started for it, {'the same' if same else 'OTHER'} bits", taken_by_dask, size
    )
    shutil.rmtree(store, ignore_errors=True)
    begun, _ = cost(command, folder, 2, stop_after=random.uniform(0.3, 0.9) * taken.wall, code=130)
    done, out = cost(command, folder, 2)
    same = first == {path.name: path.read_bytes() for path in tokens.iterdir()}
    kept = re.search(r"(\d+ of \d+) shards are kept", out)
    how = f"{kept[1] if kept else 'none'} kept, {'the same' if same else 'OTHER'} bits"
    yield row(f"{what}, interrupted after {begun.wall:.1f} s", begun, size)
    yield row(f"{what}, continued: {how}", done, size)
    (project.raw / "zz.txt").write_text(next(texts), encoding="utf-8")
    yield row(f"{what}, one file more", cost(command, folder, 2)[0], size)


DASK = """
import subprocess, sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = f"runtime.dask={cluster.scheduler_address}"
        sys.exit(subprocess.run([*sys.argv[1:], "--set", address]).returncode)
"""
"""Runs a command of the pipeline with a scheduler and two workers on this machine."""


def write_texts(raw: Path, texts: Iterator[str], megabytes: int, one_file: bool) -> None:
    """Writes copies of about the given size."""
    written, number = 0, 0
    while written < megabytes * 1_000_000:
        text = next(texts)
        with (raw / ("all.txt" if one_file else f"{number:05}.txt")).open("a", encoding="utf-8") as file:
            written += file.write(text)
        number += 1


def row(what: str, taken: Cost, size: int, occupied: int | None = None) -> str:
    """A line of the table."""
    on_disk = "" if occupied is None else f"{occupied / size:.2f}"
    return (
        f"| {what} | {taken.processor:.1f} | {taken.processor / size * 1e9:.0f} | {taken.wall:.1f} | "
        f"{taken.memory / 1e6:,.0f} | {on_disk} |"
    )


# ── what others do ────────────────────────────────────────────────────────────────────────────────

NANOGPT = """
import sys, multiprocessing, pathlib, numpy as np, tiktoken
encoding = tiktoken.get_encoding("gpt2")
def encode(path):
    ids = encoding.encode_ordinary(path.read_text(encoding="utf-8"))
    return [*ids, encoding.eot_token]
if __name__ == "__main__":
    paths = sorted(pathlib.Path("data/raw").iterdir())
    with multiprocessing.Pool(int(sys.argv[1])) as pool:
        lengths, rows = [], []
        parts = [np.array(ids, dtype=np.uint16) for ids in pool.imap(encode, paths)]
    out = np.memmap("train.bin", dtype=np.uint16, mode="w+", shape=(sum(map(len, parts)),))
    start = 0
    for part in parts:
        out[start:start + len(part)] = part
        start += len(part)
    out.flush()
"""
"""The way of nanoGPT's prepare.py, without the package datasets: encode_ordinary per document, then a memmap."""

DATASETS = """
import sys, numpy as np, tiktoken
from datasets import load_dataset
encoding = tiktoken.get_encoding("gpt2")
def encode(example):
    ids = encoding.encode_ordinary(example["text"])
    ids.append(encoding.eot_token)
    return {"ids": ids, "len": len(ids)}
if __name__ == "__main__":
    processes = int(sys.argv[1])
    files = {"data_files": "data/raw/*.txt", "cache_dir": "cache"}
    texts = load_dataset("text", sample_by="document", split="train", **files)
    made = texts.map(encode, remove_columns=["text"], num_proc=processes)
    out = np.memmap("train.bin", dtype=np.uint16, mode="w+", shape=(int(np.sum(made["len"])),))
    start = 0
    count = min(64, len(made))
    for number in range(count):
        ids = np.concatenate(made.shard(count, number, contiguous=True).with_format("numpy")["ids"])
        out[start:start + len(ids)] = ids
        start += len(ids)
    out.flush()
"""
"""nanoGPT's prepare.py as it is, with the package datasets."""

DATATROVE = """
import sys, json, pathlib
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    processes = int(sys.argv[1])
    steps = [
        JsonlReader("jsonl", compression=None),
        DocumentTokenizer("tokens", local_working_dir="working", tokenizer_name_or_path="tokenizer.json",
                          eos_token="<|endoftext|>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, tasks=processes, workers=processes, logging_dir="logs").run()
"""
"""datatrove with the same merges for the package tokenizers."""


def others(folder: Path, megabytes: int, texts: Callable[[], Iterator[str]], python: str) -> Iterator[str]:
    """The rows of other programs."""
    for name, code in (("nanoGPT's way", NANOGPT), ("datasets", DATASETS), ("datatrove", DATATROVE)):
        module = "tiktoken" if name == "nanoGPT's way" else name
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
            yield f"| {name} is not installed | | | | | |"
            continue
        for cpus in (1, 2):
            place = folder / f"{name.split(chr(39))[0]}-{cpus}"
            (place / "data" / "raw").mkdir(parents=True)
            write_texts(place / "data" / "raw", texts(), megabytes, one_file=False)
            (place / "prepare.py").write_text(code, encoding="utf-8")
            if name == "datatrove":
                _for_datatrove(place, cpus)
            size = disk(place / "data" / "raw")
            taken, _ = cost([python, "prepare.py", str(cpus)], place, cpus)
            made = disk(*(place / each for each in ("cache", "tokens")))
            made += sum(each.stat().st_size for each in place.glob("*.bin"))
            yield row(f"{size / 1e6:,.0f} MB: {name}, {cpus} process{'es' * (cpus > 1)}", taken, size, made)
            shutil.rmtree(place)


def _for_datatrove(place: Path, files: int) -> None:
    """Writes the texts as JSON lines, and gpt2 as a tokenizer.json."""
    import json

    from pipeline.exporting.tokenizer_json import tokenizer_json
    from pipeline.tokenize.vocabulary import published

    gpt2: Any = published("gpt2")  # it has what tokenizer_json needs of an exporter's source
    (place / "tokenizer.json").write_text(json.dumps(tokenizer_json(gpt2)), encoding="utf-8")
    (place / "jsonl").mkdir()
    for number, path in enumerate(sorted((place / "data" / "raw").iterdir())):
        with (place / "jsonl" / f"{number % files}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": path.name, "text": path.read_text(encoding="utf-8")}) + "\n")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--others", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--only-others", action="store_true", help="leave out the pipeline itself")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    source = Path(os.environ["PIPELINE_TEST_DATA"]) / "tinyshakespeare.txt"
    whole = source.read_text(encoding="utf-8")

    def texts() -> Iterator[str]:
        number = 0
        while True:
            yield f"Copy {number}.\n\n{whole}"
            number += 1

    print("| what | processor-seconds | per GB | seconds | peak memory in MB | bytes on disk per byte |")
    print("|---|---|---|---|---|---|")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for one_file in () if arguments.only_others else (False, True):
                for line in ours(Path(folder) / f"ours-{one_file}", megabytes, texts(), one_file):
                    print(line, flush=True)
                shutil.rmtree(Path(folder) / f"ours-{one_file}")
            for line in others(Path(folder), megabytes, texts, arguments.others):
                print(line, flush=True)


if __name__ == "__main__":
    main()
