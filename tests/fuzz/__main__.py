"""`python -m tests.fuzz`: thousands of broken inputs, a table of them by kind, and every fault with its id.

Exit code 1 if a command ended in a traceback or a crash, took too long or too much memory, ended with 0 without
having done its work, changed an output that it did not replace, or told an error otherwise than in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.fuzz import (
    checkpoints,
    conversations,
    corpora,
    params,
    planted,
    plugins,
    project,
    publishing,
    surroundings,
    training_checkpoints,
)
from tests.fuzz.case import Case
from tests.fuzz.runner import Limits, attempt, make_template, place

KINDS: dict[str, ModuleType] = {
    "params": params, "corpora": corpora, "conversations": conversations,
    "training_checkpoints": training_checkpoints, "checkpoints": checkpoints,
    "plugins": plugins, "publishing": publishing, "surroundings": surroundings, "planted": planted,
}  # fmt: skip
SORTS = ("traceback", "crash", "hang", "growth", "silent", "outputs", "accepted", "wrong", "not finite", "refused",
         "message", "unnamed")  # fmt: skip


def make_case(id: str, values: dict[str, Any]) -> Case:
    """The case of an id, SEED/KIND/NUMBER: the fixed ones first, which are the same for each seed."""
    _, kind, number = id.split("/")
    fixed: list[Case] = KINDS[kind].FIXED
    if int(number) < len(fixed):
        return fixed[int(number)]
    made: Case = KINDS[kind].random_case(random.Random(id), values)
    return made


def ids(seed: int, kinds: list[str], fixed: bool = True) -> Iterator[str]:
    """The ids in the order of trying: all fixed cases, then random ones of each kind in turn, without end."""
    for kind in kinds if fixed else ():
        yield from (f"{seed}/{kind}/{number}" for number in range(len(KINDS[kind].FIXED)))
    for turn in count():
        for kind in kinds:
            weight = getattr(KINDS[kind], "WEIGHT", 1)
            first = len(KINDS[kind].FIXED) + turn * weight
            yield from (f"{seed}/{kind}/{number}" for number in range(first, first + weight))


def main() -> int:
    options = _options()
    kinds = options.only or [kind for kind in KINDS if kind != "planted"]
    limits, started = (
        Limits(options.limit, max(60.0, 3 * options.limit), int(options.growth * 1e9)),
        time.monotonic(),
    )
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    folder.chmod(0o755)
    try:
        template = make_template(folder)
        values = project.values()
        end = time.monotonic() + options.seconds
        if options.case:
            place(template, folder)
            tried = [json.loads(_line(each, values, template, folder, limits)) for each in options.case]
        else:
            tried = _in_workers(options, kinds, end, values, template, folder, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _report(tried, kinds, time.monotonic() - started)


def _in_workers(
    options: argparse.Namespace,
    kinds: list[str],
    end: float,
    values: Any,
    template: Path,
    folder: Path,
    limits: Limits,
) -> list[dict[str, Any]]:
    """Forks a worker for each core, of which each tries its share; returns what they tried."""
    workers = []
    for number in range(options.workers):
        pid = os.fork()
        if pid == 0:
            worker_folder = folder / f"worker-{number}"
            worker_folder.mkdir()
            place(template, worker_folder)
            with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
                for turn, id in enumerate(ids(options.seed, kinds, not options.random)):
                    if time.monotonic() >= end or turn >= options.cases:
                        break
                    if turn % options.workers == number:
                        file.write(_line(id, values, template, worker_folder, limits) + "\n")
                        file.flush()
            os._exit(0)
        workers.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in workers]
    lines = [
        line for number in range(options.workers) for line in (folder / f"{number}.jsonl").read_text().splitlines()
    ]
    if any(codes):
        raise SystemExit(f"error: a worker ended with {codes}")
    return [json.loads(line) for line in lines]


def _line(id: str, values: Any, template: Path, folder: Path, limits: Limits) -> str:
    try:
        return json.dumps(asdict(attempt(make_case(id, values), id, template, folder, limits)))
    except Exception as error:
        raise RuntimeError(f"case {id}: {error!r}") from error


def _report(tried: list[dict[str, Any]], kinds: list[str], seconds: float) -> int:
    """Prints the table and the faults; returns the exit code."""
    distinct: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for each in tried:
        kind = each["id"].split("/")[1]
        counts[kind]["cases"] += 1
        counts[kind]["seconds"] += each["seconds"]
        counts[kind]["with faults"] += bool(each["faults"])
        for fault in each["faults"]:
            counts[kind][fault["sort"]] += 1
            distinct.setdefault(f"{kind} | {fault['key']}", []).append((each, fault))
    for kind in kinds:
        counts[kind]["distinct"] = sum(key.startswith(f"{kind} |") for key in distinct)
    columns = ("cases", "with faults", "distinct", *SORTS, "seconds")
    print("| kind | " + " | ".join(columns) + " |\n|---" + "|--:" * len(columns) + "|")
    total: Counter[str] = sum(counts.values(), Counter())
    for kind, row in [*counts.items(), ("all", total)]:
        print(f"| {kind} | " + " | ".join(f"{row[column]:.0f}" for column in columns) + " |")
    print(f"\n{len(tried):,} cases in {seconds:.0f} s; {len(distinct)} distinct faults\n")
    for key, found in sorted(distinct.items()):
        each, fault = found[0]
        print(f"- {len(found)}× {key}\n  `{each['id']}`: `{each['command'][:110]}` after: {each['note'][:90]}")
        print(f"  {fault['shown'][:260]}")
    return 1 if distinct else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long cases are begun")
    parser.add_argument("--cases", type=int, default=10**9, help="how many at most")
    parser.add_argument("--seed", type=int, default=0, help="decides the random cases")
    parser.add_argument("--random", action="store_true", help="leaves out the fixed cases")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="a kind; may be repeated")
    parser.add_argument("--case", action="append", metavar="ID", help="tries this case alone; may be repeated")
    parser.add_argument("--limit", type=float, default=20, help="seconds of processor time that a command may take")
    parser.add_argument("--growth", type=float, default=2, help="GB of memory by which a command may grow")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
