"""Threads spin on an idle machine and sleep on a busy one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.model import waiting
from pipeline.model.waiting import Contention, seconds_waited

linux = pytest.mark.skipif(
    not Path("/proc/self/schedstat").is_file(), reason="only Linux tells how long threads wait"
)
two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) != 2,
    reason="libgomp compares the number of threads with that of cores: here the test is for two",
)


def shares(*waited: float) -> list[bool]:
    """Whether the machine counts as busy, after each look; `waited` is the share of a second that was waited."""
    contention, total, found = Contention(), 0.0, []
    contention.busy(total, 1.0)
    for each in waited:
        total += each
        found.append(contention.busy(total, 1.0))
    return found


def test_one_look_finds_a_busy_machine_and_many_calm_ones_an_idle_one() -> None:
    assert shares(0.0, 0.01, 0.3, 0.4) == [False, False, True, True]
    assert shares(0.3, *[0.0] * 9) == [True] * 8 + [False] * 2


def test_a_short_pause_of_the_other_program_changes_nothing() -> None:
    assert all(shares(0.3, *[0.0] * 6, 0.3, *[0.0] * 7))


def test_the_first_look_and_the_end_of_a_thread_find_no_contention() -> None:
    contention = Contention()
    assert not contention.busy(1000.0, 1.0)
    assert not contention.busy(10.0, 1.0)  # a thread that had waited has ended


@linux
def test_the_time_waited_does_not_go_backwards() -> None:
    first = seconds_waited()
    assert 0 <= first <= seconds_waited()


_COUNT_SLEEPS = """
import json, time
from pathlib import Path
import torch
from pipeline.model.waiting import SleepingThreads

def work():
    "How often a thread of torch fell asleep in 200 operations with pauses between them, which spinning bridges."
    before = sleeps()
    for _ in range(200):
        numbers.add_(1)
        end = time.perf_counter() + 2e-4
        while time.perf_counter() < end:
            pass
    return sleeps() - before

def sleeps():
    return max(sleeps_of(task) for task in workers)

def sleeps_of(task):
    status = (task / "status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])

torch.set_num_threads(2)
before = set(Path("/proc/self/task").iterdir())
numbers = torch.zeros(1 << 17)
workers = set(Path("/proc/self/task").iterdir()) - before
asleep, found = SleepingThreads(), []
for _ in range(3):
    for wanted in (True, False):
        asleep.keep(wanted)
        time.sleep(0.3)
        found.append(work())
print(json.dumps([found[::2], found[1::2]]))
"""


@linux
@two_cores
def test_threads_sleep_between_operations_while_a_second_team_exists() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_SLEEPS], capture_output=True, text=True, check=True, env=environment
    )
    asleep, spinning = json.loads(done.stdout)
    # While another process has the main thread's core, a spinning thread gives up, too: the least of three counts.
    assert max(asleep) > 150
    assert min(spinning) < 100


def test_one_thread_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.model import device

    watched = []
    monkeypatch.setattr(waiting, "watch", lambda: watched.append(True))
    device.use_threads(1)
    assert not watched
    device.use_threads(2)
    assert watched
    device.use_threads(1)


@pytest.mark.parametrize("setting", ["OMP_DYNAMIC=true", "OMP_THREAD_LIMIT=1", "OMP_MAX_ACTIVE_LEVELS=0"])
def test_a_product_is_whole_whatever_openmp_is_told(setting: str) -> None:
    # With fewer threads than it asked for, oneDNN leaves a part of a bf16 product uncomputed.
    code = (
        "import pipeline.cli, torch; torch.set_num_threads(2);"
        "out = torch.full((2048, 192), float('nan'), dtype=torch.bfloat16);"
        "torch.mm(out.new_ones(2048, 768), out.new_ones(768, 192), out=out);"
        "print((out == 768).all().item(), torch.get_num_threads())"
    )
    environment = dict([*os.environ.items(), tuple(setting.split("="))])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "True 2\n"
