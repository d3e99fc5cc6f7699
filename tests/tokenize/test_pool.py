"""Tokenizing in processes: they end at once, and what is finished is kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, Project, made_up_text
from sharding import SHARD, contents, run_inline, with_low_limits

from pipeline.core.errors import PipelineError
from pipeline.tokenize.pool import process_pool

LOW = f"""
from pipeline.tokenize import shards, stage
stage.SMALL_BYTES, shards.SHARD_BYTES = 0, {SHARD}
from pipeline.cli import main
if __name__ == "__main__":
    main()
"""
"""The command line, with low limits. Its processes import it as well."""
SLOW = '''
import os
import time
from pathlib import Path
from typing import ClassVar

from pipeline.plugin import Corpus, CorpusSource, Document, hookimpl


class Slow(Corpus):
    """Reads slowly, and says which process reads."""

    name: ClassVar[str] = "slow"

    def sources(self, root):
        return [CorpusSource(f"{number:02}", str(root), 3000, 0, 3000) for number in range(20)]

    def digest(self, root, source):
        return source.name

    def read(self, root, source):
        (root.parents[1] / "reading").mkdir(exist_ok=True)
        (root.parents[1] / "reading" / str(os.getpid())).touch()
        if not (root / "fast").exists():
            time.sleep(0.2 if int(source.name) < 6 else 60)
        yield Document(source.name, "the river " * 300)


@hookimpl
def register_corpora():
    return [Slow]
'''


@pytest.fixture
def slow(project: Project) -> Project:
    """A project whose corpus takes 0.2 s for each of the first six shards, and longer for the others."""
    (project.root / "plugins" / "corpora" / "slow.py").write_text(SLOW)
    (project.root / "low.py").write_text(LOW)
    return project


SETTINGS = ("--set", "tokenize.corpus.name=slow", "--set", "tokenize.tokenizer.name=bytes")


@pytest.fixture
def started(slow: Project) -> Iterator[subprocess.Popen[str]]:
    """`pipeline tokenize` in that project, when it has finished two shards, in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "low.py", "tokenize", *SETTINGS],
        cwd=slow.root,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell ignores SIGINT in what it starts in the background, and these tests may be that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: len(shards(slow)) >= 2)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def shards(project: Project) -> list[Path]:
    return list((project.root / ".resume" / "tokens").glob("*/[!.]*/shard.json"))


def workers(project: Project) -> list[psutil.Process]:
    """The processes that have read a source and are there."""
    found = [int(path.name) for path in (project.root / "reading").iterdir()]
    return [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]


def until(condition: object) -> None:
    end = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def all_gone(project: Project) -> bool:
    return all(worker.status() == psutil.STATUS_ZOMBIE for worker in workers(project))


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_ends_all_processes_with_one_line_and_keeps_finished_shards(
    slow: Project, started: subprocess.Popen[str], number: int, to_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (os.killpg if to_all else os.kill)(started.pid, number)  # as Ctrl-C of a terminal, or `kill`
    _, error = started.communicate(timeout=30)
    assert started.returncode == 128 + number
    assert error.strip() in ("stopped by Ctrl-C", "stopped by SIGTERM")
    until(lambda: all_gone(slow))
    finished = len(shards(slow))
    assert finished >= 2
    assert not list((slow.root / ".resume" / "tokens").glob("*/.*partial*"))
    (slow.root / "data" / "raw" / "fast").touch()
    with_low_limits(monkeypatch)
    run_inline(monkeypatch)
    kept = re.search(r"tokenize: (\d+) of 20 shards are kept", slow.succeed("tokenize", *SETTINGS).out)
    assert kept
    assert int(kept[1]) == finished
    continued = contents(slow.root / "artifacts" / "tokens")
    slow.succeed("clean", "tokens")
    slow.succeed("tokenize", *SETTINGS)
    assert contents(slow.root / "artifacts" / "tokens") == continued


def test_a_killed_worker_is_one_line(slow: Project, started: subprocess.Popen[str]) -> None:
    workers(slow)[0].kill()
    _, error = started.communicate(timeout=30)
    assert started.returncode == 1
    assert error.startswith("error: a process of `pipeline tokenize` was killed by SIGKILL, perhaps because memory")
    assert error.count("\n") == 1
    until(lambda: all_gone(slow))


def test_the_workers_of_a_killed_process_end(slow: Project, started: subprocess.Popen[str]) -> None:
    started.kill()
    until(lambda: all_gone(slow))


def test_processes_give_the_bits_of_one(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (project.root / "data" / "raw" / f"{number}.txt").write_text(made_up_text(number, 500))
    with_low_limits(monkeypatch)
    monkeypatch.setattr("pipeline.tokenize.sharded.cores", lambda: 2)
    out = project.succeed("tokenize").out
    assert "shards are kept" in out
    made = contents(project.root / "artifacts" / "tokens")
    project.succeed("clean")
    run_inline(monkeypatch)
    project.succeed("tokenize")
    assert contents(project.root / "artifacts" / "tokens") == made


def test_errors_of_the_work_come_through() -> None:
    with pytest.raises(ValueError, match="invalid literal"), process_pool(1) as pool:
        pool.submit(int, "three").result()
    with pytest.raises(PipelineError, match="ended with code 3"), process_pool(1) as pool:
        pool.submit(os._exit, 3).result()
