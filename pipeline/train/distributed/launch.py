"""Trains in several processes: as one of them, or by starting them on this machine and reporting how they ended.

torchrun's entry point starts processes, too, but for clusters: it restarts after errors that no restart mends,
reports them as tables and tracebacks, and leaves its signal handlers behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.core.console import say
from pipeline.core.errors import Interrupted, PipelineError
from pipeline.core.files import write_json
from pipeline.model.device import choose_device
from pipeline.train.distributed.ranks import TCPStore, process_group, ranks_from_environment
from pipeline.train.interrupt import LAUNCHER, StopSignal
from pipeline.train.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.params.params import Params

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun sets it, too, and shows the message that it finds there
_STOPPED = "training stopped; run it again to go on"
_SECONDS_TO_LEAVE = 300
_SECONDS_BETWEEN_LOOKS = 0.1
_CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


def run_on_ranks(train: Callable[[Ranks], None], params: Params, processes: int) -> None:
    """Calls `train` as one of several processes; if none started this one as such, starts `processes` of them.

    Each of those is this command with the params as they are here. If one fails, the others are ended. After a
    crash all start again from the last training checkpoint, at most `runtime.restarts` times.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the processes have saved and left.
        PipelineError: a process failed; the message is its own, with its rank.
    """
    ranks = ranks_from_environment()
    if ranks is not None:
        with _errors_reported(), process_group(ranks, choose_device(params.runtime.device).type == "cuda"):
            train(ranks)
        return
    restarts = params.runtime.restarts
    for attempt in range(restarts + 1):
        try:
            _run_once(params, processes)
            return
        except _CrashError as crash:
            if attempt == restarts:
                raise PipelineError(f"{crash}: run it again to go on") from None
            say(f"{crash}: starting again from the last state ({attempt + 1} of {restarts})")


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Leaves an error for the launcher to report; under ours the rank itself is silent: one error is one line."""
    try:
        yield
    except (PipelineError, Interrupted) as error:
        if _ERROR_FILE in os.environ:
            write_json(Path(os.environ[_ERROR_FILE]), {"message": str(error), "timestamp": int(time.time())})
        if LAUNCHER not in os.environ:
            raise
        raise SystemExit(128 + error.signal_number if isinstance(error, Interrupted) else 1) from None


class _CrashError(PipelineError):
    """A process was ended by a signal that another start may not meet."""


def _run_once(params: Params, processes: int) -> None:
    """Runs the processes until all have ended; raises as `run_on_ranks` does, and _CrashError."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # where they find each other
    stop = _ForwardSignals()
    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        folder = Path(name)
        write_json(folder / "params.yaml", params.model_dump(mode="json"))
        with stop.caught():
            try:
                for rank in range(processes):
                    workers.append(_start(rank, processes, folder, store.port))
                while True:
                    codes = [worker.poll() for worker in workers]
                    if any(codes) or None not in codes or stop.number is not None:
                        break
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            finally:
                _end(workers, stop.received or signal.SIGTERM)
        if stop.received is not None:
            raise Interrupted(stop.received, _STOPPED)
        for rank, code in enumerate(codes):
            if code:
                _raise_failure(rank, code, folder / f"error-{rank}.json")


def _start(rank: int, processes: int, folder: Path, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher opened the store, and no rank has to
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        LAUNCHER: str(os.getpid()),
        _ERROR_FILE: str(folder / f"error-{rank}.json"),
    }
    command = (sys.executable, "-m", "pipeline", "train", "--params", str(folder / "params.yaml"))
    # In a session of its own, so that a terminal's Ctrl-C reaches the launcher only, which forwards it.
    return subprocess.Popen(command, env=os.environ | environment, start_new_session=True)


def _end(workers: list[subprocess.Popen[bytes]], number: int) -> None:
    """Ends the processes by a signal, and those that do not leave by SIGKILL."""
    for worker in workers:
        worker.send_signal(number)  # which does nothing to one that has ended
    end = time.monotonic() + _SECONDS_TO_LEAVE
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _raise_failure(rank: int, code: int, error_file: Path) -> None:
    """Raises how a process failed, by its exit code and what it left in its error file."""
    if code - 128 in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted(code - 128, _STOPPED)
    if code < 0:
        kind = _CrashError if -code in _CRASHES else PipelineError
        raise kind(f"rank {rank} was ended by {signal.Signals(-code).name}")
    if not error_file.is_file():
        raise PipelineError(f"rank {rank} ended with exit code {code}; its own message stands above")
    raise PipelineError(f"rank {rank} failed: {json.loads(error_file.read_bytes())['message']}")


class _ForwardSignals(StopSignal):
    """A signal to the launcher is one to its processes, which say what they do about it."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)  # a second one ends the launcher at once, and the processes notice
