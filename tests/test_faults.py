"""Faults: whatever ends a run at whatever moment, the next one goes on and ends as if nothing had happened.

`make test-faults` runs these with many tries (`--long`) and prints a table; `make test` runs the short form.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Tell
from test_dvc import Clone

pytestmark = pytest.mark.faults

EVENTFUL = (
    "model.dropout=0.1",
    "train.batch_size=6",
    "train.micro_batch_size=2",
    "train.evaluation.every=25",
    "train.eval_callbacks.use=[sample_text, weight_norms]",
    "runtime.save_seconds=0",
)
"""Dropout, accumulation, evaluations, samples, ends of epochs, and a state after every step."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run left: the bytes of its metrics and of its checkpoint."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, root: Path) -> Outcome:
        names = ["metrics/train.json", "metrics/history.tsv"]
        names += [
            f"artifacts/checkpoint/{name}" for name in ("model_and_optimizer.pth", "best.pth", "samples.jsonl")
        ]
        return cls({name: (root / name).read_bytes() for name in names})


def prepared(root: Path, *settings: str) -> Clone:
    """A committed project whose tokens and splits are there, and which trains with `settings`."""
    clone = Clone(root)
    clone.set_params(*EVENTFUL, *settings)
    clone.run("dvc", "repro", "-q", "split")
    clone.commit("prepared")
    return clone


@pytest.fixture(scope="module")
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("long"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, long: bool) -> tuple[Clone, Outcome]:
    """A prepared project, and what its uninterrupted run leaves; a copy of the project is what is interrupted."""
    return uninterrupted(tmp_path_factory.mktemp("faults"), 400 if long else 100)


def uninterrupted(folder: Path, steps: int) -> tuple[Clone, Outcome]:
    clone = prepared(folder / "project", f"train.budget.amount={steps}")
    copy = clone.copy(clone.root.with_name("uninterrupted"))
    copy.run("dvc", "repro", "train")
    return clone, Outcome.of(copy.root)


@pytest.fixture
def project(original: tuple[Clone, Outcome], tmp_path: Path) -> Clone:
    return original[0].copy(tmp_path / "project")


class Life:
    """A command that runs in a session of its own until it ends or is ended."""

    def __init__(self, clone: Clone, *command: str) -> None:
        self.root = clone.root
        self.output = clone.root.parent / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=clone.root, env=clone.environment(), start_new_session=True, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Waits until something is so, or the command has ended."""
        end = time.monotonic() + seconds
        while not condition() and self.process.poll() is None:
            assert time.monotonic() < end, self.said
            time.sleep(0.005)

    def end(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL to everything that the command started, but for sessions of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def checkpoints(root: Path) -> list[Path]:
    return sorted((root / ".resume").glob("*/[0-9]*"))


def trainer(root: Path) -> int | None:
    """The process that holds the lock on training in this folder."""
    with suppress(FileNotFoundError, ValueError):
        pid = int((root / ".resume" / "lock").read_text())
        if Path(f"/proc/{pid}").exists() and "train" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    return None


def gone(pid: int | None) -> bool:
    if pid is None:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def written(root: Path) -> int:
    """How many checkpoints were written so far: as many as steps were taken."""
    return max((int(path.name) for path in checkpoints(root)), default=0)


def until_it_trains(life: Life, steps: int = 1) -> None:
    """Waits until a command has taken some steps of its own."""
    before = written(life.root)
    life.wait_for(lambda: written(life.root) >= before + steps)


def kill_again_and_again(clone: Clone, command: tuple[str, ...], tries: int, seed: int) -> tuple[int, int]:
    """Runs a command `tries` times, each time killed at a random moment; returns how many of those went on from a
    state, and how many left a half-written state behind. Victims: all processes, the trainer, `dvc` alone."""
    moments = random.Random(seed)
    went_on = torn = 0
    for number in range(tries):
        there = bool(checkpoints(clone.root))
        life = Life(clone, *command)
        if number % 4:
            until_it_trains(life, moments.randrange(1, 40))
            time.sleep(moments.uniform(0, 0.02))
        else:  # in the command's first moments, before the first step too
            time.sleep(moments.uniform(0, 2.5))
        pid, victim = trainer(clone.root), ("all", "trainer", "dvc")[number % 3]
        with suppress(ProcessLookupError):
            if victim == "trainer" and pid:
                os.kill(pid, signal.SIGKILL)
                life.end()
            elif victim == "dvc":
                life.process.kill()  # the orphan notices, saves and leaves
            else:
                life.kill()
        wait_until(lambda: gone(pid), 20)  # noqa: B023
        life.kill()
        mend_the_lock_of_dvc(clone)
        assert "artifacts/checkpoint, metrics" not in life.said, "it ended before it was killed: give it more steps"
        torn += bool(list((clone.root / ".resume").glob("*/.*.partial-*")))
        went_on += not there or "starts over" not in life.said
    return went_on, torn


def mend_the_lock_of_dvc(clone: Clone) -> None:
    """DVC writes its own lock file in place: killed in that very moment it leaves half a file, and the next `dvc`
    says so and stops. The way on is to remove it."""
    path = clone.root / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return
    except ValueError:
        path.unlink()


def finished(clone: Clone, *command: str) -> str:
    """Runs a command to its end."""
    result = clone.run(*command)
    return result.stdout


# ── SIGKILL ───────────────────────────────────────────────────────────────────────────────────────


def test_killed_at_random_moments_under_dvc_repro(
    original: tuple[Clone, Outcome], tmp_path: Path, long: bool, tell: Tell
) -> None:
    tries = 52 if long else 2
    if long:
        original = uninterrupted(tmp_path / "long", 2200)
    project = original[0].copy(tmp_path / "project")
    went_on, torn = kill_again_and_again(project, ("dvc", "repro", "train"), tries, seed=1)
    assert "resuming from step" in finished(project, "dvc", "repro", "train")
    same = Outcome.of(project.root) == original[1]
    assert torn or not long, "no kill fell into the middle of a save"
    tell("SIGKILL of all processes, the trainer or dvc, under dvc repro", tries, went_on, tries * same)
    if long:
        tell("… of which inside a save", torn, torn, torn * same)


@pytest.mark.long
@pytest.mark.parametrize("where", ["dvc exp run", "dvc exp run --temp"])
def test_killed_in_an_experiment(
    original: tuple[Clone, Outcome], project: Clone, where: str, long: bool, tell: Tell
) -> None:
    tries = 4 if long else 1
    command = (*where.split(), "-n", "killed", "train")
    went_on = 0
    for number in range(tries):
        life = Life(project, *command)
        until_it_trains(life)
        time.sleep(random.Random(number).uniform(0, 0.1))
        pid = trainer_anywhere(project)
        life.kill()
        wait_until(lambda: gone(pid), 20)  # noqa: B023
        went_on += number == 0 or "resuming from step" in life.said
    assert "resuming from step" in finished(project, *command)
    same = experiment(project, "killed") == metrics(original[1])
    tell(f"SIGKILL under {where}", tries, went_on, tries * same)


@pytest.mark.long
def test_killed_in_a_queued_experiment(
    original: tuple[Clone, Outcome], project: Clone, long: bool, tell: Tell
) -> None:
    tries = 3 if long else 1
    went_on = 0
    for number in range(tries + 1):
        project.run("dvc", "exp", "run", "--queue", "-n", f"queued{number}", "train")
        worker = Life(project, "dvc", "queue", "start")
        if number < tries:
            before = written(project.root)
            wait_until(lambda: written(project.root) > before + 5)  # noqa: B023
            pid = trainer_anywhere(project)
            assert pid
            os.kill(pid, signal.SIGKILL)
        worker.end()
        log = project.run("dvc", "queue", "logs", f"queued{number}", "-f").stdout
        went_on += number > 0 and "resuming from step" in log
        wait_until(lambda: "Running" not in project.run("dvc", "queue", "status").stdout, 90)
    same = experiment(project, f"queued{tries}") == metrics(original[1])
    tell("SIGKILL under dvc exp run --queue", tries, went_on, tries * same)


def trainer_anywhere(clone: Clone) -> int | None:
    """The process that trains with a state of this project, in whichever folder."""
    for lock in (clone.root / ".resume").glob("*/lock"):
        with suppress(ValueError):
            pid = int(lock.read_text())
            if not gone(pid):
                return pid
    return None


def experiment(clone: Clone, name: str) -> dict[str, bytes]:
    references = clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    reference = next(each for each in references if each.endswith(f"/{name}"))
    return {
        path: clone.git("show", f"{reference}:{path}").encode()
        for path in ("metrics/train.json", "metrics/history.tsv")
    }


def metrics(outcome: Outcome) -> dict[str, bytes]:
    return {name: content for name, content in outcome.files.items() if name.startswith("metrics/")}


@pytest.mark.long
def test_killed_with_bf16_and_compiled_blocks(tmp_path: Path, long: bool, tell: Tell) -> None:
    """A compiled block of another process computes the same bits."""
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    tries = 3 if long else 1
    clone = prepared(
        tmp_path / "project", f"train.budget.amount={150 * tries}", "train.precision=bf16", "runtime.compile=true"
    )
    whole = clone.copy(tmp_path / "whole")
    whole.run("dvc", "repro", "train")
    for number in range(tries):
        life = Life(clone, "dvc", "repro", "train")
        until_it_trains(life)
        time.sleep(random.Random(number).uniform(0, 0.1))
        assert life.process.poll() is None, life.said
        life.kill()
        wait_until(lambda: trainer(clone.root) is None, 20)
    assert "resuming from step" in finished(clone, "dvc", "repro", "train")
    same = Outcome.of(clone.root) == Outcome.of(whole.root)
    tell("SIGKILL with bf16 and compiled blocks", tries, tries, tries * same)


# ── SIGTERM, SIGINT ───────────────────────────────────────────────────────────────────────────────


TRAIN = (sys.executable, "-m", "pipeline", "train")


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_a_random_moment(
    original: tuple[Clone, Outcome], project: Clone, number: signal.Signals, code: int, long: bool, tell: Tell
) -> None:
    tries = 6 if long else 1
    left = 0
    for each in range(tries):
        life = Life(project, *TRAIN)
        until_it_trains(life)
        time.sleep(random.Random(each).uniform(0, 0.1))
        started = time.monotonic()
        os.kill(life.process.pid, number)
        left += life.end() == code and time.monotonic() - started < 10
        assert re.search(r"\ntraining stopped at step \d+ of \d+; run it again to resume\n$", life.said), life.said
    project.run(*TRAIN)
    tell(f"{number.name} at a random moment", tries, left, tries * (Outcome.of(project.root) == original[1]))


@pytest.mark.long
def test_ctrl_c_under_dvc(original: tuple[Clone, Outcome], project: Clone, tell: Tell) -> None:
    """A terminal's Ctrl-C reaches dvc and the trainer."""
    life = Life(project, "dvc", "repro", "train")
    until_it_trains(life)
    os.killpg(life.process.pid, signal.SIGINT)
    code = life.end()
    assert "training stopped at step" in life.said
    again = finished(project, "dvc", "repro", "train")
    left = code != 0 and "resuming from step" in again
    tell("Ctrl-C under dvc repro", 1, left, Outcome.of(project.root) == original[1])


def slow_evaluation(clone: Clone) -> None:
    """An eval callback that generates for minutes."""
    (clone.root / "plugins" / "eval_callbacks" / "slow.py").write_text(
        "from typing import ClassVar\n"
        "from pipeline.plugin import EvalCallback, hookimpl\n\n"
        "class Slow(EvalCallback):\n"
        '    """Generates for minutes."""\n'
        '    name: ClassVar[str] = "slow"\n'
        "    def on_evaluation(self, event):\n"
        "        if event.step == 25:\n"
        "            print('generating', flush=True)\n"
        "            event.generate('the', max_new_tokens=100000)\n"
        "        return {}\n\n"
        "@hookimpl\n"
        "def register_eval_callbacks():\n"
        "    return [Slow]\n"
    )


def test_a_signal_during_an_evaluation_leaves_within_seconds(project: Clone, tell: Tell) -> None:
    slow_evaluation(project)
    project.set_params("train.eval_callbacks.use=[slow]")
    life = Life(project, *TRAIN)
    life.wait_for(lambda: "generating" in life.said)
    started = time.monotonic()
    life.process.send_signal(signal.SIGTERM)
    left = life.end() == 143 and time.monotonic() - started < 5
    assert "training stopped at step 25" in life.said
    # The evaluation is dropped as a whole: the next run begins with it.
    again = Life(project, *TRAIN)
    again.wait_for(lambda: "generating" in again.said)
    assert re.search(r"resuming from step 25 .*\nstep +25 ", again.said)
    again.kill()
    tell("SIGTERM during an evaluation", 1, left, 1)


def test_a_second_ctrl_c_exits_at_once_and_the_old_checkpoint_is_intact(
    original: tuple[Clone, Outcome], project: Clone, tell: Tell
) -> None:
    """The first one is caught in the middle of writing a state, on a disk that has become slow."""
    (project.root / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'train' in sys.argv:\n"
        "    fsync = os.fsync\n"
        "    def slow(descriptor):\n"
        "        if os.path.exists('slow'):\n"
        "            time.sleep(60)\n"
        "        fsync(descriptor)\n"
        "    os.fsync = slow\n"
    )
    life = Life(project, "env", f"PYTHONPATH={project.root}", *TRAIN)
    until_it_trains(life)
    (project.root / "slow").touch()
    life.wait_for(lambda: list((project.root / ".resume").glob("*/.*.partial-*")))
    life.process.send_signal(signal.SIGINT)
    life.wait_for(lambda: "exit at once" in life.said)
    time.sleep(0.2)
    started = time.monotonic()
    life.process.send_signal(signal.SIGINT)
    code, seconds = life.end(), time.monotonic() - started
    assert (code, seconds < 2) == (-signal.SIGINT, True), (code, seconds, life.said)
    (project.root / "slow").unlink()
    assert "resuming from step" in project.run(*TRAIN).stdout
    tell("a second Ctrl-C in the middle of a save", 1, 1, Outcome.of(project.root) == original[1])


# ── one writer ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_a_second_run_fails_fast_and_names_the_first(project: Clone, tell: Tell) -> None:
    life = Life(project, *TRAIN)
    until_it_trains(life)
    os.kill(life.process.pid, signal.SIGSTOP)  # it is there however long the others take to start
    started = time.monotonic()
    second = project.run(*TRAIN, check=False)
    assert time.monotonic() - started < 30
    refused = second.returncode == 1 and f"already running as process {life.process.pid}" in second.stdout
    listed = project.run(sys.executable, "-m", "pipeline", "runs").stdout
    assert f"running as process {life.process.pid}" in listed
    kept = project.run(sys.executable, "-m", "pipeline", "clean").stdout
    assert "kept" in kept
    assert "removed the checkpoints of 0 runs" in kept
    life.kill()  # its lock is stale now, and is taken over
    took_over = "resuming from step" in project.run(*TRAIN).stdout
    tell("a second run beside the first; a stale lock", 1, refused, took_over)


def test_a_trainer_whose_dvc_was_killed_saves_and_leaves(project: Clone) -> None:
    life = Life(project, "dvc", "repro", "train")
    until_it_trains(life)
    pid = trainer(project.root)
    assert pid is not None
    life.process.kill()
    wait_until(lambda: gone(pid), 10)
    assert "the parent process died" in life.said
    assert re.search(r"training stopped at step \d+", life.said)


@pytest.mark.long
def test_a_run_started_by_hand_outlives_its_shell(original: tuple[Clone, Outcome], project: Clone) -> None:
    shell = Life(project, "bash", "-c", f"nohup {' '.join(TRAIN)} & wait")
    until_it_trains(shell)
    pid = trainer(project.root)
    shell.process.kill()
    wait_until(lambda: gone(pid), 120)
    assert Outcome.of(project.root) == original[1]


# ── disk full ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[Path]:
    """A real filesystem of so many megabytes."""
    place.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small filesystem cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_disk_keeps_the_last_checkpoint_and_reports_the_missing_space(
    original: tuple[Clone, Outcome], project: Clone, tmp_path: Path, long: bool, tell: Tell
) -> None:
    tries = recovered = 0
    rooms = [0.1, 0.3, 0.4, 0.6, 0.9] if long else [0.75]
    for number, room in enumerate(rooms):
        clone = project.copy(tmp_path / f"project-{number}")
        with small_disk(tmp_path / f"disk-{number}", room) as disk:
            (clone.root / ".resume").symlink_to(disk)
            failed = clone.run(*TRAIN, check=False)
            tries += 1
            kept = checkpoints(clone.root)
            assert failed.returncode == 1, failed.stdout
            assert re.search(
                r"\nerror: \S+: the disk is full: [\d.]+ kB to write, [\d.]+ \w+ free: "
                r"make room for at least [\d.]+ \w+ and run it again\n$",
                failed.stdout,
            ), failed.stdout
            assert bool(kept) == (room >= 0.4)
            assert not list(disk.glob("*/.*.partial-*"))
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)  # room is made
            again = clone.run(*TRAIN).stdout
            recovered += ("resuming from step" in again) == bool(kept)
        assert Outcome.of(clone.root) == original[1]
        shutil.rmtree(clone.root)
    tell("a full disk under the checkpoints", tries, recovered, tries)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_disk_under_the_outputs_keeps_the_former_ones(
    original: tuple[Clone, Outcome], project: Clone, tmp_path: Path, tell: Tell
) -> None:
    short = (*TRAIN, "--set", "train.budget.amount=30")
    project.run(*short)
    before = Outcome.of(project.root)
    checkpoint = project.root / "artifacts"
    with small_disk(tmp_path / "disk", 0.6) as disk:
        shutil.copytree(checkpoint, disk, dirs_exist_ok=True)
        checkpoint.rename(project.root / "former")
        checkpoint.symlink_to(disk)
        failed = project.run(*short, "--set", "train.seed=5", check=False)
        assert failed.returncode == 1
        assert re.search(r"error: \S*artifacts/checkpoint: the disk is full: .* make room for", failed.stdout), (
            failed.stdout
        )
        kept = Outcome.of(project.root) == before
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = project.run(*short, "--set", "train.seed=5").stdout
        assert "already complete" in again
    tell("a full disk under the outputs", 1, kept, 1)
