"""Faults of runs on several processes and machines: one that dies ends them all, and the run goes on from there."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Tell
from test_dvc import Clone
from test_faults import TRAIN, Life, Outcome, checkpoints, gone, prepared, until_it_trains, wait_until

pytestmark = pytest.mark.faults

TWO = ("--set", "runtime.processes=2")
FAILING = """from typing import ClassVar
from pipeline.plugin import Loss, hookimpl

class Failing(Loss):
    \"\"\"Fails in the first step.\"\"\"
    name: ClassVar[str] = "failing"

    def __call__(self, output, targets):
        raise RuntimeError("no luck")

@hookimpl
def register_losses():
    return [Failing]
"""
FSDP = (*TWO, "--set", "runtime.strategy=fsdp", "--set", "train.budget.amount=40")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("long"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, long: bool) -> tuple[Clone, Outcome]:
    """A prepared project, and what its uninterrupted run on two ranks leaves."""
    clone = prepared(tmp_path_factory.mktemp("ranks") / "project", f"train.budget.amount={150 if long else 40}")
    copy = clone.copy(clone.root.with_name("uninterrupted"))
    copy.run(*TRAIN, *TWO)
    return clone, Outcome.of(copy.root)


@pytest.fixture
def project(original: tuple[Clone, Outcome], tmp_path: Path) -> Clone:
    return original[0].copy(tmp_path / "project")


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return sorted(int(line) for line in listed.stdout.split())


# ── one machine ───────────────────────────────────────────────────────────────────────────────────


def test_a_killed_rank_ends_the_job_at_once_and_the_next_run_resumes(
    original: tuple[Clone, Outcome], project: Clone, long: bool, tell: Tell
) -> None:
    tries = 6 if long else 1
    ended = 0
    for number in range(tries):
        life = Life(project, *TRAIN, *TWO)
        until_it_trains(life, random.Random(number).randrange(1, 15))
        workers = children(life.process.pid)
        victim = number % 2
        started = time.monotonic()
        os.kill(workers[victim], signal.SIGKILL)
        code = life.end()
        line = f"\nerror: rank {victim} was killed by SIGKILL: run it again to resume\n"
        ended += code == 1 and life.said.endswith(line) and time.monotonic() - started < 10
        assert life.said.count("error:") == 1, life.said
        wait_until(lambda: all(gone(worker) for worker in workers), 10)  # noqa: B023
    assert "resuming from step" in project.run(*TRAIN, *TWO).stdout
    tell("SIGKILL of one of two ranks", tries, ended, tries * (Outcome.of(project.root) == original[1]))


@pytest.mark.long
def test_a_killed_rank_is_started_again_with_the_others(
    original: tuple[Clone, Outcome], project: Clone, tell: Tell
) -> None:
    life = Life(project, *TRAIN, *TWO, "--set", "runtime.restarts=2")
    for _ in range(2):
        until_it_trains(life, 5)
        os.kill(children(life.process.pid)[-1], signal.SIGKILL)
    restarted = life.end(120) == 0 and "restarting from the last training checkpoint (2 of 2)" in life.said
    tell(
        "SIGKILL of one of two ranks, runtime.restarts: 2",
        2,
        2 * restarted,
        2 * (Outcome.of(project.root) == original[1]),
    )


@pytest.mark.long
def test_torchrun_starts_a_killed_rank_again(original: tuple[Clone, Outcome], project: Clone, tell: Tell) -> None:
    command = (*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "pipeline", "train")
    life = Life(project, *command)
    until_it_trains(life, 5)
    os.kill(children(life.process.pid)[0], signal.SIGKILL)
    code = life.end(120)
    assert code == 0, life.said
    restarted = "resuming from step" in life.said
    tell(
        "SIGKILL of one of two ranks, torchrun --max-restarts=1",
        1,
        restarted,
        Outcome.of(project.root) == original[1],
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_the_launcher_is_one_to_all_ranks(
    original: tuple[Clone, Outcome], project: Clone, number: signal.Signals, code: int, tell: Tell
) -> None:
    """After SIGKILL, too, the ranks save and leave: they notice that the launcher is gone."""
    life = Life(project, *TRAIN, *TWO)
    until_it_trains(life, 5)
    workers = children(life.process.pid)
    life.process.send_signal(number)
    assert life.end() == code
    wait_until(lambda: all(gone(worker) for worker in workers), 10)
    left = "saving, then exiting" in life.said
    assert "resuming from step" in project.run(*TRAIN, *TWO).stdout
    tell(f"{number.name} to the launcher of two ranks", 1, left, Outcome.of(project.root) == original[1])


@pytest.mark.long
def test_two_ranks_under_dvc_repro(original: tuple[Clone, Outcome], project: Clone) -> None:
    project.set_params("runtime.processes=2")
    life = Life(project, "dvc", "repro", "train")
    until_it_trains(life, 5)
    launcher = children(life.process.pid)[-1]
    life.process.kill()  # dvc alone: the launcher notices, and ends its ranks
    life.end()
    wait_until(lambda: gone(launcher), 20)
    assert "train stopped; run it again to resume" in life.said
    assert "resuming from step" in project.run("dvc", "repro", "train").stdout
    assert Outcome.of(project.root) == original[1]


@pytest.mark.long
def test_ranks_killed_while_each_writes_its_share(project: Clone, tmp_path: Path, tell: Tell) -> None:
    straight = project.copy(tmp_path / "straight")
    straight.run(*TRAIN, *FSDP)
    for steps, victims in ((5, "all"), (7, "one")):
        life = Life(project, *TRAIN, *FSDP)
        until_it_trains(life, steps)
        workers = children(life.process.pid)
        for each in (life.process.pid, *workers) if victims == "all" else workers[1:]:
            os.kill(each, signal.SIGKILL)
        life.end()
        if victims == "one":
            assert life.said.endswith("\nerror: rank 1 was killed by SIGKILL: run it again to resume\n"), life.said
            assert life.said.count("error:") == 1, life.said
        wait_until(lambda: all(gone(worker) for worker in workers), 10)  # noqa: B023
        assert checkpoints(project.root)
        assert all((state / "shards" / "00001.pth").is_file() for state in checkpoints(project.root))
    assert "resuming from step" in project.run(*TRAIN, *FSDP).stdout
    equal = Outcome.of(project.root) == Outcome.of(straight.root)
    tell("SIGKILL of both, then of one of two fsdp ranks", 2, 2, 2 * equal)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_checkpoint_is_of_the_same_form_on_several_ranks(
    original: tuple[Clone, Outcome], project: Clone, strategy: str
) -> None:
    """The same keys, shapes and types as one process writes, nearly the same numbers; the other stages read it."""
    short = ("--set", "train.budget.amount=8", "--set", "model.dropout=0")
    project.run(*TRAIN, *TWO, *short, "--set", f"runtime.strategy={strategy}")
    several = torch.load(project.root / "artifacts/checkpoint/model_and_optimizer.pth", weights_only=True)
    for stage in ("evaluate", "export"):
        project.run(sys.executable, "-m", "pipeline", stage, "--set", "model.dropout=0")
    project.run(sys.executable, "-m", "pipeline", "clean")
    project.run(*TRAIN, *short)
    one = torch.load(project.root / "artifacts/checkpoint/model_and_optimizer.pth", weights_only=True)
    assert list(several) == list(one)
    torch.testing.assert_close(several["model_state_dict"], one["model_state_dict"], rtol=1e-4, atol=1e-5)
    assert several["optimizer_state_dict"]["param_groups"] == one["optimizer_state_dict"]["param_groups"]
    for number, state in one["optimizer_state_dict"]["state"].items():
        for name, tensor in state.items():
            other = several["optimizer_state_dict"]["state"][number][name]
            assert (type(other), other.shape, other.dtype) == (type(tensor), tensor.shape, tensor.dtype)


def test_an_error_on_several_ranks_is_one_line_with_its_rank(project: Clone) -> None:
    (project.root / "plugins/losses/failing.py").write_text(FAILING)
    refused = project.run(*TRAIN, *TWO, "--set", "train.loss.name=failing", check=False)
    assert refused.returncode == 1
    assert re.search(r"error: rank \d failed: .*'failing'.*no luck.*failing\.py line 9", refused.stdout), (
        refused.stdout
    )
    assert refused.stdout.count("error:") == 1
    assert "Traceback" not in refused.stdout


# ── many machines ─────────────────────────────────────────────────────────────────────────────────


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_it_works_as_steps_that_srun_started(original: tuple[Clone, Outcome], project: Clone) -> None:
    """srun starts the very command once a task and tells each its number; here the test does."""
    job = 20000 + free_port()  # the port follows from the job's number
    lives = []
    for rank in range(2):
        step = {
            "SLURM_JOB_ID": str(job), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost",
            "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS_PER_NODE": "2",
        }  # fmt: skip
        environment = [f"{name}={value}" for name, value in step.items()]
        lives.append(subprocess.Popen(["env", *environment, *TRAIN], cwd=project.root, env=project.environment()))
    assert [life.wait(120) for life in lives] == [0, 0]
    assert Outcome.of(project.root) == original[1]


@dataclass(frozen=True)
class Host:
    """A network namespace with an address of its own."""

    name: str
    address: str

    def command(self, *command: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name, *command)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces that reach each other through a pair of virtual interfaces, and nothing else."""
    if not shutil.which("ip"):
        pytest.skip("there is no `ip` command to make network namespaces with")
    hosts = tuple(Host(f"pipeline-{os.getpid()}-{n}", f"10.213.7.{n}") for n in (1, 2))

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        try:
            for host in hosts:
                ip("netns", "add", host.name)
            ip(
                "link",
                "add",
                "pl1",
                "netns",
                hosts[0].name,
                "type",
                "veth",
                "peer",
                "name",
                "pl2",
                "netns",
                hosts[1].name,
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not to be had here: {error.stderr.strip()}")
        for number, host in enumerate(hosts, start=1):
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", f"pl{number}")
            ip("-n", host.name, "link", "set", f"pl{number}", "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


@pytest.mark.long
def test_two_hosts_train_together_and_survive_the_loss_of_one(
    original: tuple[Clone, Outcome], project: Clone, tell: Tell
) -> None:
    """torchrun on each host, with its c10d rendezvous on the first; one host's rank is killed, both start again."""
    with two_hosts() as hosts:
        lives = []
        for number, host in enumerate(hosts):
            common = (
                "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test",
                f"--rdzv-endpoint={hosts[0].address}:29400", f"--rdzv-conf=is_host={1 - number}",
                f"--local-addr={host.address}", "--max-restarts=2", "--monitor-interval=0.2",
            )  # fmt: skip
            here = copied_view(project, number)
            environment = ("env", f"GLOO_SOCKET_IFNAME=pl{number + 1}")
            lives.append(Life(here, *host.command(*environment, *TORCHRUN, *common, "-m", "pipeline", "train")))
        until_it_trains(lives[0], 5)
        agent = lives[1].process.pid
        workers = children(agent)
        os.kill(workers[-1], signal.SIGKILL)
        codes = [life.end(180) for life in lives]
        assert codes == [0, 0], lives[0].said + lives[1].said
        restarted = "resuming from step" in lives[0].said
    tell("SIGKILL of a rank on one of two hosts", 1, restarted, Outcome.of(project.root) == original[1])


def copied_view(project: Clone, number: int) -> Clone:
    """The project as the host sees it: the first has it itself, the second a copy that shares no file."""
    return project if number == 0 else project.copy(project.root.with_name("second-host") / "project")
